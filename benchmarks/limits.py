"""How near each stage is to what bounds it on this machine, measured in the same run.

usage: python benchmarks/limits.py --out OUT [--sizes 1000 10000 100000] [--threads 2]
           [--members 4] [--genes 50] [--quick]

First the machine: matrix products, a copy in memory, a file read from disk and from the system's
cache, SHA-256, compression as predictions are packed. Then `sample` (the mean, on a CPU) on slides
of --sizes spots and 1024 channels that are written to OUT, part by part; one training step of the
default's encoder on a region of each size up to 10,000 spots; and `embed`'s network alone, with the
stage around it. A part's limit is the time that its arithmetic, or its bytes read and written once,
take at the machine's speed; of the graph, what the library's search alone takes. Writes
OUT/limits.json.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import embedding
import numpy as np
import torch
from contenders import CONTENDERS, IN_CHANNELS, TINY, synthetic_slide, training_step
from memory import write_checkpoint, write_slide
from rich.console import Console
from rich.table import Table
from scipy.spatial import cKDTree
from speed import machine
from torch.utils.flop_counter import FlopCounterMode

from stflow_graph.graph.tiles import TiledGraph
from stflow_graph.inference import projections, stream
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.io import predictions, versions
from stflow_graph.io.embeddings import open_embeddings
from stflow_graph.models.build import build_slide_graph
from stflow_graph.models.checkpoint import load_checkpoint
from stflow_graph.nn.encoder import GraphEncoder
from stflow_graph.stages.sample import sample

CPU = torch.device("cpu")
_FLOPS_FROM = 1000  # spots of the slide on which operations are counted
_CANDIDATES = 22  # of the search for 8 neighbours


class Machine(NamedTuple):
    """The machine's speeds: operations, or bytes, a second."""

    products: float
    copy: float
    disk: float
    cache: float
    sha256: float
    packing: float


class Part(NamedTuple):
    """A part of a stage: its seconds, those of its limit, and what that is."""

    stage: str
    size: int
    name: str
    seconds: float
    limit: float | None
    bound: str


def best(function: Callable[[], Any], repeats: int = 5) -> float:
    """Return the seconds of the fastest of some calls, after one that does not count."""
    function()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)


def measure_machine(file: Path, n_threads: int) -> Machine:
    """Return the machine's speeds; the file is read."""
    x, weight = torch.randn(4096, IN_CHANNELS), torch.randn(288, IN_CHANNELS)
    products = 2 * x.numel() * len(weight) / best(lambda: x @ weight.T)
    source = torch.randn(2**26)
    target = torch.empty_like(source)
    copied = 2 * 4 * source.numel() / best(lambda: target.copy_(source))
    size = file.stat().st_size

    def read() -> None:
        with file.open("rb") as opened:
            while opened.read(2**24):
                pass

    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.perf_counter()
    read()
    disk = size / (time.perf_counter() - began)
    content = np.random.default_rng(0).standard_normal(2**22, dtype=np.float32)
    places = np.ascontiguousarray(content.view(np.uint8).reshape(-1, 4).T).tobytes()
    parts = [places[at : at + 2**20] for at in range(0, len(places), 2**20)]
    with ThreadPoolExecutor(n_threads) as pool:
        packing = best(lambda: list(pool.map(lambda part: zlib.compress(part, 1), parts)), 2)
    return Machine(
        products,
        copied,
        disk,
        size / best(read, 2),
        64 * 2**18 / best(lambda: _sha256(places[: 2**18], 64)),
        len(places) / packing,
    )


def _sha256(content: bytes, times: int) -> None:
    hashed = hashlib.sha256()
    for _ in range(times):
        hashed.update(content)
    hashed.digest()


class Timers:
    """Seconds of functions while they are watched, by name."""

    def __init__(self) -> None:
        self.seconds: collections.Counter[str] = collections.Counter()
        self.patches = [
            self._of(name, *place)
            for name, place in {
                "hash": (versions, "sha256"),
                "projection": (projections.Projections, "_pass"),
                "graph": (stream, "_tiled_graph"),
                "context": (GraphEncoder, "gather"),
                "blocks": (GraphEncoder, "encode"),
                "read-out": (GraphEncoder, "decode"),
                "packing": (predictions, "write_rows"),
            }.items()
        ]

    def _of(self, name: str, owner: Any, attribute: str) -> Any:
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - began

        return mock.patch.object(owner, attribute, timed)


def flops(function: Callable[[], Any]) -> int:
    """Return the operations of a function's matrix products."""
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


