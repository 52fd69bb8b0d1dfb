"""What global attention costs as a slide grows: seconds against spots, and their fit.

usage: python benchmarks/global_cost.py [--sizes 3000 10000 30000 100000] [--threads 2]
           [--device cpu] [--out OUT] [--quick]

Forward passes of one layer (128 channels, 4 heads, float32, eval mode), the kinds taking turns,
median of --repeats. The exponent is that of a line through the logarithms: 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch_geometric.nn.attention import PolynormerAttention

from stflow_graph.nn.global_attention import LatentAttention, PyGAttention

CHANNELS = 128
LAYERS = {"latent": LatentAttention, "polynormer": partial(PyGAttention, PolynormerAttention)}


def seconds(layer: nn.Module, n: int, device: str) -> float:
    """Return the time of one forward pass over a slide of n spots."""
    x = torch.randn(n, CHANNELS, device=device)
    batch = torch.zeros(n, dtype=torch.long, device=device)
    if x.is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    layer(x, batch, 1)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


@torch.inference_mode()
def measure(sizes: list[int], repeats: int, device: str) -> dict[str, list[float]]:
    """Return the median time of every kind at every size."""
    layers = {kind: make(CHANNELS).eval().to(device) for kind, make in LAYERS.items()}
    times = {kind: np.empty((repeats, len(sizes))) for kind in layers}
    for layer in layers.values():
        for n in sizes:
            seconds(layer, n, device)
    for repeat in range(repeats):
        for column, n in enumerate(sizes):
            for kind, layer in layers.items():
                times[kind][repeat, column] = seconds(layer, n, device)
    return {kind: np.median(each, axis=0).tolist() for kind, each in times.items()}


def exponent(sizes: list[int], times: list[float]) -> float:
    """Return the slope of log time against log size."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def draw(sizes: list[int], found: dict[str, list[float]], file: Path) -> None:
    """Draw times against sizes, with a line of slope 1 for the eye."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.6), layout="constrained")
    for kind, times in found.items():
        axis.loglog(sizes, times, "o-", label=f"{kind}: exponent {exponent(sizes, times):.2f}")
    first = next(iter(found.values()))[0]
    axis.loglog(sizes, [first * n / sizes[0] for n in sizes], ":", color="0.5", label="linear")
    axis.set(xlabel="spots", ylabel="seconds a forward pass", title="global attention of one block")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[3000, 10000, 30000, 100000])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes, repeats = ([300, 1000], 2) if options.quick else (options.sizes, options.repeats)
    found = measure(sizes, repeats, options.device)
    title = f"milliseconds, {options.threads} threads, {options.device}, torch {torch.__version__}"
    table = Table("spots", *found, title=title)
    for n, *row in zip(sizes, *found.values(), strict=True):
        table.add_row(f"{n:,}", *(f"{1e3 * value:.1f}" for value in row))
    table.add_section()
    table.add_row("exponent", *(f"{exponent(sizes, times):.2f}" for times in found.values()))
    Console().print(table)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        on_gpu = torch.device(options.device).type == "cuda"
        machine = torch.cuda.get_device_name() if on_gpu else platform.processor()
        content = {"sizes": sizes, "seconds": found, "machine": machine}
        text = json.dumps(content, indent=1)
        (options.out / "global_cost.json").write_text(text, encoding="utf-8")
        draw(sizes, found, options.out / "global_cost.png")


if __name__ == "__main__":
    main()
