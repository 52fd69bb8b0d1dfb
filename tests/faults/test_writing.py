"""Whichever write fails, of every command: the right answer, and nothing lost or damaged."""

from __future__ import annotations

import errno
import os
import time
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from fault_commands import COMMANDS, NAMES, Trials, check_files, errors

from stflow_graph.io.temporaries import sweep_stale

FAIL, SHORT, KILL = 1, 2, 3
OPEN, WRITE, SYNC, RENAME, CLOSE, MAKE = 1, 2, 4, 8, 16, 32
FAULTS = {
    "EIO": {"kind": FAIL, "number": errno.EIO, "calls": 63},
    "ENOSPC": {"kind": FAIL, "number": errno.ENOSPC, "calls": 63},
    # from the n-th on nothing more can be stored
    "full": {"kind": FAIL, "number": errno.ENOSPC, "calls": OPEN | WRITE | MAKE, "for_ever": 1},
    "short": {"kind": SHORT, "calls": WRITE},
    "kill": {"kind": KILL, "calls": 63},
}


def check_answer(trials: Trials, kind: str, found: dict[str, Any]) -> None:
    """Check what a user and a script see of a fault."""
    if kind == "short":
        assert (found["code"], errors(found)) == (0, []), found
    elif kind == "kill":
        assert found["code"] == -9, found
    else:
        assert found["code"] == 74, found
        (line,) = errors(found)
        assert line.startswith(f"error: {trials.out}/"), line
        assert "cannot write: " in line
        assert str(trials.inputs) not in line
        assert ".stflow-" not in line


def fail_some(
    trials: Trials, name: str, kind: str, choose: Callable[[int], Iterable[int]] = lambda n: ()
) -> int:
    """Fail operations one at a time, and run the command again; return the number of trials.

    Args:
        trials: runs them.
        name: of the command.
        kind: of the fault.
        choose: which of n operations to fail, numbered from 1.
    """
    command, fault, n_trials = COMMANDS[name], FAULTS[kind], 0
    trials.reset(command)
    old = trials.files()
    reference = trials.run(command, **fault, when=2**30)  # it counts, and nothing fails
    assert (reference["code"], errors(reference), reference["fired"]) == (0, [], 0)
    new = trials.files()
    assert new != old
    for when in choose(reference["count"]):
        trials.reset(command)
        found = trials.run(command, **fault, when=when) | {"when": when}
        if not found["fired"]:  # logs are flushed by time
            continue
        n_trials += 1
        check_answer(trials, kind, found)
        check_files(trials, kind, old, new)
        if kind == "short":  # it goes on with the rest, and is done
            assert trials.files() == new, when
            continue
        again = trials.run(command)
        assert (again["code"], errors(again)) == (0, []), (when, again)
        if kind == "kill":  # a command that has nothing left to write leaves this to the next one
            for folder in [path.parent for path in trials.out.rglob(".*.stflow-*")]:
                sweep_stale(folder)
        assert trials.files() == new, when
        assert not list(trials.out.rglob(".*.stflow-*")), when
    return n_trials


# every operation of commands that have few; of these, one of so many
STRIDES = {"simulate": 11, "simulate again": 11, "prepare": 5, "train": 7}
STRIDES |= {"predict": 5, "predict again": 5}


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("name", NAMES)
def test_whichever_operation_fails(trials, name, kind, capsys):
    stride = int(os.environ.get("STFLOW_FAULT_STRIDE", STRIDES.get(name, 1)))
    began = time.perf_counter()
    n_trials = fail_some(trials, name, kind, lambda n: range(1, n + 1, stride))
    with capsys.disabled():
        print(f"\n{name}, {kind}: {n_trials} trials, {time.perf_counter() - began:.0f} s")
    assert n_trials > 0


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.values[0] not in ("simulate again", "export csv")]
)
def test_an_operation_in_the_middle_fails(trials, name):
    assert fail_some(trials, name, "EIO", lambda n: [1 + zlib.crc32(name.encode()) % n]) == 1


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_at_the_first_and_last_operations(trials, kind):
    assert fail_some(trials, "split again", kind, lambda n: [1, n - 1, n]) == 3
