"""Slides of different gene panels: what is it worth to train on them together?

usage: python benchmarks/panels.py --root ROOT --embeddings EMB --out OUT [--folds 0 1 2]
           [--seeds 3] [--gene-list var_50genes.json] [--target log1p] [--quick]

Every second training slide of a fold loses every second gene, as if its panel did not have them.
Test slides keep all. PCC on these, mean over genes and slides, of the genes that all training
slides have and of those that half of them lack, by how a model is trained:

- whole: nothing was lost; what can be reached
- masked: all slides and genes, ``missing_genes="mask"``
- whole slides: only the slides that have all genes
- common genes: all slides, only the genes that all of them have

Prints a table, means over folds and their deviation over seeds, writes OUT/panels.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import accuracy
import numpy as np
from rich.console import Console
from rich.table import Table

from stflow_graph import api
from stflow_graph.data.genes import read_gene_list
from stflow_graph.data.slide import Slide
from stflow_graph.data.splits import Fold, find_datasets
from stflow_graph.stats.metrics import mean_of_defined, pearson_per_gene

HALVES = ("genes of all slides", "of half of them")
WHOLE, MASKED, WHOLE_SLIDES, COMMON = "whole", "masked", "whole slides", "common genes"


def lacking(slide: Slide, genes: Sequence[str]) -> Slide:
    """Return a slide whose panel does not have some genes."""
    assert slide.adata is not None
    keep = ~slide.adata.var_names.isin(genes)
    return dataclasses.replace(slide, adata=slide.adata[:, keep].copy())


def ways(slides: list[Slide], genes: list[str]) -> dict[str, tuple[list[Slide], list[str]]]:
    """Return what each model is trained on: slides and genes."""
    common, lost = genes[::2], genes[1::2]
    mixed = [lacking(s, lost) if i % 2 else s for i, s in enumerate(slides)]
    return {
        WHOLE: (slides, genes),
        MASKED: (mixed, genes),
        WHOLE_SLIDES: (slides[::2], genes),
        COMMON: (mixed, common),
    }


def measure(
    fold: Fold, genes: list[str], seed: int, options: argparse.Namespace
) -> dict[str, list]:
    """Return the PCC of both halves of the genes, None where a model has not learnt them."""
    read = {
        sample.id: Slide.from_hest(
            options.root, sample.id, embed_dataroot=options.embeddings, encoder=options.encoder
        )
        for sample in (*fold.train, *fold.test)
    }
    found: dict[str, list] = {}
    for name, (slides, learnt) in ways([read[s.id] for s in fold.train], genes).items():
        model = api.train(
            slides,
            learnt,
            settings=accuracy.QUICK if options.quick else {},
            target=options.target,
            seed=seed,
            missing_genes="mask" if name == MASKED else "refuse",
        )
        scores = []
        for slide in (read[sample.id] for sample in fold.test):
            predicted = np.asarray(api.sample(model, slide, device="cpu").X)
            truth = slide.with_target(learnt, options.target).truth
            of_gene = dict(zip(learnt, pearson_per_gene(predicted, truth), strict=True))
            scores.append(
                [[of_gene.get(g, np.nan) for g in half] for half in (genes[::2], genes[1::2])]
            )
        means = np.mean([[mean_of_defined(np.array(h)) for h in s] for s in scores], axis=0)
        found[name] = [None if np.isnan(value) else float(value) for value in means]
    return found


def table_of(found: dict[str, list[list[list[float | None]]]]) -> Table:
    """Return the table: of each model the mean over folds, ± deviation over seeds."""
    table = Table("trained on", *HALVES, title="PCC on test slides")
    for name, seeds in found.items():
        values = np.array(seeds, dtype=float).mean(axis=1)  # [seeds, 2]
        spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(2)
        cells = [
            "" if np.isnan(mean) else f"{mean:.3f} ± {sd:.3f}"
            for mean, sd in zip(values.mean(axis=0), spread, strict=True)
        ]
        table.add_row(name, *cells)
    return table


def main() -> None:
    """Train, score, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--embeddings", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoder", default="efficientnet_lite0")
    parser.add_argument("--gene-list", default="var_50genes.json")
    parser.add_argument("--target", default="log1p")
    parser.add_argument("--folds", type=int, nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that it runs")
    options = parser.parse_args()
    (dataset,) = find_datasets(options.root)
    genes = read_gene_list(options.root / options.gene_list)
    found: dict[str, list] = defaultdict(list)
    console = Console(width=100)
    for seed in range(options.seeds):
        folds = [
            measure(fold, genes, seed, options)
            for fold in dataset.training_folds(options.folds, allow_patient_overlap=True)
        ]
        for name in folds[0]:
            found[name].append([fold[name] for fold in folds])
        console.print(f"seed {seed} done", style="dim")
    console.print(table_of(found))
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "panels.json"
    file.write_text(json.dumps(found, indent=1), encoding="utf-8")
    console.print(f"{file} written")


if __name__ == "__main__":
    main()
