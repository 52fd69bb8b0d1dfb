"""The configuration of a run on disk, compared with the one at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stflow_graph.config.records import Config
from stflow_graph.errors import BadConfig, one_line, short_repr
from stflow_graph.io.sealed_json import read_sealed

RUN_FORMAT = "stflow_graph.run/3"
# formats of before run.json had a checksum
_UNSEALED = ("stflow_graph.run/1", "stflow_graph.run/2", None)


def identity(config: Config) -> dict[str, Any]:
    """Return what makes two runs the same; ``epochs``, ``folds`` and ``device`` may differ."""
    values = config.model_dump(mode="json")
    for name in ("epochs", "folds", "device"):  # a longer run, more folds, another machine
        del values["train"][name]
    return values


def check_same_run(out: Path, config: Config) -> None:
    """Refuse to resume a run of another configuration.

    Raises:
        BadInput: ``run.json`` is not JSON, or was changed.
        BadConfig: it holds another configuration, or none.
    """
    file = out / "run.json"
    if not file.exists():
        return
    differences = _differences(_stored(file), identity(config))
    if differences:
        shown = "; ".join(differences[:5])
        raise BadConfig(
            f"{out}: holds a run with {shown}. Fix: another --out, or --overwrite to replace it"
        )


def _stored(file: Path) -> dict[str, dict[str, Any]]:
    fix = "copy the file again, or --overwrite to replace the run"
    stored = read_sealed(file, _UNSEALED, fix).get("config")
    sections: dict[str, Any] = stored if isinstance(stored, dict) else {"": stored}
    for name, section in sections.items():
        if not isinstance(section, dict):
            field = one_line(f"config.{name}".rstrip("."), 80)
            raise BadConfig(
                f"{file}: {field}: found {short_repr(section)}, expected a table. "
                "Fix: another --out, or --overwrite to replace the run"
            )
    return sections


def _differences(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> list[str]:
    differences = []
    for section in sorted({*old, *new}):
        before, after = old.get(section, {}), new.get(section, {})
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                was, now = short_repr(before.get(key)), short_repr(after.get(key))
                differences.append(f"{one_line(f'{section}.{key}', 80)} = {was} (now {now})")
    return differences
