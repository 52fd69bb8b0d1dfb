"""SIGKILL at any moment, of every command: the same command again gives the same result.

The kills of a command follow each other on one folder, so that resumed work is killed too, until
one run is left in peace.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from fault_commands import COMMANDS, Trials, check_files, errors, is_leftover

from stflow_graph.io.temporaries import sweep_stale

NAMES = ("simulate", "prepare", "embed", "train", "sample", "eval", "convert")
_MAX_IN_A_ROW = 3


def timeless(path: Path) -> str | None:
    """Return the hash of a file of a run without what depends on the time, None if all does."""
    if path.name == "result.json":
        content = json.loads(path.read_text())
        del content["content_sha256"]
        for record in content["best"]:
            del record["seconds"]
        text = json.dumps(content)
    elif path.name == "history.csv":
        with path.open() as file:
            text = repr([{**row, "seconds": ""} for row in csv.DictReader(file)])
    elif re.search(r"tensorboard/|state-.*safetensors$", str(path)):
        return None
    else:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return hashlib.sha256(text.encode()).hexdigest()


def contents(trials: Trials) -> dict[str, str | None]:
    files = sorted(path for path in trials.out.rglob("*") if path.is_file())
    return {
        str(path.relative_to(trials.out)): timeless(path)
        for path in files
        if "tensorboard" not in path.parts  # each start of a run begins a log
    }


def hidden(folder: Path) -> list[Path]:
    """Return unfinished files and locks."""
    return [path for path in folder.rglob(".*") if is_leftover(path.name)]


def check_ended(trials: Trials, name: str, found: dict[str, Any], new: dict[str, str]) -> None:
    """Check the answer of a command that was left in peace."""
    if name == "simulate" and found["code"] == 3:  # the kill came after its work was done
        assert trials.files() == new
        assert re.search(r"expected an empty or new folder.*--overwrite", found["error"])
    else:
        assert (found["code"], errors(found)) == (0, []), found


def kill_some(trials: Trials, name: str, n: int) -> dict[str, Any]:
    """Kill a command n times at random moments; return what was counted."""
    command, draw = COMMANDS[name], random.Random(name)
    trials.reset(command)
    old = trials.files()
    trials.run(command)
    trials.reset(command)
    reference = trials.run(command)  # the first one reads its files from the disk
    assert (reference["code"], errors(reference)) == (0, [])
    new, all_new, seconds = trials.files(), contents(trials), reference["seconds"]
    assert not hidden(trials.out)
    n_kills = n_ended = n_changed = 0
    while n_kills < n:
        trials.reset(command)
        for _ in range(draw.randint(1, _MAX_IN_A_ROW)):
            found = trials.run(command, kill_after=draw.uniform(0, 1.05 * seconds))
            if found["code"] == -signal.SIGKILL:
                n_kills += 1
            else:
                n_ended += 1
                check_ended(trials, name, found, new)
            check_files(trials, "kill", old, new)
        n_changed += trials.files() != new
        check_ended(trials, name, trials.run(command), new)
        # a command that has nothing left to write leaves this to the next one
        for folder in {path.parent for path in hidden(trials.out)}:
            sweep_stale(folder)
        assert contents(trials) == all_new, n_kills
        assert not hidden(trials.out), n_kills
    return {"kills": n_kills, "ended before": n_ended, "unfinished": n_changed, "seconds": seconds}


@pytest.mark.parametrize("name", NAMES)
def test_a_few_kills(trials, name):
    assert kill_some(trials, name, 5)["kills"] >= 5


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", NAMES)
def test_a_hundred_kills(trials, name, record_property):
    counted = kill_some(trials, name, int(os.environ.get("STFLOW_KILLS", "100")))
    for key, value in counted.items():
        record_property(key, value)
    assert counted["unfinished"] > 0
