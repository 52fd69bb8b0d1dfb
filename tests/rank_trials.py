"""Runs of ``train`` by ranks of which one is killed: ``python -m rank_trials COHORT OUT SEED N``.

Prints a JSON line for each trial. Ranks are forked, so that a trial takes two seconds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch
from ranks import free_port
from toy import Cohort

from stflow_graph.config import load_config
from stflow_graph.errors import StflowError
from stflow_graph.io.atomic import sha256
from stflow_graph.parallel import ranks as module
from stflow_graph.parallel.ranks import join
from stflow_graph.stages.train import train

FORK = multiprocessing.get_context("fork")
# by members of folds, and by the steps of one member
WORK: dict[str, dict[str, Any]] = {
    "members": {"train.folds": [0, 1, 2], "train.members": 2},
    "steps": {"train.folds": "all", "train.batch_size": 4, "train.regions_per_slide": 4},
}
FAILED, HANGS = 9, 99


def rank(i: int, n: int, port: int, cohort: Cohort, out: Path, changes: dict[str, Any]) -> None:
    """Train as one of the ranks; the process ends with an error's exit code."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(i), "WORLD_SIZE": str(n), "LOCAL_RANK": str(i)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = 0
    try:
        train(load_config(None, {**cohort.settings, **changes}), out, ranks=join())
    except StflowError as error:
        print(f"rank {i}: {error}", file=sys.stderr, flush=True)
        code = FAILED
    os._exit(code)


def run(
    n: int,
    cohort: Cohort,
    out: Path,
    changes: dict[str, Any],
    victim: int | None = None,
    seconds: float = 0,
) -> tuple[list[int], float]:
    """Return the exit codes of n ranks, and how long the others live on after one is killed."""
    port = free_port()
    arguments = [(i, n, port, cohort, out, changes) for i in range(n)]
    processes = [FORK.Process(target=rank, args=each) for each in arguments]
    for process in processes:
        process.start()
    if victim is not None:
        time.sleep(seconds)
        os.kill(processes[victim].pid, signal.SIGKILL)
    killed = time.monotonic()
    for process in processes:
        process.join(max(0.0, 60 - (time.monotonic() - killed)))
    lived = time.monotonic() - killed
    hanging = [process for process in processes if process.exitcode is None]
    for process in hanging:
        process.kill()
        process.join()
    return [HANGS if p in hanging else p.exitcode for p in processes], lived


def files(out: Path) -> dict[str, str]:
    """Return hashes of what a run gives."""
    names = ("model.safetensors", "field.safetensors", "calibration.json")
    found = sorted(file for file in out.rglob("*") if file.name in names)
    return {str(file.relative_to(out)): sha256(file) for file in found}


def main() -> None:
    """Run the trials."""
    cohort, out = Cohort.of(Path(sys.argv[1])), Path(sys.argv[2])
    rng = random.Random(int(sys.argv[3]))
    if "--patient" not in sys.argv:
        module.BEAT, module.MAX_SILENCE, module.MAX_START = 0.2, 2.0, 5.0
        module._GRACE = 0.5
    whole: dict[tuple[str, int], Any] = {}
    for trial in range(int(sys.argv[4])):
        name, n = rng.choice([*WORK]), rng.choice([2, 3])
        if (name, n) not in whole:
            start = time.monotonic()
            codes, _ = run(n, cohort, out / f"{name}{n}", WORK[name])
            whole[name, n] = files(out / f"{name}{n}"), time.monotonic() - start
            assert codes == [0] * n, codes
        expected, duration = whole[name, n]
        folder, victim = out / f"trial{trial}", rng.randrange(n)
        seconds = rng.uniform(0, 1.1) * duration
        codes, lived = run(n, cohort, folder, WORK[name], victim, seconds)
        after, _ = run(n, cohort, folder, WORK[name])
        found = {"work": name, "n": n, "victim": victim, "codes": codes, "lived": lived}
        found |= {"after": after, "same": files(folder) == expected, "files": len(expected)}
        print(json.dumps(found | {"share": seconds / duration}), flush=True)


if __name__ == "__main__":
    main()