@torch.inference_mode()
def operations(encoder: GraphEncoder, config: Any) -> dict[str, float]:
    """Return the operations of products a spot, of the encoder's parts."""
    pos = synthetic_slide(_FLOPS_FROM).pos
    edges_of = build_slide_graph(config).edges_of(pos)
    graph = TiledGraph.along(len(pos), edges_of, len(pos))
    gathered = torch.randn(len(pos), encoder.project_weight.size(0) // (1 + len(encoder.hops)))
    code = encoder.encode(gathered, graph)
    return {
        "projection": 2.0 * encoder.project_weight.numel(),
        "blocks": flops(lambda: encoder.encode(gathered, graph)) / len(pos),
        "read-out": flops(lambda: encoder.decode(code)) / len(pos),
    }


def sampling(n: int, speeds: Machine, options: argparse.Namespace) -> Iterator[Part]:
    """Yield the parts of `sample` on a slide of n spots."""
    slide, run = options.out / f"slide{n}.h5", options.out / f"run-{options.genes}-genes"
    checkpoint = load_checkpoint(run)
    settings, target = SampleSettings(device="cpu"), options.out / "predictions"
    sample(run, [slide], target, settings, overwrite=True)  # files are in the system's cache
    timers = Timers()
    with contextlib.ExitStack() as watched:
        for patch in timers.patches:
            watched.enter_context(patch)
        began = time.perf_counter()
        sample(run, [slide], target, settings, overwrite=True)
        total = time.perf_counter() - began
    encoder = checkpoint.build()[0].encoder
    a_spot = operations(encoder, checkpoint.config)
    with open_embeddings(slide) as source:
        coords, n_bytes = source.coords, 4 * len(source) * source.width
    width = encoder.project_weight.size(0) // (1 + len(encoder.hops))
    n_steps, members = max(encoder.hops, default=0), options.members
    workers = torch.get_num_threads()
    search = best(lambda: cKDTree(coords).query(coords, k=min(_CANDIDATES, n), workers=workers), 1)
    products, copied = "matrix products", "memory, each value once a step"
    limits = {
        "hash": (slide.stat().st_size / speeds.sha256, "SHA-256"),
        "projection": (members * n * a_spot["projection"] / speeds.products, products),
        "graph": (search, "the search of scipy's tree"),
        "context": (members * n_steps * 2 * 4 * n * width / speeds.copy, copied),
        "blocks": (members * n * a_spot["blocks"] / speeds.products, products),
        "read-out": (members * n * a_spot["read-out"] / speeds.products, products),
        "packing": (4 * n * options.genes / speeds.packing, "compression"),
    }
    for name, (limit, bound) in limits.items():
        yield Part("sample", n, name, timers.seconds[name], limit, bound)
    yield Part("sample", n, "other", total - sum(timers.seconds.values()), None, "")
    least = n_bytes / speeds.cache + sum(limit for limit, _ in limits.values())
    yield Part("sample", n, "all", total, least, "the parts' limits, and reading from the cache")


def training(n: int, speeds: Machine, options: argparse.Namespace) -> Part:
    """Return one training step of the default on a region of n spots."""
    contender = CONTENDERS["graph, default"]
    model = contender.make(**(TINY if options.quick else {}))
    data = contender.prepare(synthetic_slide(n), training=True)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4)
    seconds = best(lambda: training_step(model, optimizer, data), 3)
    limit = flops(lambda: training_step(model, optimizer, data)) / speeds.products
    return Part("train", n, "a step of one member", seconds, limit, "matrix products")


def embedding_parts(options: argparse.Namespace) -> Iterator[Part]:
    """Yield `embed` on a thousand patches, with the encoder alone as its limit."""
    settings = argparse.Namespace(
        patches=20 if options.quick else 1024,
        size=32 if options.quick else 224,
        batch=8 if options.quick else 64,
        workers=0,
        device="cpu",
    )
    source = options.out / "patches.h5"
    embedding.write_random_patches(source, settings.patches, settings.size)
    for engine in ("torch", "onnx") if embedding.is_installed() else ("torch",):
        rates = embedding.measure(engine, source, settings)
        seconds, limit = (settings.patches / rates[key] for key in ("embed, 0 workers", "encoder"))
        yield Part("embed", settings.patches, engine, seconds, limit, "the encoder alone")


def show(console: Console, speeds: Machine, parts: list[Part]) -> None:
    """Print the machine and the table."""
    console.print(
        f"{machine(CPU)}: products {speeds.products / 1e9:,.0f} GFLOP/s, copy "
        f"{speeds.copy / 1e9:.1f} GB/s, disk {speeds.disk / 1e9:.2f}, cache "
        f"{speeds.cache / 1e9:.1f}, SHA-256 {speeds.sha256 / 1e9:.2f} GB/s, packing "
        f"{speeds.packing / 1e6:.0f} MB/s",
        highlight=False,
    )
    table = Table("stage", "size", "part", "seconds", "limit", "times the limit", "bound by")
    for part in parts:
        limit = "" if part.limit is None else f"{part.limit:.3g}"
        ratio = "" if not part.limit else f"{part.seconds / part.limit:.1f}"
        row = (part.stage, f"{part.size:,}", part.name, f"{part.seconds:.3g}", limit, ratio)
        table.add_row(*row, part.bound)
    console.print(table)


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--genes", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    write_checkpoint(options.out / f"run-{options.genes}-genes", options)
    for n in options.sizes:
        if not (options.out / f"slide{n}.h5").exists():
            write_slide(options.out / f"slide{n}.h5", n)
    speeds = measure_machine(options.out / f"slide{max(options.sizes)}.h5", options.threads)
    parts = [part for n in options.sizes for part in sampling(n, speeds, options)]
    parts += [training(n, speeds, options) for n in options.sizes if n <= 10_000]
    parts += embedding_parts(options)
    show(Console(width=120), speeds, parts)
    result = {"machine": speeds._asdict(), "parts": [part._asdict() for part in parts]}
    (options.out / "limits.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
