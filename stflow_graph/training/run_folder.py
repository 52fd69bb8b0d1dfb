"""The folder of a run: whose it is, and of which configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stflow_graph.config import Config
from stflow_graph.errors import BadConfig, BadInput, unquoted
from stflow_graph.io.atomic import read_json, write_json
from stflow_graph.io.folders import read_mark

_FORMAT = "stflow_graph.run/2"


def check_is_run(out: Path) -> None:
    """Check that nothing in a folder that may not exist yet is taken for a run's, but is none.

    Raises:
        BadInput: it is a file, or holds files of a run's names without the mark of a run.
    """
    if out.exists() and not out.is_dir():
        raise BadInput(out, "output", unquoted("a file"), "a folder")
    names = ("run.json", "config.toml", "results_kfold.json")
    files = [*(out / name for name in names if (out / name).exists()), *_fold_folders(out)]
    if files and not read_mark(out / "run.json").startswith("stflow_graph.run/"):
        found = unquoted(f"{files[0].relative_to(out)}, which is of no run of this package")
        raise BadInput(out, "output", found, "a run's folder or a free one", "give another --out")


def check_same_run(out: Path, config: Config) -> None:
    """Check that a run that is resumed has this configuration; ``epochs`` and ``folds`` may differ.

    Raises:
        BadConfig: it has another.
    """
    file = out / "run.json"
    if not file.exists():
        return
    differences = _differences(read_json(file).get("config", {}), _identity(config))
    if differences:
        shown = "; ".join(differences[:5])
        raise BadConfig(
            f"{out}: holds a run with {shown}. Fix: another --out, or --overwrite to replace it"
        )


def claim(out: Path, config: Config, overwrite: bool) -> None:
    """Mark a folder as that of a run with this configuration.

    Args:
        out: the folder, which :func:`check_is_run` accepts.
        config: the run's configuration.
        overwrite: remove the states and results of the run that is there.
    """
    if overwrite:
        for folder in _fold_folders(out):
            for name in ("state-*.safetensors", "result.json", "provenance.json"):
                for file in folder.glob(name):
                    file.unlink()
    write_json(out / "run.json", {"format": _FORMAT, "config": _identity(config)})
    config.save(out / "config.toml")


def _fold_folders(out: Path) -> list[Path]:
    """Return the folds of a run, of one data set or several, and none of other runs inside it."""
    inside = [path for path in out.glob("*/fold[0-9]*") if not (path.parent / "run.json").exists()]
    return [*out.glob("fold[0-9]*"), *inside]


def _identity(config: Config) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    for name in ("epochs", "folds", "device"):  # a longer run, more folds, another machine
        del values["train"][name]
    return values


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    differences = []
    for section in sorted({*old, *new}):
        before, after = old.get(section, {}), new.get(section, {})
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                differences.append(
                    f"{section}.{key} = {before.get(key)!r} (now {after.get(key)!r})"
                )
    return differences
