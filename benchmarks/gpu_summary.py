"""Gathers what gpu.sh measured into one JSON file and a table for RESULTS.md.

usage: python benchmarks/gpu_summary.py FOLDER --out OUT [--device cuda]

FOLDER holds the scripts' results, a folder each; what is missing is left out. Writes OUT/gpu.json
and OUT/gpu.md, and prints the latter.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_geometric
from layer import short
from speed import BUSY, machine

from stflow_graph.io.predictions import read_prediction

SPEEDS = ("speed", "tf32", "bf16", "compiled", "compiled_training")
RESULTS = (*SPEEDS, "layer", "memory", "global_cost", "embedding")
Row = tuple[str, str, str]


def surroundings(device: torch.device) -> dict[str, str | None]:
    """Return the machine and the versions."""
    driver = None
    if device.type == "cuda" and shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "machine": machine(device),
        "cuda": torch.version.cuda,
        "driver": driver,
        "torch_geometric": torch_geometric.__version__,
    }


def cohort(folder: Path) -> dict[str, Any]:
    """Return the mean PCC of the predictions of each device, and how far they are apart."""
    result: dict[str, Any] = {"pearson": {}}
    predictions = []
    for where in sorted(path for path in folder.iterdir() if path.is_dir()):
        metrics = where / "eval" / "metrics.json"
        if metrics.exists():
            table = json.loads(metrics.read_text(encoding="utf-8"))["table"]
            result["pearson"][where.name] = {row["name"]: row["pearson"] for row in table}
        predictions += [read_prediction(file) for file in where.glob("*.h5ad")]
    if len(predictions) == 2:
        one, other = predictions
        result["largest difference of means"] = float(np.abs(one.mean - other.mean).max())
        if one.samples is not None and other.samples is not None:
            result["largest difference of samples"] = float(
                np.abs(one.samples - other.samples).max()
            )
    return result


def rows(found: dict[str, Any]) -> Iterator[Row]:
    """Yield what was measured, on how many spots, and the result."""
    for key in SPEEDS:
        for n, table in found.get(key, {}).get("seconds", {}).items():
            for name, parts in table.items():
                cells = [
                    f"{part} {1e3 * value:.3g} ms" for part, value in parts.items() if part != BUSY
                ]
                if BUSY in parts:
                    cells.append(f"{BUSY} {parts[BUSY]:.0%}")
                kind = "" if key == "speed" else f" ({key.partition('_')[0]})"
                yield f"{name}{kind}", f"{int(n):,}", ", ".join(cells)
    layer = found.get("layer", {})
    for name, each in layer.get("passes", {}).items():
        share = f"{each['share, least']:.1%} of {layer['bandwidth'] / 1e9:,.0f} GB/s at least"
        gathered = f"{each['share, gathered']:.1%} with a gather for every edge"
        yield (
            f"local layer, {name}",
            f"{layer['spots']:,}",
            (f"{1e3 * each['seconds']:.2f} ms, {share}, {gathered}"),
        )
    for variant, kernels in layer.get("kernels", {}).items():
        for kernel, took in kernels.items():
            what = f"local layer, kernel of {variant}"
            yield what, f"{layer['spots']:,}", f"{1e3 * took:.2f} ms, `{short(kernel)}`"
    for n, each in found.get("memory", {}).get("streamed", {}).items():
        yield (
            "`stflow-graph sample` from disk",
            f"{int(n):,}",
            (f"{each['seconds']:.0f} s, host memory {each['bytes'] / 1e9:.2f} GB"),
        )
    of_size = found.get("global_cost", {})
    for name, times in of_size.get("seconds", {}).items():
        yield f"global attention, {name}", f"{of_size['sizes'][-1]:,}", f"{1e3 * times[-1]:.2f} ms"
    embedding = found.get("embedding", {})
    rates = embedding.get("rates", {}).get("torch", {})
    for what, value in rates.items():
        if what.startswith("embed"):
            yield (
                what,
                f"{embedding['patches']:,} patches",
                f"{value:,.0f} a second, encoder alone {rates['encoder']:,.0f}",
            )
    for where, table in found.get("cohort", {}).get("pearson", {}).items():
        for name, slides in table.items():
            for slide, value in slides.items():
                yield f"her2st fold 0, {name}, sampled on {where}", slide, f"PCC {value:.4f}"
    for key in ("largest difference of means", "largest difference of samples"):
        if key in found.get("cohort", {}):
            yield f"her2st fold 0, {key}", "", f"{found['cohort'][key]:.1e}"


def main() -> None:
    """Gather, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    found: dict[str, Any] = {"surroundings": surroundings(torch.device(options.device))}
    for name in RESULTS:
        file = options.folder / name / f"{'speed' if name in SPEEDS else name}.json"
        if file.exists():
            found[name] = json.loads(file.read_text(encoding="utf-8"))
    if (options.folder / "cohort").is_dir():
        found["cohort"] = cohort(options.folder / "cohort")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    about = found["surroundings"]
    lines = [
        f"{about['machine']}, CUDA {about['cuda']}, driver {about['driver']}, "
        f"torch-geometric {about['torch_geometric']}",
        "",
        "| | spots | |",
        "|---|--:|---|",
        *(f"| {what} | {n} | {result} |" for what, n, result in rows(found)),
    ]
    text = "\n".join(lines) + "\n"
    (options.out / "gpu.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
