"""Which local and which global attention predict best: every pair of kinds, several seeds.

usage: python benchmarks/ablation.py --root ROOT --embeddings EMB --out OUT [--folds 0 1 2]
           [--seeds 5] [--jobs 2] [--set train.patience=6 ...] [--quick]

ROOT is a data set in HEST-bench layout. Every cell is a run of ``train`` in OUT, so what was done
is not done again; the epoch is chosen on training slides. Prints tables of the validation and the
test PCC (mean over genes, then slides; mean ± sd over seeds) and of single classes of genes where
``adata.var["gene_class"]`` tells them (simulated cohorts); writes OUT/ablation.json and .png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import anndata
import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from stflow_graph.config import load_config, parse_assignments
from stflow_graph.train import train

LOCAL = ("additive", "dot", "stflow")
GLOBAL = ("none", "latent", "linear")
QUICK = {
    "denoiser.hidden_channels": 16,
    "denoiser.edge_channels": 8,
    "denoiser.n_layers": 1,
    "train.epochs": 1,
    "train.regions_per_slide": 1,
}


def run_cell(local: str, whole: str, seed: int, options: argparse.Namespace) -> list[dict]:
    """Train one pair of kinds with one seed on every fold; a row a fold."""
    torch.set_num_threads(1)
    settings: dict[str, Any] = {
        "data.source_dataroot": str(options.root),
        "data.embed_dataroot": str(options.embeddings),
        "data.encoder": options.encoder,
        "denoiser.attention": local,
        "denoiser.global_attention": whole,
        "train.seed": seed,
        "train.folds": options.folds,
        **(QUICK if options.quick else {}),
        **parse_assignments(options.set),
    }
    results = train(load_config(None, settings), options.out / f"{local}-{whole}-seed{seed}")
    return [
        {
            "local": local,
            "global": whole,
            "seed": seed,
            "fold": result.fold,
            "best_epoch": result.best.epoch,
            "validation": result.best.validation_pearson,
            "genes": result.genes,
            "test": {slide: values.tolist() for slide, values in result.test_pearson.items()},
        }
        for result in results
    ]


def gene_classes(root: Path) -> dict[str, str]:
    """Return the class of each gene of a simulated cohort, nothing for other data."""
    var = anndata.read_h5ad(next(iter(sorted((root / "adata").glob("*.h5ad")))), backed="r").var
    return dict(var["gene_class"]) if "gene_class" in var else {}


def scores(rows: list[dict], classes: dict[str, str]) -> dict[str, dict[tuple[str, str], Any]]:
    """Return ``{measure: {(local, global): [one value a seed]}}``."""
    values: dict[str, dict] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in rows:
        cell, seed = (row["local"], row["global"]), row["seed"]
        values["validation"][cell][seed].append(row["validation"])
        for pearson in row["test"].values():
            values["test"][cell][seed].append(np.nanmean(pearson))
            for kind in sorted(set(classes.values())):
                of_kind = [classes[gene] == kind for gene in row["genes"]]
                if any(of_kind):
                    found = np.nanmean(np.array(pearson)[of_kind])
                    values[f"test, genes of class {kind}"][cell][seed].append(found)
    return {
        measure: {
            cell: [float(np.mean(v)) for v in seeds.values()] for cell, seeds in cells.items()
        }
        for measure, cells in values.items()
    }


def show(measure: str, cells: dict[tuple[str, str], list[float]], n_seeds: int) -> Table:
    """Return a table of one measure: a row a local kind, a column a global kind."""
    table = Table("local \\ global", title=f"PCC, {measure}: mean ± sd of {n_seeds} seeds")
    for whole in GLOBAL:
        table.add_column(whole, justify="right")
    for local in LOCAL:
        found = [cells[local, whole] for whole in GLOBAL]
        spread = 1 if n_seeds > 1 else 0
        table.add_row(local, *(f"{np.mean(v):.3f} ± {np.std(v, ddof=spread):.3f}" for v in found))
    return table


def draw(measures: dict[str, dict[tuple[str, str], list[float]]], file: Path) -> None:
    """Draw validation and test scores: a bar a pair of kinds, a dot a seed."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, measure in zip(axes, ("validation", "test"), strict=True):
        for place, whole in enumerate(GLOBAL):
            x = np.arange(len(LOCAL)) + 0.27 * (place - 1)
            found = [measures[measure][local, whole] for local in LOCAL]
            axis.bar(x, [np.mean(v) for v in found], 0.25, label=f"global: {whole}", alpha=0.75)
            for at, each in zip(x, found, strict=True):
                axis.plot(np.full(len(each), at), each, "k.", markersize=3)
        axis.set_xticks(range(len(LOCAL)), LOCAL)
        axis.set_title(f"{measure} slides")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("PCC, mean over genes")
    figure.legend(
        *axes[1].get_legend_handles_labels(), loc="outside lower center", ncol=len(GLOBAL)
    )
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main() -> None:
    """Run what is missing, print the tables, write JSON and PNG."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--embeddings", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoder", default="efficientnet_lite0")
    parser.add_argument("--folds", type=int, nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs")
    options = parser.parse_args()
    console, rows = Console(), []
    cells = [(a, b, seed) for seed in range(options.seeds) for a in LOCAL for b in GLOBAL]
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(options.jobs, mp_context=spawn) as pool:
        columns = zip(*cells, strict=True)
        found = pool.map(run_cell, *columns, itertools.repeat(options))
        for cell, result in zip(cells, found, strict=False):
            rows += result
            mean = np.mean([np.nanmean(v) for row in result for v in row["test"].values()])
            console.print(f"{cell[0]}, {cell[1]}, seed {cell[2]}: {mean:.3f}", highlight=False)
    measures = scores(rows, gene_classes(options.root))
    for measure, values in measures.items():
        console.print(show(measure, values, options.seeds))
    (options.out / "ablation.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    draw(measures, options.out / "ablation.png")
    console.print(f"{options.out / 'ablation.json'} and .png written")


if __name__ == "__main__":
    main()
