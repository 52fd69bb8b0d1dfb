"""How near the default local layer comes to the bandwidth of the memory.

usage: python benchmarks/layer.py [--spots 100000] [--repeats 20] [--threads 2] [--device cpu]
           [--out OUT] [--quick]

``AdditiveConv`` (128 channels, 4 heads, 50 genes, float32, k = 8) on one slide: time of a forward
pass, and of a forward and a backward pass. Whatever the implementation, each must read its inputs
and write its outputs once: states, expression, edges with their geometry and weights; the backward
pass reads them and the gradient of the output, and writes the gradients of states and expression.
Keys and values are of neighbours, though, and a cache that holds none of them reads two rows for
every edge: the second number of bytes. The bandwidth is that of a large copy, bytes read and
written, measured in the same run; the share is the bytes over the time, of that bandwidth.

On a GPU with Triton the layer runs by its fused kernels, with either precision of their matrix
products, and by PyG's operators. Below the table are the kernels (on a CPU: operators) that take
most of the time of a forward and a backward pass.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import N_GENES, SIZE, TINY, K, synthetic_slide
from rich.console import Console
from rich.table import Table
from speed import machine, seconds
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from stflow_graph.graph import SpatialGraph, kernels
from stflow_graph.graph.whole import WholeGraph
from stflow_graph.nn.conv import AdditiveConv, fused

_FLOAT, _INDEX = 4, 8  # bytes
_COPIED = {"cuda": 2**30, "cpu": 2**28}
_PROFILED, _TOP = 3, 5  # passes, kernels
PYG = "PyG's operators"


def median(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the median seconds of some work after three runs that do not count."""
    for _ in range(3):
        work()
    return float(np.median([seconds(work, device) for _ in range(repeats)]))


def copy_bandwidth(device: torch.device, n_bytes: int) -> float:
    """Return the bytes that a copy reads and writes in a second."""
    source = torch.zeros(n_bytes // _FLOAT, device=device)
    target = torch.ones_like(source)
    return 2 * n_bytes / median(lambda: target.copy_(source), device, 10)


def bytes_moved(n_spots: int, n_edges: int, channels: int) -> dict[str, dict[str, int]]:
    """Return for each pass the bytes that it moves at least, and with a gather for every edge."""
    states, genes = _FLOAT * n_spots * channels, _FLOAT * n_spots * N_GENES
    # sender, geometry and weight of each edge, and where the edges of a spot start
    edges = n_edges * (_INDEX + 6 * _FLOAT + _FLOAT) + n_spots * _INDEX
    inputs, gather = states + genes + edges, 2 * _FLOAT * n_edges * channels
    forward = inputs + states
    both = forward + inputs + states + (states + genes)
    return {
        "forward": {"least": forward, "gathered": forward + gather},
        "forward and backward": {"least": both, "gathered": both + 2 * gather},
    }


def variants(device: torch.device) -> dict[str, tuple[str, str]]:
    """Return the ways to run the layer, the default first: the kernels' mode and precision.

    A CPU knows one way only.
    """
    if device.type == "cpu" or not kernels.is_available():
        return {PYG: ("off", fused.precision)}
    ways = {f"fused, {precision}": ("auto", precision) for precision in fused.PRECISIONS}
    return {**ways, PYG: ("off", fused.precision)}


def slowest(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Return the seconds a pass of the kernels that take most of its time, a CPU's operators."""
    activity = ProfilerActivity.CPU if device.type == "cpu" else ProfilerActivity.CUDA
    with profile(activities=[activity]) as profiler:
        for _ in range(_PROFILED):
            seconds(work, device)
    total: dict[str, float] = {}
    for event in profiler.key_averages():
        on_cpu = event.device_type == DeviceType.CPU
        if on_cpu == (device.type == "cpu"):
            took = event.self_cpu_time_total if on_cpu else event.self_device_time_total
            total[event.key] = total.get(event.key, 0.0) + took / 1e6 / _PROFILED
    return dict(sorted(total.items(), key=lambda item: -item[1])[:_TOP])


def short(kernel: str) -> str:
    """Return a kernel's name without what all of PyTorch's have in common, cut off."""
    for part in ("void ", "at::native::", "(anonymous namespace)::", "::<unnamed>"):
        kernel = kernel.replace(part, "")
    return kernel.replace("|", "/")[:70]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return bandwidth, and of each variant and pass seconds, bytes and share, and its kernels."""
    device, n = torch.device(options.device), 500 if options.quick else options.spots
    channels, heads = ((TINY if options.quick else SIZE)[k] for k in ("hidden_channels", "n_heads"))
    torch.manual_seed(0)
    layer = AdditiveConv(channels, N_GENES, heads).to(device)
    data = SpatialGraph(K)(synthetic_slide(n)).to(device)
    edges = WholeGraph.of(data).edges
    h = torch.randn(n, channels, device=device, requires_grad=True)
    y = torch.randn(n, N_GENES, device=device, requires_grad=True)
    learned = [h, y, *layer.parameters()]

    def forward() -> None:
        with torch.no_grad():
            layer(h, y, *edges)

    def both() -> None:
        torch.autograd.grad(layer(h, y, *edges).sum(), learned)

    copied = 2**20 if options.quick else _COPIED[device.type]
    result: dict[str, Any] = {
        "machine": machine(device),
        "spots": n,
        "edges": data.edge_index.size(1),
        "bandwidth": copy_bandwidth(device, copied),
        "passes": {},
        "kernels": {},
    }
    least = bytes_moved(n, result["edges"], channels)
    chosen = fused.precision
    for variant, (mode, precision) in variants(device).items():
        fused.precision = precision
        with kernels.using(mode):
            for (name, moved), work in zip(least.items(), (forward, both), strict=True):
                took = median(work, device, 2 if options.quick else options.repeats)
                shares = {
                    f"share, {kind}": value / took / result["bandwidth"]
                    for kind, value in moved.items()
                }
                row = {"seconds": took, **moved, **shares}
                result["passes"][f"{name}, {variant}"] = row
            result["kernels"][variant] = slowest(both, device)
    fused.precision = chosen
    return result


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spots", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="a small slide, to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = measure(options)
    table = Table("", "ms", "MB at least", "of bandwidth", "MB gathered", "of bandwidth")
    for name, row in result["passes"].items():
        cells = [f"{1e3 * row['seconds']:.2f}"]
        for kind in ("least", "gathered"):
            cells += [f"{row[kind] / 1e6:,.0f}", f"{row[f'share, {kind}']:.1%}"]
        table.add_row(name, *cells)
    console = Console(width=120)
    console.print(table)
    kernels = Table("", "kernel", "ms", "of the pass")
    for variant, times in result["kernels"].items():
        whole = result["passes"][f"forward and backward, {variant}"]["seconds"]
        for name, took in times.items():
            kernels.add_row(variant, short(name), f"{1e3 * took:.2f}", f"{took / whole:.0%}")
    console.print(kernels, markup=False)
    console.print(
        f"{result['spots']:,} spots, {result['edges']:,} edges; a copy moves "
        f"{result['bandwidth'] / 1e9:,.0f} GB/s; {result['machine']}",
        highlight=False,
    )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "layer.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
