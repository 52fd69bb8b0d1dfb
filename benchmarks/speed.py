"""How much faster than the transformer denoiser: graph, call, step, sampling, training step.

usage: python benchmarks/speed.py --out OUT [--sizes 1000 3000 10000 30000 100000] [--repeats 5]
           [--denoisers "graph, default" ...]
           [--steps 5] [--threads 2] [--device cpu] [--compile] [--no-training]
           [--max-published 10000] [--precision float32] [--quick]

All denoisers of ``contenders.py`` take turns in one process, one size after the other; medians.
Sampling is the making of the graph and all network calls, --steps for every flow; a step is its
share of one call, a call is one that knows nothing of others. The default has no steps: its call
is the encoder's, its sampling that and a draw of the random field. The transformer
``as published`` makes distances of all pairs in every call and is left out beyond
--max-published spots. The floor is the time of the matrix products of the spots alone (190,000
multiply-adds a spot and block), as plain products in the same run. With --compile every model is
compiled with torch.compile and works on whole slides, as on a GPU. --precision is that of all
models: tf32 lets matrix products round, bf16 is autocast. On a GPU everything runs once
before it is timed, "device busy" is the share of training steps in which kernels run, and a step
that its memory does not hold is left out. Writes OUT/speed.json and .png; scaling.py fits how the
cost grows.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import (
    CONTENDERS,
    N_GENES,
    PUBLISHED,
    REFERENCE,
    SIZE,
    STEPS,
    TINY,
    FieldDenoiser,
    call,
    draw_costs,
    sample,
    synthetic_slide,
    training_step,
)
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch_geometric.data import Data

from stflow_graph.flow.sampler import Model
from stflow_graph.graph.tiles import GraphView
from stflow_graph.nn.two_stage import TwoStageDenoiser

WHAT = ("graph", "first call", "call", "step", "sampling", "training step")
FLOOR = "floor of a call"
BUSY = "device busy"
_BUSY_STEPS = 10
_FLOOR_PRODUCTS = 190_000


class Unbound:
    """A compiled denoiser, bound to a slide without computing anything beforehand."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def bind(self, data: Data, view: GraphView | None = None) -> Model:
        """Return the denoiser as samplers take it."""
        return lambda y_t, t: self.model(y_t, t, data)


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Return the seconds that some work takes until its result is ready, and the result."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, result


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds that some work takes until its result is ready."""
    return timed(work, device)[0]


class Runner:
    """One denoiser on one slide."""

    def __init__(self, name: str, n: int, options: argparse.Namespace) -> None:
        self.contender = CONTENDERS[name]
        self.device, self.steps = torch.device(options.device), options.steps
        torch.manual_seed(0)
        size = TINY if options.quick else SIZE
        self.model = self.contender.make(**size).to(self.device)
        self.called, self.sampled = self.model, self.model
        if options.compiled:
            self.called = torch.compile(self.model)
            if isinstance(self.model, TwoStageDenoiser):
                self.model.encoder = torch.compile(self.model.encoder)
                if self.model.flow is not None:
                    self.model.flow = torch.compile(self.model.flow)
            else:
                self.sampled = Unbound(self.called)
        # tiles are made for a CPU's cache
        self.whole = options.compiled or self.device.type != "cpu"
        self.slide = synthetic_slide(n).to(self.device)
        with torch.inference_mode():  # as the steps of a sampler are: compiled once for all of them
            self.y = torch.randn(n, N_GENES, device=self.device)

    def prepare(self) -> tuple[Data, GraphView | None]:
        """Return the slide with its graph, and how sampling sees it."""
        data = self.contender.prepare(self.slide)
        return data, self.contender.view(data, whole=self.whole)

    def first_call(self) -> float:
        """Return the seconds of a call before which there was none."""
        self.model.eval()
        data, view = self.prepare()
        return seconds(lambda: call(self.called, data, self.y, view), self.device)

    def measure(self, training: bool) -> dict[str, float]:
        """Return the seconds of each part, once."""
        self.model.eval()
        found: dict[str, float] = {}
        found["graph"], (data, view) = timed(self.prepare, self.device)
        found["call"] = seconds(lambda: call(self.called, data, self.y, view), self.device)
        calls = seconds(lambda: sample(self.sampled, data, self.y, view, self.steps), self.device)
        if not isinstance(self.model, FieldDenoiser):
            found["step"] = calls / self.steps
        found["sampling"] = found["graph"] + calls
        if training:
            try:
                found["training step"] = seconds(self.training_step(), self.device)
            except torch.OutOfMemoryError:  # on a GPU, of the largest slides
                torch.cuda.empty_cache()
        return found

    def training_step(self) -> Callable[[], None]:
        """Return a training step on the slide, made ready."""
        self.model.train()
        learned = self.contender.prepare(self.slide, training=True)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        return lambda: training_step(self.called, optimizer, learned)

    def busy(self) -> float:
        """Return the share of several training steps in which the GPU computes."""
        step = self.training_step()
        step()

        def steps() -> None:
            for _ in range(_BUSY_STEPS):
                step()

        wall = seconds(steps, self.device)  # without the profiler, which slows the host down
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            seconds(steps, self.device)
        kernels = [
            (event.time_range.start, event.time_range.end)
            for event in profiler.events()
            # the optimiser's annotation spans the kernels of its step
            if event.device_type.name == "CUDA" and not event.name.startswith("Optimizer.")
        ]
        return union_length(kernels) / 1e6 / wall


def union_length(spans: list[tuple[float, float]]) -> float:
    """Return the length that spans cover together."""
    covered, reached = 0.0, -np.inf
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered


def floor(n: int, options: argparse.Namespace) -> float:
    """Return the seconds of the spots' matrix products in one call of four blocks."""
    size = TINY if options.quick else SIZE
    width = size["hidden_channels"]
    device = torch.device(options.device)
    x = torch.randn(n, width, device=device)
    weight = torch.randn(width, _FLOOR_PRODUCTS // width, device=device)

    def products() -> None:
        for _ in range(size["n_layers"]):
            x @ weight

    products()
    return float(np.median([seconds(products, device) for _ in range(options.repeats)]))


def measure(n: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return ``{denoiser: {part: median seconds}}`` at one size; the denoisers take turns."""
    runners = {}
    for name in CONTENDERS:
        beyond = name == PUBLISHED and n > options.max_published
        if beyond or name not in {REFERENCE, *options.denoisers}:
            continue
        runners[name] = Runner(name, n, options)
    training = options.training and n <= options.max_training
    table: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in runners}
    first = {name: runner.first_call() for name, runner in runners.items()}
    on_gpu = torch.device(options.device).type == "cuda"
    if on_gpu or options.compiled:  # the first run of each part loads libraries or compiles
        for runner in runners.values():
            runner.measure(training)
    for _ in range(options.repeats if n <= options.many else max(1, options.repeats // 2)):
        for name, runner in runners.items():
            for part, each in runner.measure(training).items():
                table[name][part].append(each)
    if on_gpu and training:
        for name, runner in runners.items():
            if "training step" in table[name]:
                table[name][BUSY] = [runner.busy()]
    return {
        name: {"first call": first[name], **{k: float(np.median(v)) for k, v in parts.items()}}
        for name, parts in table.items()
    }


def show(results: dict[int, dict[str, dict[str, float]]], floors: dict[int, float]) -> Table:
    """Return the table: seconds, and in brackets how many times faster than the reference."""
    with_busy = any(BUSY in parts for rows in results.values() for parts in rows.values())
    table = Table("spots", "", *WHAT, *[BUSY] * with_busy)
    for n, rows in results.items():
        for name, parts in rows.items():
            cells = []
            for part in WHAT:
                if part not in parts:
                    cells.append("")
                    continue
                times = rows[REFERENCE].get(part, np.nan) / parts[part]
                ratio = "" if name == REFERENCE or part == "graph" else f" ({times:.1f}x)"
                cells.append(f"{parts[part]:.3g}{ratio}")
            if BUSY in parts:
                cells.append(f"{parts[BUSY]:.0%}")
            table.add_row(f"{n:,}", name, *cells)
        row = ["", "", f"{floors[n]:.3g}", "", "", ""]
        table.add_row(f"{n:,}", FLOOR, *row, end_section=True)
    return table


def machine(device: torch.device) -> str:
    """Return what the figures were measured on, in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = lines[0].partition(":")[2].strip() if lines else cpu
    return f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    """Measure, print the table, write JSON and PNG."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    sizes = [1_000, 3_000, 10_000, 30_000, 100_000]
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes)
    names = list(CONTENDERS)
    parser.add_argument("--denoisers", nargs="*", default=names, choices=names)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS, help="network calls of a flow")
    parser.add_argument("--many", type=int, default=10_000, help="beyond, half the repeats")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", dest="compiled", action="store_true")
    parser.add_argument("--no-training", dest="training", action="store_false")
    parser.add_argument("--max-training", type=int, default=10_000)
    parser.add_argument("--max-published", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that it runs")
    parser.add_argument("--precision", choices=("float32", "tf32", "bf16"), default="float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.precision == "tf32":
        torch.set_float32_matmul_precision("high")
    console = Console(width=132)
    results: dict[int, dict[str, dict[str, float]]] = {}
    floors: dict[int, float] = {}
    device, low = torch.device(options.device), options.precision == "bf16"
    for n in options.sizes:
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            results[n], floors[n] = measure(n, options), floor(n, options)
        write(results, floors, options)  # the largest sizes take long: what is done is kept
        console.print(f"{n:,} spots done", style="dim")
    console.print(show(results, floors))
    of_flow = f"{options.steps} network calls a sample of a flow; {options.precision}"
    console.print(f"{of_flow}; {machine(torch.device(options.device))}", highlight=False)
    console.print(f"{options.out / 'speed.json'} and .png written")


def write(
    results: dict[int, dict[str, dict[str, float]]],
    floors: dict[int, float],
    options: argparse.Namespace,
) -> None:
    """Write JSON and PNG."""
    options.out.mkdir(parents=True, exist_ok=True)
    found = {
        "machine": machine(torch.device(options.device)),
        "compiled": options.compiled,
        "precision": options.precision,
        "steps": options.steps,
        "seconds": results,
        "floor": floors,
    }
    (options.out / "speed.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    drawn = {
        part: {
            name: {n: rows[name][part] for n, rows in results.items() if part in rows.get(name, {})}
            for name in CONTENDERS
        }
        for part in ("sampling", "training step")
    }
    draw_costs(drawn, "seconds", options.out / "speed.png")


if __name__ == "__main__":
    main()
