"""How much memory a slide takes: peak above the process that holds the slide and the model.

usage: python benchmarks/memory.py --out OUT [--sizes 1000 3000 10000] [--streamed 100000 1000000]
           [--denoisers "graph, default" ...] [--genes 50] [--members 4] [--threads 2]
           [--device cpu] [--quick]

First table: every denoiser of ``contenders.py``, each cell in a process of its own, sampling and
one training step (resident memory on the CPU, allocated on a GPU). Second table: `stflow-graph
sample` on slides of --streamed spots and 1024 channels that are written to OUT first, the default
configuration with --members members and random weights, and the process's whole peak and time.
Writes OUT/memory.json and, of the first, .png.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import (
    CONTENDERS,
    IN_CHANNELS,
    N_GENES,
    PUBLISHED,
    REFERENCE,
    SIZE,
    TINY,
    draw_costs,
    sample,
    synthetic_slide,
    training_step,
)
from rich.console import Console
from rich.table import Table

from stflow_graph.config import load_config
from stflow_graph.data.normalise import Normalisation
from stflow_graph.io.embeddings import write_embeddings
from stflow_graph.models.build import build_denoiser
from stflow_graph.models.checkpoint import Checkpoint, save_checkpoint
from stflow_graph.nn.pretrained import join_weights

PARTS = ("sampling", "training step")
_KIB = 1024  # ru_maxrss is in KiB on Linux


def peak(device: torch.device) -> int:
    """Return the most bytes so far: resident on the CPU, allocated on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB


def run_cell(name: str, n: int, part: str, options: argparse.Namespace) -> int:
    """Return the bytes that sampling or a training step takes above what was there before."""
    device, contender = torch.device(options.device), CONTENDERS[name]
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = contender.make(**(TINY if options.quick else SIZE)).to(device)
    small = synthetic_slide(50).to(device)
    sample(model.eval(), contender.prepare(small), small.y, None, 1)  # libraries take memory once
    slide = synthetic_slide(n).to(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = peak(device)
    if part == "sampling":
        data = contender.prepare(slide)
        sample(model, data, torch.randn_like(slide.y), contender.view(data))
    else:
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4)
        data = contender.prepare(slide, training=True)
        training_step(model, optimizer, data)
    return peak(device) - before


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return ``{part: {denoiser: {spots: bytes}}}``, each from a new process."""
    names = [name for name in CONTENDERS if name in {REFERENCE, *options.denoisers}]
    found: dict[str, Any] = {part: {name: {} for name in names} for part in PARTS}
    for n in options.sizes:
        for name in names:
            if name == PUBLISHED and n > options.max_published:
                continue
            for part in PARTS:
                command = [sys.executable, __file__, "--out", options.out, "--cell", name, n, part]
                command += ["--threads", options.threads, "--device", options.device]
                command += ["--quick"] * options.quick
                done = subprocess.run(
                    [str(word) for word in command], capture_output=True, text=True, check=True
                )
                found[part][name][n] = int(done.stdout.split()[-1])
    return found


def write_slide(path: Path, n: int) -> None:
    """Write a slide's random embeddings, block by block."""
    side = int(np.ceil(np.sqrt(n)))
    rows = np.arange(n)
    i, j = rows // side, rows % side
    jitter = np.random.default_rng(0).normal(0, 10, (n, 2))
    pos = np.stack([100 * i + 50 * (j % 2), 50 * np.sqrt(3) * j], 1) + jitter
    barcodes = [f"{a}x{b}" for a, b in zip(i.tolist(), j.tolist(), strict=True)]
    attrs = {"encoder": "random", "um_per_px": 0.5, "convention": "centre"}
    rng = np.random.default_rng(0)
    with write_embeddings(path, barcodes, pos, IN_CHANNELS, attrs) as writer:
        for start in range(0, n, 4096):
            size = (min(4096, n - start), IN_CHANNELS)
            writer.append(rng.standard_normal(size, dtype=np.float32))


