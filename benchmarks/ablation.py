"""What each part of the default recipe is worth: one switch changed at a time, several seeds.

usage: python benchmarks/ablation.py --root ROOT --embeddings EMB --out OUT [--folds 0 1 2]
           [--seeds 5] [--jobs 2] [--levers "default" "graph in every step" ...]
           [--set train.epochs=60 ...] [--quick]

ROOT is a data set in HEST-bench layout. Every cell is a run of ``train`` in OUT, so what was done
is not done again. Decisions belong to the validation column: the members' mean PCC on the training
slides that they held out; the test columns (PCC over genes, then slides; mean ± sd over seeds) are
shown beside it, with single classes of genes where ``adata.var["gene_class"]`` tells them
(simulated cohorts). Writes OUT/ablation.json and .png.
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
from stflow_graph.stages.train import train

PUBLISHED_REGIONS = {
    "train.smallest_region": 0.0,
    "train.regions_per_slide": 10,
    "train.batch_size": 2,
}
LEVERS: dict[str, dict[str, Any]] = {
    "default": {},
    "flow of single spots": {"flow.kind": "spot"},
    "graph in every step": {"flow.kind": "graph"},
    "no ridge": {"denoiser.ridge_rank": 0},
    "one member": {"train.members": 1},
    "no context": {"denoiser.context_hops": []},
    "context of 1, 2, 4 hops": {"denoiser.context_hops": [1, 2, 4]},
    "input dropout .7": {"denoiser.input_dropout": 0.7},
    "no PCC in the loss": {"train.pcc_weight": 0.0},
    "no weight decay": {"train.weight_decay": 0.0},
    "no moving average": {"train.ema_decay": 0.0},
    "published regions": PUBLISHED_REGIONS,
    "regions of at most 128 spots": {"train.max_spots_per_batch": 128},
    "regions of at most 64 spots": {"train.max_spots_per_batch": 64},
    "standardised per slide": {"data.standardize": "slide"},
    "standardised over slides": {"data.standardize": "train"},
    "targets not centred": {"data.center_targets": False},
    "one layer": {"denoiser.n_layers": 1},
    "4 layers of 128": {"denoiser.n_layers": 4, "denoiser.hidden_channels": 128},
    "edges by frames": {"denoiser.conv": "frame_averaged"},
    "stflow attention": {"denoiser.conv": "stflow"},
    "mean of neighbours": {"denoiser.conv": "pyg:SAGEConv"},
    "no global attention": {"denoiser.global_attention": "none"},
    "linear global attention": {"denoiser.global_attention": "pyg:PolynormerAttention"},
    "k = 16": {"graph.n_neighbors": 16},
    "k = 32": {"graph.n_neighbors": 32},
}
QUICK = {
    "denoiser.hidden_channels": 16,
    "denoiser.n_layers": 1,
    "train.epochs": 1,
    "train.flow_steps": 1,
    "train.regions_per_slide": 1,
}


def run_cell(lever: str, seed: int, options: argparse.Namespace) -> list[dict]:
    """Train with one switch changed and one seed on every fold; a row a fold."""
    torch.set_num_threads(1)
    settings: dict[str, Any] = {
        "data.source_dataroot": str(options.root),
        "data.embed_dataroot": str(options.embeddings),
        "data.encoder": options.encoder,
        "train.seed": seed,
        "train.folds": options.folds,
        **(QUICK if options.quick else {}),
        **LEVERS[lever],
        **parse_assignments(options.set),
    }
    name = "".join(c if c.isalnum() else "-" for c in lever)
    results = train(load_config(None, settings), options.out / f"{name}-seed{seed}")
    return [
        {
            "lever": lever,
            "changed": LEVERS[lever],
            "seed": seed,
            "fold": result.fold,
            "best_epochs": [record.epoch for record in result.best],
            "validation": result.validation_pearson,
            "genes": result.genes,
            "test": {slide: values.tolist() for slide, values in result.test_pearson.items()},
        }
        for result in results
    ]


def gene_classes(root: Path) -> dict[str, str]:
    """Return the class of each gene of a simulated cohort, nothing for other data."""
    var = anndata.read_h5ad(next(iter(sorted((root / "adata").glob("*.h5ad")))), backed="r").var
    return dict(var["gene_class"]) if "gene_class" in var else {}


def scores(rows: list[dict], classes: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return ``{measure: {lever: [one value a seed]}}``."""
    values: dict[str, dict] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in rows:
        lever, seed = row["lever"], row["seed"]
        values["validation"][lever][seed].append(row["validation"])
        for pearson in row["test"].values():
            values["test"][lever][seed].append(np.nanmean(pearson))
            for kind in sorted(set(classes.values())):
                of_kind = [classes[gene] == kind for gene in row["genes"]]
                if any(of_kind):
                    found = np.nanmean(np.array(pearson)[of_kind])
                    values[f"test: {kind}"][lever][seed].append(found)
    return {
        measure: {
            lever: [float(np.mean(v)) for v in seeds.values()] for lever, seeds in levers.items()
        }
        for measure, levers in values.items()
    }


