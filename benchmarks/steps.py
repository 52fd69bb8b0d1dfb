"""How many steps and samples are enough: scores of what a trained run samples.

usage: python benchmarks/steps.py RUN --out OUT [--steps 2 5 10 20 40] [--samples 4 8 16 64]

RUN is a folder of ``stflow-graph train`` on one data set, or a cell of ``accuracy.py``; its data
must be where they were. The test slides of its folds are sampled with other numbers of steps, 16
samples each, and then with its own steps and other numbers of samples. Prints a table and writes
OUT/steps.json and .md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import accuracy
import numpy as np
from rich.console import Console

from stflow_graph.config import load_config
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.io.predictions import read_prediction
from stflow_graph.stages.sample import sample
from stflow_graph.stats.metrics import mean_of_defined, pearson_per_gene


def data_of(run: Path) -> tuple[argparse.Namespace, str, int]:
    """Return where a run's data are, as ``accuracy.py`` is told, its target and its steps."""
    config = load_config(run / "config.toml", {})
    data = config.data
    options = argparse.Namespace(
        root=Path(data.source_dataroot),
        embeddings=Path(data.embed_dataroot),
        encoder=data.encoder,
        gene_list=data.gene_list,
        datasets=list(data.datasets),
        folds=list(config.train.folds),
    )
    return options, data.target, config.flow.n_sample_steps


def measure(cells: list[accuracy.Cell], truths: dict[str, accuracy.Truth]) -> dict[str, float]:
    """Return what the table shows of the samples of all slides; means over slides."""
    shape = accuracy.structure(cells, truths)
    whole, single = shape["run, mean"], shape["run, a sample"]
    drawn = [
        mean_of_defined(pearson_per_gene(cell.samples.mean(axis=0), truths[cell.slide].y))
        for cell in cells
        if cell.samples is not None
    ]
    return {
        "PCC of the mean": whole["PCC"],
        "PCC of the samples' mean": float(np.mean(drawn)),
        **{name: whole[name] for name in ("CRPS", "50%", "80%", "90%")},
        **{name: single[name] for name in ("RVD", "gene-gene")},
    }


def main() -> None:
    """Sample what is missing, print the table, write JSON and Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs="*", default=[2, 5, 10, 20, 40])
    parser.add_argument("--samples", type=int, nargs="*", default=[4, 8, 16, 64])
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    options, target, own_steps = data_of(asked.run)
    truths = accuracy.read_truths(target, options)
    files = accuracy.embedding_files(list(truths), options)
    wanted = [(steps, accuracy.N_SAMPLES) for steps in asked.steps]
    wanted += [(own_steps, n_samples) for n_samples in asked.samples]
    found = {}
    for steps, n_samples in dict.fromkeys(wanted):
        folder = asked.out / f"{steps}-steps-{n_samples}-samples"
        settings = SampleSettings(n_samples=n_samples, seed=asked.seed, n_sample_steps=steps)
        sample(asked.run, files, folder, settings)
        cells = []
        for slide in truths:
            prediction = read_prediction(folder / f"{slide}.h5ad")
            mean, samples = prediction.mean, prediction.samples
            cells.append(accuracy.Cell("run", asked.seed, slide, mean, samples))
        found[f"{steps} steps, {n_samples} samples"] = measure(cells, truths)
    text = accuracy.show(Console(width=150), accuracy.from_dicts(f"samples of {target}", found))
    (asked.out / "steps.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    (asked.out / "steps.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