def write_checkpoint(folder: Path, options: argparse.Namespace) -> None:
    """Write the default denoiser with random weights."""
    n_genes = options.genes
    roots = {"data.source_dataroot": "none", "data.embed_dataroot": "none"}
    config = load_config(None, {**roots, "data.encoder": "random", "denoiser.input_dropout": 0.5})
    torch.manual_seed(0)
    members = [build_denoiser(config, IN_CHANNELS, n_genes) for _ in range(options.members)]
    zeros, level = np.zeros(IN_CHANNELS, np.float32), np.zeros(n_genes, np.float32)
    save_checkpoint(
        folder,
        Checkpoint(
            config,
            [f"G{i}" for i in range(n_genes)],
            IN_CHANNELS,
            Normalisation("center", True, zeros, zeros + 1, level),
            join_weights(members),
            {"dataset": "random"},
            options.members,
        ),
    )


def streamed(n: int, options: argparse.Namespace) -> dict[str, float]:
    """Return seconds and peak bytes of `stflow-graph sample` on a slide of n spots."""
    slide, run = options.out / f"slide{n}.h5", options.out / f"run-{options.genes}-genes"
    if not slide.exists():
        write_slide(slide, n)
    write_checkpoint(run, options)
    command = [sys.executable, "-m", "stflow_graph_cli", "sample", run, slide]
    command += ["--out", options.out / "predictions", "--device", options.device, "--overwrite"]
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        env={**os.environ, "OMP_NUM_THREADS": str(options.threads)},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"sampling {n:,} spots failed")
    written = (options.out / "predictions" / slide.name).with_suffix(".h5ad")
    return {
        "seconds": time.perf_counter() - began,
        "bytes": usage.ru_maxrss * _KIB,
        "embeddings": slide.stat().st_size,
        "written": written.stat().st_size,
    }


def show(console: Console, found: dict[str, Any], streams: dict[int, dict[str, float]]) -> None:
    """Print the two tables."""
    for part in PARTS:
        sizes = sorted({n for row in found[part].values() for n in row})
        if not sizes:
            continue
        table = Table(f"{part}: MB above the process", *(f"{n:,} spots" for n in sizes))
        for name, row in found[part].items():
            if not row:
                continue
            cells = []
            for n in sizes:
                if n not in row:
                    cells.append("")
                    continue
                reference = found["sampling" if part == "sampling" else PARTS[1]][REFERENCE]
                share = row[n] / max(reference[n], 1)
                share_text = "" if name == REFERENCE else f" ({share:.2f})"
                cells.append(f"{row[n] / 1e6:,.0f}{share_text}")
            table.add_row(name, *cells)
        console.print(table)
    if streams:
        table = Table("stflow-graph sample", "embeddings", "peak of the process", "time", "written")
        for n, row in streams.items():
            table.add_row(
                f"{n:,} spots",
                f"{row['embeddings'] / 1e9:.2f} GB",
                f"{row['bytes'] / 1e9:.2f} GB",
                f"{row['seconds']:.0f} s",
                f"{row['written'] / 1e6:.0f} MB",
            )
        console.print(table)


def main() -> None:
    """Measure, print the tables, write JSON and PNG."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1_000, 3_000, 10_000])
    names = list(CONTENDERS)
    parser.add_argument("--denoisers", nargs="*", default=names, choices=names)
    parser.add_argument("--streamed", type=int, nargs="*", default=[])
    parser.add_argument("--genes", type=int, default=N_GENES)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-published", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that it runs")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        name, n, part = options.cell
        print(run_cell(name, int(n), part, options))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    found = measure(options)
    streams = {n: streamed(n, options) for n in options.streamed}
    console = Console(width=120)
    show(console, found, streams)
    result = {"bytes": found, "streamed": streams}
    (options.out / "memory.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    if options.sizes:
        megabytes = {
            part: {name: {n: v / 1e6 for n, v in row.items()} for name, row in rows.items()}
            for part, rows in found.items()
        }
        draw_costs(megabytes, "MB", options.out / "memory.png")
    console.print(f"{options.out}/memory.json written", highlight=False)


if __name__ == "__main__":
    main()
