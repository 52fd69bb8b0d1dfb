"""How fast patches become embeddings, and how much of it is the encoder's work.

usage: python benchmarks/embedding.py [--patches 2048] [--size 224] [--batch 256] [--workers 8]
           [--threads 2] [--device cpu] [--out OUT] [--quick]

EfficientNet-Lite0 of timm with random weights, which cost as much as trained ones. The encoder
alone works on one batch that stays on the device; the stage reads random patches from a file,
without workers and with --workers, and writes their embeddings. The share is the time that the
encoder alone would take, of the stage's.
"""

from __future__ import annotations

import argparse
import contextlib
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
from stflow_graph.encoders.torchvision_shim import import_timm
from stflow_graph.io.patches import write_patches
from stflow_graph.preparation.embedding import EmbedSettings, embed_file

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


def alone(encoder: Encoder, options: argparse.Namespace) -> float:
    """Return the patches that the encoder embeds in a second, in the stage's precision."""
    device, dtype = torch.device(options.device), EmbedSettings(device=options.device).dtype()
    shape = (options.batch, options.size, options.size, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    encoder.to(device)

    def work() -> None:
        autocast = torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()
        with torch.inference_mode(), autocast:
            encoder(images)

    return options.batch / median(work, device, 10)


def readers(workers: int) -> Executor:
    """Return what reads patches ahead: processes, or one thread."""
    if not workers:
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


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
    encoder = make_encoder(options.size)
    rate = alone(encoder, options)
    stage = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "patches.h5")
        write_random_patches(source, options.patches, options.size)
        for workers in sorted({0, options.workers}):
            settings = EmbedSettings(options.batch, options.device, workers=workers)
            with readers(workers) as pool:
                for _ in range(2):  # processes that read take seconds to start, which do not count
                    began = time.perf_counter()
                    target = Path(folder, f"{workers}.h5")
                    embed_file(source, target, encoder, settings, overwrite=True, pool=pool)
            stage[workers] = options.patches / (time.perf_counter() - began)
    table = Table("", "patches a second", "share of the encoder")
    table.add_row("encoder alone", f"{rate:,.0f}", "")
    for workers, value in stage.items():
        table.add_row(f"embed, {workers} workers", f"{value:,.0f}", f"{value / rate:.0%}")
    console = Console(width=100)
    console.print(table)
    console.print(
        f"{options.patches} patches of {options.size} px; {machine(torch.device(options.device))}"
    )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        result = {"patches": options.patches, "encoder": rate, "stage": stage}
        (options.out / "embedding.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
