"""How fast patches become embeddings, and how much of it is the encoder's work.

usage: python benchmarks/embedding.py [--patches 2048] [--size 224] [--batch 256] [--workers 8]
           [--threads 2] [--device cpu] [--out OUT] [--quick]

EfficientNet-Lite0 of timm with random weights, which cost as much as trained ones, by torch and, on
a CPU where it is installed, by ONNX Runtime. The encoder alone works on one batch that stays on the
device; the stage reads random patches from a file, without workers and with --workers, and writes
their embeddings. The share is the time that the encoder alone would take, of the stage's. The
export to ONNX Runtime, once a command, is reported separately.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import tempfile
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from layer import median
from rich.console import Console
from rich.table import Table
from speed import machine

from stflow_graph.encoders import Encoder, PatchTransform
from stflow_graph.encoders.onnx_runtime import is_installed
from stflow_graph.encoders.torchvision_shim import import_timm
from stflow_graph.io.freed_memory import freed_memory_kept
from stflow_graph.io.patches import write_patches
from stflow_graph.preparation.embedding import embed_file
from stflow_graph.preparation.engine import EmbedSettings, Engine

WIDTH = 1280


def make_encoder(size: int) -> Encoder:
    """Return the encoder with random weights."""
    network = import_timm().create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    transform = PatchTransform(size, mean=(0.5,) * 3, std=(0.5,) * 3)
    return Encoder("random", network, WIDTH, transform, "0" * 64)


def write_random_patches(path: Path, n: int, size: int) -> None:
    """Write a file of random patches."""
    rng, coords = np.random.default_rng(0), np.stack([np.arange(n), np.arange(n)], 1)
    names = [f"p{i}" for i in range(n)]
    with write_patches(path, names, coords, size=size, size_level0=size, um_per_px=0.5) as writer:
        for start in range(0, n, 256):
            shape = (min(256, n - start), size, size, 3)
            writer.append(rng.integers(0, 256, shape, dtype=np.uint8))


def alone(engine: Engine, options: argparse.Namespace) -> float:
    """Return the patches that an engine embeds in a second."""
    shape = (options.batch, options.size, options.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    if engine.device.type == "cuda":
        resident = torch.from_numpy(images).to(engine.device)
        return options.batch / median(lambda: engine.embed_tensor(resident), engine.device, 10)
    with freed_memory_kept():
        return options.batch / median(lambda: engine(images), engine.device, 10)


def readers(workers: int) -> Executor:
    """Return what reads patches ahead: processes, or one thread."""
    if not workers:
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def measure(name: str, source: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return the rates of the encoder alone and of the stage, and the seconds of the export."""
    encoder, rates = make_encoder(options.size), dict[str, float]()
    settings = EmbedSettings(options.batch, options.device, engine=name)
    engine, began = Engine(encoder, settings, lambda: options.patches), time.perf_counter()
    engine(np.zeros((2, options.size, options.size, 3), np.uint8))
    if name == "onnx" and engine.name.startswith("torch"):
        raise SystemExit("the encoder could not be exported")
    rates["export"] = time.perf_counter() - began
    rates["encoder"] = alone(engine, options)
    for workers in sorted({0, options.workers}):
        settings = dataclasses.replace(settings, workers=workers)
        with readers(workers) as pool:
            for _ in range(2):  # processes that read take seconds to start, which do not count
                began, target = time.perf_counter(), source.with_name(f"{name}-{workers}.h5")
                embed_file(
                    source, target, encoder, settings, overwrite=True, pool=pool, engine=engine
                )
        rates[f"embed, {workers} workers"] = options.patches / (time.perf_counter() - began)
    return rates


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patches", type=int, default=2048)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="few small patches")
    options = parser.parse_args()
    if options.quick:
        options.patches, options.size, options.batch, options.workers = 20, 32, 8, 1
    torch.set_num_threads(options.threads)
    by_onnx = options.device == "cpu" and is_installed()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "patches.h5")
        write_random_patches(source, options.patches, options.size)
        for name in ("torch", "onnx") if by_onnx else ("torch",):
            found[name] = measure(name, source, options)
    table = Table("", "patches a second", "share of the encoder")
    for name, row in found.items():
        for what, value in row.items():
            if what != "export":
                share = f"{value / row['encoder']:.0%}" if what != "encoder" else ""
                table.add_row(f"{name}: {what}", f"{value:,.0f}", share)
    console = Console(width=100)
    console.print(table)
    if by_onnx:
        console.print(f"export to ONNX Runtime: {found['onnx']['export']:.0f} s")
    console.print(
        f"{options.patches} patches of {options.size} px; {machine(torch.device(options.device))}"
    )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        result = {"patches": options.patches, "rates": found}
        (options.out / "embedding.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
