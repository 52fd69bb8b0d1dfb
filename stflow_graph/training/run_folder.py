"""The folder of a run: whose it is, and of which configuration."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from stflow_graph.config import Config
from stflow_graph.config.stored import RUN_FORMAT, check_same_run, identity
from stflow_graph.data.splits import ALL
from stflow_graph.errors import BadInput, as_bad_input, unquoted
from stflow_graph.io.folders import read_mark
from stflow_graph.io.locks import check_unlocked, lock
from stflow_graph.io.sealed_json import write_sealed
from stflow_graph.training.fold_result import FoldResult, read_result

_LOCK = ".train.lock"
_WAIT = 60.0  # seconds; a run is claimed in less than one


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


def claim(out: Path, config: Config, overwrite: bool) -> None:
    """Mark a folder as that of a run with this configuration.

    Args:
        out: the folder, which :func:`check_is_run` accepts.
        config: the run's configuration.
        overwrite: remove the states and results of the run that is there.

    Raises:
        BadConfig: another process has begun a run of another configuration there.
        StorageFailed: another process trains one of the folds to be removed.
    """
    # jobs of an array begin at the same time, each with folds of its own
    with lock_run(out):
        if not overwrite:
            check_same_run(out, config)
        folds = _fold_folders(out) if overwrite else []
        for folder in folds:
            check_unlocked(folder / _LOCK, "another training")
        for folder in folds:
            for name in ("state-*.safetensors", "result.json", "provenance.json"):
                for file in folder.glob(name):
                    file.unlink(missing_ok=True)
        write_sealed(out / "run.json", RUN_FORMAT, {"config": identity(config)})
        config.save(out / "config.toml")


def lock_fold(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Hold a fold of a run for this process alone.

    Raises:
        StorageFailed: another process trains it.
    """
    return lock(folder / _LOCK, "another training")


def lock_run(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the files beside a run's folds for this process alone; waits up to a minute for them.

    Raises:
        StorageFailed: another process holds them for longer.
    """
    return lock(folder / _LOCK, "another training", wait=_WAIT)


def finished_folds(folder: Path, dataset: str, epochs: int, protocol: str) -> list[FoldResult]:
    """Return the results of a data set's finished folds by number, whoever trained them.

    Args:
        folder: of the run, or of the data set in a run of several.
        dataset: the data set's name.
        epochs: of the run's configuration; folds that were trained for fewer are not finished.
        protocol: what was measured; folds of another one are left out.
    """
    results: list[FoldResult] = []
    for file in folder.glob("fold*/result.json"):
        match = re.fullmatch(r"fold(0|[1-9][0-9]*)", file.parent.name)
        # damage is reported when that fold is trained again
        with contextlib.suppress(BadInput):
            content = read_result(file)
            with as_bad_input(file, "content", "the result of a fold"):
                if match and content["epochs"] >= epochs and content["protocol"] == protocol:
                    number = int(match[1])
                    results.append(FoldResult.from_json(dataset, number, file.parent, content))
    return sorted(results, key=lambda result: result.fold or 0)


def _fold_folders(out: Path) -> list[Path]:
    """Return the folds of a run, of one data set or several, and none of other runs inside it."""
    patterns = ("fold[0-9]*", ALL)
    inside = [
        path
        for pattern in patterns
        for path in out.glob(f"*/{pattern}")
        if not (path.parent / "run.json").exists()
    ]
    return [*(path for pattern in patterns for path in out.glob(pattern)), *inside]
