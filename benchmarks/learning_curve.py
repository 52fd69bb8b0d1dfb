"""Learning curve: scores of held-out slides against the number of training slides.

usage: python benchmarks/learning_curve.py --out OUT [--slides 4 8 16 32] [--folds 0 1 2]
           [--models graph transformer] [--seeds 1] [--jobs 2] [--set NAME=VALUE ...] [--quick]

Draws a cohort in OUT that begins with the demo's six slides. These are predicted, two a fold as in
``accuracy.py --simulated``, from more and more others: what grows was missing data, what does not
is not in the embeddings or asks for another model. Every cell is kept in OUT. Prints tables,
writes OUT/learning_curve.json, .md and .png.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import accuracy
import matplotlib
from rich.console import Console

from stflow_graph.data.splits import split_files, write_splits
from stflow_graph.encoders import create_encoder
from stflow_graph.evaluation.baselines import CONTEXT_RIDGE, RIDGE, SIMPLE_GNN, TUNED_RIDGE
from stflow_graph.simulation.cohort import DESCRIPTION, GENE_LIST, simulate_cohort
from stflow_graph.stages.embed import embed

TARGET = "log1p"  # the one whose mean the simulator tells
N_FOLDS, TESTED = 3, 2  # folds, and slides that each tests: those of one patient
FEWEST = (N_FOLDS - 1) * TESTED  # training slides of a fold of the demo
PANELS = {
    "all": "all genes",
    "own": "own genes",
    "neighbour": "neighbour genes",
}
SHOWN = (*accuracy.MODELS, RIDGE, TUNED_RIDGE, CONTEXT_RIDGE, SIMPLE_GNN, accuracy.TRUE_MEAN)


def draw_cohort(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Draw and embed what of the cohort is not there; return its slides."""
    root, n_slides = options.out / "cohort", max(options.slides) + TESTED
    if not (root / DESCRIPTION).exists():
        simulate_cohort(root, n_slides=n_slides, n_spots=options.spots, n_folds=N_FOLDS)
    slides: list[dict[str, Any]] = json.loads((root / DESCRIPTION).read_text())["slides"]
    if len(slides) < n_slides:
        raise SystemExit(f"{root}: {len(slides)} slides, {n_slides} are needed: take another --out")
    embed(root, options.out / "embeddings", create_encoder(options.encoder))
    return slides


def options_of(
    n_train: int, slides: Sequence[dict[str, Any]], options: argparse.Namespace
) -> argparse.Namespace:
    """Return what ``accuracy.py`` is told: folds of ``n_train`` training slides, made of links."""
    out = options.out / f"{n_train}-slides"
    root = out / "cohort"
    root.mkdir(parents=True, exist_ok=True)
    for name in ("patches", "adata", GENE_LIST):
        if not (root / name).exists():
            (root / name).symlink_to((options.out / "cohort" / name).resolve())
    few = slides[: n_train + TESTED]  # beyond the first six they belong to folds that are not run
    folds = [i // TESTED for i in range(len(few))]
    names, patients = ([slide[key] for slide in few] for key in ("id", "patient"))
    write_splits(root / "splits", split_files(names, folds, patients))
    paths = {"root": root, "out": out, "embeddings": options.out / "embeddings"}
    return argparse.Namespace(**{**vars(options), **paths, "datasets": [], "gene_list": GENE_LIST})


def scores(size: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the PCC of each model, of all genes and of each class."""
    truths = accuracy.read_truths(TARGET, size)
    table = accuracy.score(accuracy.read_cells(TARGET, truths, size), truths)
    by_class = accuracy.classes(table, truths, size.root)
    return {name: {"all": table[name]["mean"], **by_class[name]} for name in SHOWN if name in table}


def as_rows(found: dict[int, dict[str, dict[str, float]]], kind: str) -> list[list[str]]:
    """Return a table: a row a model, a column a size; in brackets the share of the true mean's."""
    rows = [[f"PCC, {PANELS[kind]}", *(f"{n} slides" for n in found)]]
    for name in next(iter(found.values())):
        cells = []
        for row in found.values():
            value, most = row[name][kind], row[accuracy.TRUE_MEAN][kind]
            cells.append(f"{value:.3f} ({value / most:.0%})")
        rows.append([name, *cells])
    return rows


def draw(found: dict[int, dict[str, dict[str, float]]], file: Path) -> None:
    """Draw a panel for all genes and for two classes: a line a model, the true mean dotted."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(PANELS), figsize=(4.2 * len(PANELS), 3.6), layout="constrained"
    )
    for axis, (kind, text) in zip(axes, PANELS.items(), strict=True):
        for name in next(iter(found.values())):
            style = "k:" if name == accuracy.TRUE_MEAN else "o-"
            values = [row[name][kind] for row in found.values()]
            axis.plot(list(found), values, style, label=name, markersize=4)
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(found), [str(n) for n in found])
        axis.set_xlabel("training slides")
        axis.set_ylabel(f"PCC, {text}")
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main() -> None:
    """Run what is missing, print the tables, write JSON, Markdown and PNG."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--slides", type=int, nargs="+", default=[4, 8, 16, 32], help=f"{FEWEST} or more"
    )
    parser.add_argument("--spots", type=int, default=400, help="of each slide")
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2], choices=range(N_FOLDS))
    parser.add_argument("--models", nargs="+", default=["graph"], choices=list(accuracy.MODELS))
    parser.add_argument("--encoder", default="efficientnet_lite0")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that it runs")
    options, console = parser.parse_args(), Console(width=120)
    if min(options.slides) < FEWEST:
        parser.error(f"--slides: at least {FEWEST}")
    slides = draw_cohort(options)
    sizes = {n: options_of(n, slides, options) for n in sorted(set(options.slides))}
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(options.jobs, mp_context=spawn) as pool:
        jobs = []
        for size in sizes.values():
            for seed in range(options.seeds):
                jobs.append(pool.submit(accuracy.run_baselines, TARGET, seed, size))
                for model in options.models:
                    jobs.append(pool.submit(accuracy.run_model, model, TARGET, seed, size))
        for job in jobs:
            job.result()
    found = {n: scores(size) for n, size in sizes.items()}
    parts = [accuracy.show(console, as_rows(found, kind)) for kind in PANELS]
    (options.out / "learning_curve.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    (options.out / "learning_curve.md").write_text("\n".join(parts), encoding="utf-8")
    draw(found, options.out / "learning_curve.png")
    console.print(f"{options.out}/learning_curve.json, .md and .png written")


if __name__ == "__main__":
    main()
