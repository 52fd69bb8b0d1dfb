"""Ranks that are killed at random moments: the others end, and the same command completes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from ranks import TESTS


def trials(cohort, out, seed: int, n: int, *words: str) -> list[dict]:
    found = subprocess.run(
        [sys.executable, "-m", "rank_trials", cohort.root.parent, out, str(seed), str(n), *words],
        capture_output=True,
        text=True,
        cwd=TESTS,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=100 * n,
    )
    assert found.returncode == 0, found.stderr
    return [json.loads(line) for line in found.stdout.splitlines()]


def check(found: list[dict], n: int, seconds: float) -> None:
    assert len(found) == n
    for trial in found:
        assert 99 not in trial["codes"], f"a rank hangs: {trial}"
        assert trial["lived"] < seconds, trial
        assert trial["after"] == [0] * trial["n"], trial
        assert trial["same"], f"another result than that of an undisturbed run: {trial}"
        assert trial["files"] >= 2
    # the trials are worth something: some ranks were killed in the middle
    assert any(-9 in trial["codes"] for trial in found)


def test_no_rank_hangs_and_a_run_again_completes(cohort, tmp_path):
    check(trials(cohort, tmp_path / "out", 1, 3), 3, 30)


@pytest.mark.slow
def test_fifty_kills(cohort, tmp_path):
    check(trials(cohort, tmp_path / "out", 0, 50), 50, 30)


@pytest.mark.slow
def test_the_others_end_within_a_minute(cohort, tmp_path):
    check(trials(cohort, tmp_path / "out", 4, 3, "--patient"), 3, 60)