def show(measures: dict[str, dict[str, list[float]]], n_seeds: int) -> Table:
    """Return a table: a row a lever, a column a measure, and the change in validation."""
    table = Table("one change", title=f"PCC: mean ± sd of {n_seeds} seeds")
    for column in ("Δ validation", *measures):
        table.add_column(column, justify="right")
    first = next(iter(measures["validation"].values()))
    for lever, of_seeds in measures["validation"].items():
        change = np.array(of_seeds) - np.array(first)
        cells = [plus_minus(values[lever]) for values in measures.values()]
        table.add_row(lever, f"{change.mean():+.3f}", *cells)
    return table


def plus_minus(values: list[float]) -> str:
    """Return mean ± sd, the mean alone of one value."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def draw(measures: dict[str, dict[str, list[float]]], file: Path) -> None:
    """Draw what each change does to validation and test scores: a row a lever, a dot a seed."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    levers = list(measures["validation"])[:0:-1]
    figure, axes = plt.subplots(
        1, 2, figsize=(9, 1 + 0.24 * len(levers)), sharex=True, sharey=True, layout="constrained"
    )
    for axis, measure in zip(axes, ("validation", "test"), strict=True):
        default = np.array(measures[measure]["default"])
        for place, lever in enumerate(levers):
            change = np.array(measures[measure][lever]) - default
            axis.barh(place, change.mean(), 0.7, color="tab:gray", alpha=0.6)
            axis.plot(change, np.full(len(change), place), "k.", markersize=4)
        axis.axvline(0, color="k", linewidth=0.8)
        axis.set_title(f"{measure} slides: default {default.mean():.3f}")
        axis.set_xlabel("change of PCC, mean over genes")
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(levers)), levers)
    axes[0].set_ylim(-0.6, len(levers) - 0.4)
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
    parser.add_argument("--levers", nargs="*", default=list(LEVERS), choices=list(LEVERS))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs")
    options = parser.parse_args()
    console, rows = Console(), []
    levers = list(dict.fromkeys(["default", *options.levers]))
    cells = [(lever, seed) for seed in range(options.seeds) for lever in levers]
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(options.jobs, mp_context=spawn) as pool:
        columns = zip(*cells, strict=True)
        found = pool.map(run_cell, *columns, itertools.repeat(options))
        for cell, result in zip(cells, found, strict=False):
            rows += result
            mean = np.mean([np.nanmean(v) for row in result for v in row["test"].values()])
            console.print(f"{cell[0]}, seed {cell[1]}: {mean:.3f}", highlight=False)
    measures = scores(rows, gene_classes(options.root))
    console.print(show(measures, options.seeds))
    (options.out / "ablation.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    draw(measures, options.out / "ablation.png")
    console.print(f"{options.out / 'ablation.json'} and .png written")


if __name__ == "__main__":
    main()
