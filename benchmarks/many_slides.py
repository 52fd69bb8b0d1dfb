"""Memory and time of training on more slides than memory holds; one process.

usage: python benchmarks/many_slides.py --out OUT [--slides 150 300 600 1200] [--spots 3000]
           [--width 16] [--genes 50] [--members 2] [--epochs 1] [--in-memory]

Makes a cohort of random slides (embeddings of so many channels, counts of so many genes), trains a
small network on all of them for some epochs and prints, for each number of slides, the seconds and
the most memory that the process had: all of it (VmHWM), and what is its own and not a file's
(the largest RssAnon, looked at ten times a second). Embeddings stay in their files whatever memory
there is, or are kept with ``--in-memory``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np


def write_slides(out: Path, n_slides: int, n_spots: int, width: int, n_genes: int) -> None:
    """Write a cohort; slides that are there are kept."""
    import scipy.sparse as sp

    from stflow_graph.data.genes import write_gene_list
    from stflow_graph.data.splits import embedding_path
    from stflow_graph.io.embeddings import write_embeddings
    from stflow_graph.io.expression import write_expression

    genes = [f"G{i}" for i in range(n_genes)]
    side = int(np.ceil(np.sqrt(n_spots)))
    coords = 100.0 * np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
    coords = coords[:n_spots]
    weights = np.random.default_rng(0).normal(size=(width, n_genes)) / np.sqrt(width)
    for number in range(n_slides):
        name, rng = f"S{number:04}", np.random.default_rng(number)
        file = embedding_path(out / "embeddings", "cohort", "toy", name)
        if file.exists():
            continue
        x = rng.normal(size=(n_spots, width)).astype(np.float32)
        barcodes = [f"{i}" for i in range(n_spots)]
        counts = rng.poisson(np.exp(1 + 0.5 * x @ weights)).astype(np.float32)
        write_expression(
            out / f"cohort/adata/{name}.h5ad",
            sp.csr_matrix(counts),
            barcodes,
            genes,
            coords,
            um_per_px=1.0,
        )
        with write_embeddings(file, barcodes, coords, width, {"encoder": "toy"}) as writer:
            writer.append(x)
    write_gene_list(out / "cohort/var_50genes.json", genes)


def train_one(options: argparse.Namespace, n_slides: int) -> dict[str, float]:
    """Train in this process on the first slides; return what it took."""
    from stflow_graph.config import load_config
    from stflow_graph.stages import train as stage

    if not options.in_memory:
        stage._MEMORY_SHARE = 0.0
    root = options.out / f"first{n_slides}"
    (root / "adata").mkdir(parents=True, exist_ok=True)
    for file in sorted((options.out / "cohort/adata").glob("*.h5ad"))[:n_slides]:
        link = root / "adata" / file.name
        if not link.exists():
            link.symlink_to(file.resolve())
    genes = root / "var_50genes.json"
    genes.write_bytes((options.out / "cohort/var_50genes.json").read_bytes())
    embeddings = options.out / "embeddings" / root.name
    if not embeddings.exists():
        embeddings.symlink_to((options.out / "embeddings/cohort").resolve())
    settings = {
        "data.source_dataroot": str(root),
        "data.embed_dataroot": str(options.out / "embeddings"),
        "data.encoder": "toy",
        "denoiser.hidden_channels": 32,
        "denoiser.n_layers": 1,
        "train.folds": "all",
        "train.members": options.members,
        "train.epochs": options.epochs,
    }
    own = [0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            own[0] = max(own[0], status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    stage.train(load_config(None, settings), options.out / f"run{n_slides}-{time.time_ns()}")
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return {"slides": n_slides, "seconds": seconds, "own": own[0], "peak": status("VmHWM")}


def status(name: str) -> int:
    """Return a field of this process's status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Make the cohort, and train in a new process for each number of slides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--slides", type=int, nargs="*", default=[150, 300, 600, 1200])
    parser.add_argument("--spots", type=int, default=3000)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--genes", type=int, default=50)
    parser.add_argument("--members", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("--here", action="store_true", help="train in this process")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(train_one(options, options.slides[0])))
        return
    write_slides(options.out, max(options.slides), options.spots, options.width, options.genes)
    for n_slides in options.slides:
        command = [sys.executable, __file__, "--here", "--out", options.out, "--slides", n_slides]
        command += ["--members", options.members, "--epochs", options.epochs]
        command += ["--in-memory"] if options.in_memory else []
        found = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
        row = json.loads(found.stdout.splitlines()[-1])
        print(
            f"{n_slides} slides of {options.spots} spots x {options.width} channels: "
            f"{row['seconds']:.0f} s, {row['own'] / 1e9:.2f} GB of its own, "
            f"{row['peak'] / 1e9:.2f} GB at most",
            flush=True,
        )


if __name__ == "__main__":
    main()
