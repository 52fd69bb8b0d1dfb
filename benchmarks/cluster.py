"""How commands scale with processes, and what that makes of a cluster.

usage: python benchmarks/cluster.py measure --out OUT [--slides 8] [--spots 900] [--epochs 20]
       python benchmarks/cluster.py project --out OUT

``measure`` runs embed, sample and train on a simulated cohort by one and by two processes of one
thread each (run it with nothing else on the cores), and the steps of one network by one process
with one region and by two with two. Seconds are wall time of whole commands, less those of the same
command when all is up to date: starting and reading. Writes OUT/measured.json and prints a table.

``project`` simulates the sharing out of slides and members, event by event: ranks take the largest
slide that is left; each slide needs compute of its rank and bytes of a file system that all share.
It first repeats the measured two points, then shows cohorts and clusters. Assumptions are the
constants below.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

ENCODER = "efficientnet_lite0"
# HEST-1k: 1,229 slides with 2.1 million spots (Jaume et al. 2024), sizes taken as lognormal
MEAN_SPOTS, SPREAD = 2.1e6 / 1229, 0.8
PATCH_BYTES, CHANNELS = 95e3, 1280
BANDWIDTHS = {"NFS": 0.5e9, "Lustre": 10e9}  # bytes per second for all ranks together
START = 20.0  # seconds until a rank begins
GPU_PATCHES = 2000.0  # patches per second of one GPU and its readers, for a large encoder
GPU_SPOTS = 50_000.0  # spots per second of sampling, 16 samples
GPU_STEP = 0.03  # seconds of a step of one region of 2,000 spots
LATENCY, LINK = 50e-6, 10e9  # of a message between ranks; bytes per second
NETWORK_BYTES = 8e6  # of a network's gradients


@dataclasses.dataclass
class Task:
    """A slide in work: seconds of compute and bytes that are left."""

    seconds: float
    n_bytes: float


def share_out(tasks: Sequence[Task], n_ranks: int, bandwidth: float, start: float) -> float:
    """Return the seconds until the last task is done.

    Each rank takes the next task when it is free; compute and reading go on side by side, and the
    bandwidth is shared by the ranks that read.
    """
    waiting = [dataclasses.replace(task) for task in tasks]
    waiting.sort(key=lambda task: -max(task.seconds, task.n_bytes / bandwidth))
    waiting.reverse()
    running = [waiting.pop() for _ in range(min(n_ranks, len(waiting)))]
    now = start
    while running:
        n_reading = sum(task.n_bytes > 0 for task in running)
        rate = bandwidth / max(n_reading, 1)
        step = min(
            min(left for left in (task.seconds, task.n_bytes / rate) if left > 0)
            for task in running
        )
        now += step
        for task in running:
            task.seconds = max(0.0, task.seconds - step)
            task.seconds = 0.0 if task.seconds < 1e-9 else task.seconds
            read = step * rate
            task.n_bytes = task.n_bytes - read if task.n_bytes > 1.000001 * read else 0.0
        done = [task for task in running if not task.seconds and not task.n_bytes]
        running = [task for task in running if task.seconds or task.n_bytes]
        running += [waiting.pop() for _ in range(min(len(done), len(waiting)))]
    return now


def in_order(seconds: Sequence[float], n_ranks: int) -> float:
    """Return the seconds of tasks that ranks take in their order, such as members of folds."""
    free = [0.0] * n_ranks
    for each in seconds:
        heapq.heappush(free, heapq.heappop(free) + each)
    return max(free)


def run(*words: object, n: int = 1) -> float:
    """Run a command by n processes of one thread; return its seconds."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "stflow_graph_cli", *map(str, words)]
    command += ["--nproc", str(n)] if n > 1 else []
    subprocess.run(
        command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return time.perf_counter() - start


def timed(words: Sequence[object], out: Path, n: int) -> tuple[float, float]:
    """Return the seconds of a command's work, and of the same command with nothing to do."""
    words = [*words, "--out", out / f"{words[0]}{n}"]
    whole = run(*words, n=n)
    start = min(run(*words, n=n) for _ in range(2))
    return whole - start, start


def measure(options: argparse.Namespace) -> None:
    """Time all stages and print the table."""
    out = options.out
    root = out / "cohort"
    if not root.exists():
        run("simulate", root, "--slides", options.slides, "--spots", options.spots)
    files = sorted((root / "patches").glob("*.h5"))
    roots = ["--source-dataroot", root, "--embed-dataroot", out / "embeddings"]
    run("embed", *roots, "--encoder", ENCODER)
    embeddings = out / "embeddings" / root.name / ENCODER / "fp32"
    training = ["train", *roots, "--folds", 0, 1, "--epochs", options.epochs]
    training += ["--set", f"train.patience={options.epochs}"]
    measured: dict[str, object] = {
        "slides": options.slides,
        "spots": [options.spots] * options.slides,
    }
    rows = {
        "embed": ["embed", *files, "--encoder", ENCODER],
        "train": training,
        "sample": ["sample", out / "train1", embeddings, "--n-samples", 64],
    }
    for name, words in rows.items():
        one, start = timed(words, out, 1)
        two, start_of_two = timed(words, out, 2)
        measured[name] = {"one": one, "two": two, "start": start, "start of two": start_of_two}
        print(
            f"{name}: {one:.1f} s by one process, {two:.1f} s by two: {one / two:.2f}x; "
            f"start {start:.1f} and {start_of_two:.1f} s",
            flush=True,
        )
    steps = {n: json.loads(_steps(out, n, options.spots)) for n in (1, 2)}
    overhead = steps[2]["step"] / steps[1]["step"] - 1
    measured["steps"] = {**{str(n): each for n, each in steps.items()}, "overhead": overhead}
    print(
        f"a step of one region by one process {1e3 * steps[1]['step']:.1f} ms, of two by two "
        f"{1e3 * steps[2]['step']:.1f} ms: {overhead:+.0%}"
    )
    (out / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")


def _steps(out: Path, n: int, n_spots: int) -> str:
    """Return what ``steps`` of n ranks prints: seconds of a step."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(n), __file__, "steps", "--out", str(out)]
    found = subprocess.run(
        [*command, "--spots", str(n_spots)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return next(line for line in found.stdout.splitlines() if line.startswith("{"))


def steps(options: argparse.Namespace) -> None:
    """Time epochs of one network, a region for each rank."""
    import torch

    from stflow_graph.config import load_config
    from stflow_graph.data.normalise import Normalisation
    from stflow_graph.data.slide import Slide
    from stflow_graph.inference.inputs import slide_data, slide_inputs
    from stflow_graph.models.build import build_context, build_denoiser
    from stflow_graph.parallel.group import make_groups
    from stflow_graph.parallel.ranks import join
    from stflow_graph.training.loop import fit

    torch.set_num_threads(1)
    ranks, cpu = join(), torch.device("cpu")
    group = make_groups(ranks, ranks.size, cpu) if ranks else None
    n = ranks.size if ranks else 1
    settings = {"data.source_dataroot": "x", "data.embed_dataroot": "x", "train.epochs": 12}
    settings |= {"train.batch_size": n, "denoiser.input_dropout": 0.5, "train.patience": 99}
    config = load_config(None, settings)
    rng = np.random.default_rng(0)
    side = int(np.ceil(np.sqrt(options.spots)))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
    slides = []
    for number in range(2 * n + 1):
        x = rng.normal(size=(options.spots, CHANNELS)).astype(np.float32)
        y = rng.normal(size=(options.spots, 50)).astype(np.float32)
        names = [str(i) for i in range(options.spots)]
        slides.append(Slide(str(number), x, 100.0 * grid[: options.spots], names, y))
    xs, ys = [slide.x for slide in slides], [slide.truth for slide in slides]
    scaling = Normalisation.fit(xs, ys, config.data.standardize, config.data.center_targets)
    context = build_context(config)
    data = [context(slide_data(slide, config, scaling)) for slide in slides]
    small = slides[-1].take(np.arange(60))
    held_out = [slide_inputs(small, context(slide_data(small, config, scaling)), cpu)]
    network = build_denoiser(config, CHANNELS, 50)
    rank = ranks.rank if ranks else 0
    state = options.out / f"steps-{n}-{time.time_ns()}-{rank}"
    fitted = fit(
        network, data[:-1], held_out, config, scaling, stream=0, state_file=state, group=group
    )
    state.unlink(missing_ok=True)
    if rank == 0:
        seconds = sorted(record.seconds for record in fitted.history)
        print(json.dumps({"step": seconds[len(seconds) // 2] / 2}), flush=True)


def hest(n: int, seed: int = 0) -> np.ndarray:
    """Return spots of so many slides."""
    rng = np.random.default_rng(seed)
    spots: np.ndarray = rng.lognormal(np.log(MEAN_SPOTS) - SPREAD**2 / 2, SPREAD, n).clip(50)
    return spots


def check(measured: dict[str, dict[str, float]], spots: Sequence[float]) -> Iterator[str]:
    """Yield, of stages that share slides, what two processes take as simulated and as measured."""
    for name in ("embed", "sample"):
        one = measured[name]["one"]
        cost = one / sum(spots)
        simulated = share_out([Task(cost * n, 0) for n in spots], 2, 1e12, 0)
        yield _both(name, simulated, measured[name]["two"])
    simulated = in_order([measured["train"]["one"] / 8] * 8, 2)
    yield _both("train", simulated, measured["train"]["two"])


def _both(name: str, simulated: float, measured: float) -> str:
    return f"{name}: two processes {simulated:.1f} s simulated, {measured:.1f} s measured"


def project(options: argparse.Namespace) -> None:
    """Print what is projected."""
    measured = json.loads((options.out / "measured.json").read_text())
    print(*check(measured, measured["spots"]), sep="\n")
    for n_slides in (1229, 10_000):
        spots = hest(n_slides)
        for system, bandwidth in BANDWIDTHS.items():
            for stage in ("embed", "sample"):
                rate = GPU_PATCHES if stage == "embed" else GPU_SPOTS
                size = PATCH_BYTES if stage == "embed" else 4.0 * CHANNELS
                tasks = [Task(n / rate, n * size) for n in spots]
                times = [share_out(tasks, n, bandwidth, START) for n in (1, 8, 64)]
                shown = ", ".join(f"{seconds / 3600:.2f} h" for seconds in times)
                print(f"{stage}, {n_slides} slides, {system}: {shown} by 1, 8, 64 GPUs")
        epochs, folds, members = 60, 5, 4
        step = GPU_STEP * n_slides * 0.8 * epochs
        reading = CHANNELS * 4 * spots.sum() * 0.8 * epochs / BANDWIDTHS["Lustre"]
        for n in (1, 4, 20, 64):
            one = max(step, reading * min(n, folds * members))
            alone = in_order([one] * folds * members, min(n, folds * members))
            group = max(1, n // (folds * members))
            sent = LATENCY * 2 + 2 * NETWORK_BYTES / LINK
            shared = alone / group + (sent * n_slides * 0.8 * epochs / group if group > 1 else 0)
            work = f"{n_slides} slides, {folds} folds x {members}"
            print(f"train, {work}: {shared / 3600:.1f} h by {n} GPUs")


def main() -> None:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["measure", "project", "steps"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--slides", type=int, default=8)
    parser.add_argument("--spots", type=int, default=900)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    {"measure": measure, "project": project, "steps": steps}[options.part](options)


if __name__ == "__main__":
    main()
