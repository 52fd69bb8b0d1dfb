"""The table over slides: a row per model, baseline and reference, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stflow_graph.evaluation.baselines import NAMES
from stflow_graph.evaluation.records import (
    CEILING,
    TRUE_MEAN,
    Kind,
    Row,
    SlideEvaluation,
    averaged_slides,
)
from stflow_graph.stats.metrics import mean_of_defined, pooled_pearson
from stflow_graph.stats.resampling import bootstrap_pearson, interval, rng_for

POOLED = "pearson_pooled"
# metric: heading, description
MEAN_MEASURES = {
    POOLED: ("pooled PCC", "over the spots of all test slides of a fold together"),
    "spearman": ("Spearman", "rank correlation over spots"),
    "mse": ("MSE", "mean squared error"),
    "r2": ("R²", "1 − MSE / variance of the truth; 0 is the slide's own mean"),
    "moran_difference": ("Δ Moran", "Moran's I of prediction − truth; above 0 is too smooth"),
    "relative_variation": ("RVD", "relative variation distance; 1 is a constant prediction"),
    "gene_correlation_distance": ("gene-gene", "mean difference of gene-gene correlations"),
}
SAMPLE_MEASURES = {
    "crps": ("CRPS", "continuous ranked probability score of the samples"),
    "energy_score": ("energy", "energy score of the samples, all genes together"),
    "region_energy_score": ("energy 9", "energy score of the samples over regions of 9 spots"),
    "variogram_score": ("variogram", "variogram score of the samples over neighbouring spots"),
    "residual_moran_difference": ("Δ residual", "Moran's I of residuals, samples − truth"),
    "sample_gene_distance": ("gene-gene S", "as gene-gene, of single samples"),
    "energy_distance": ("energy dist.", "between the distributions of values over a slide"),
    "coverage_50": ("in 50%", "share of the truth inside the samples' 50% interval"),
    "coverage_80": ("in 80%", "the same, 80%"),
    "coverage_90": ("in 90%", "the same, 90%"),
    "width_80": ("80% width", "mean width of the 80% interval; narrower is sharper"),
}
MEASURES = MEAN_MEASURES | SAMPLE_MEASURES


def make_table(
    slides: Sequence[SlideEvaluation], n_bootstrap: int, seed: int
) -> tuple[list[Row], str | None]:
    """Return the rows, models first, and the name of the best baseline.

    Scores of all slides are kept one by one; means, intervals and the best baseline are of
    ``records.averaged_slides``.
    """
    kinds, averaged = _kinds(slides), averaged_slides(slides)
    means = {name: _over_slides(averaged, name, "pearson") for name in kinds}
    resampled = _bootstrap(averaged, list(kinds), n_bootstrap, seed)
    ranked = [n for n in kinds if kinds[n] == "baseline" and np.isfinite(means[n])]
    best = max(ranked, key=lambda name: means[name]) if ranked else None
    ceilings = {slide.name: mean_of_defined(slide.ceiling) for slide in slides}
    ceiling = float(np.mean([ceilings[slide.name] for slide in averaged]))
    rows = []
    for name, kind in kinds.items():
        difference, difference_interval = None, None
        if best is not None and kind == "model":
            difference = means[name] - means[best]
            difference_interval = interval(resampled[name] - resampled[best])
        row = Row(
            name,
            kind,
            {s.name: s.scores[name].mean("pearson") for s in slides if name in s.scores},
            means[name],
            interval(resampled[name]),
            difference,
            difference_interval,
            means[name] / ceiling if ceiling > 0 else float("nan"),
            {metric: _over_slides(averaged, name, metric) for metric in MEASURES},
        )
        rows.append(row)
    undefined = (float("nan"), float("nan"))
    rows.append(Row(CEILING, "reference", ceilings, ceiling, undefined, None, None, 1.0, {}))
    return rows, best


def defined_measures(
    rows: Sequence[Row], measures: Mapping[str, tuple[str, str]]
) -> tuple[list[Row], dict[str, tuple[str, str]]]:
    """Return the rows that have any of the measures, and the measures that any row has."""

    def defined(row: Row, metric: str) -> bool:
        return bool(np.isfinite(row.others.get(metric, np.nan)))

    some = [row for row in rows if any(defined(row, metric) for metric in measures)]
    texts = {m: text for m, text in measures.items() if any(defined(row, m) for row in some)}
    return some, texts


def _kinds(slides: Sequence[SlideEvaluation]) -> dict[str, Kind]:
    """Return the kind of each row, in the table's order."""
    names = list(dict.fromkeys(name for slide in slides for name in slide.scores))
    models = {name for slide in slides for name in slide.provenance}
    kinds: dict[str, Kind] = {name: "model" for name in names if name in models}
    kinds |= {name: "baseline" for name in names if name in NAMES}
    return kinds | {name: "reference" for name in names if name == TRUE_MEAN}


def _over_slides(slides: Sequence[SlideEvaluation], name: str, metric: str) -> float:
    """Return the mean over slides; NaN unless all have it, as other means are not comparable."""
    if any(name not in slide.scores for slide in slides):
        return float("nan")
    if metric == POOLED:
        return _pooled(slides, name)
    return float(np.mean([slide.scores[name].mean(metric) for slide in slides]))


def _pooled(slides: Sequence[SlideEvaluation], name: str) -> float:
    """Return HEST-bench's score: the spots of a fold's test slides together, mean over folds.

    A gene is scored over the slides that measure it.
    """
    folds: dict[tuple[Any, ...], list[SlideEvaluation]] = {}
    for slide in slides:
        genes = sorted([*slide.genes, *slide.absent_genes])
        folds.setdefault((slide.dataset, slide.fold, *genes), []).append(slide)
    pooled = []
    for fold in folds.values():
        genes = list(dict.fromkeys(gene for slide in fold for gene in slide.genes))
        predicted = [_columns(slide, slide.predictions[name], genes) for slide in fold]
        truth = [_columns(slide, slide.truth, genes) for slide in fold]
        pooled.append(mean_of_defined(pooled_pearson(predicted, truth)))
    return float(np.mean(pooled))


def _columns(slide: SlideEvaluation, values: np.ndarray, genes: Sequence[str]) -> np.ndarray:
    """Return the columns of genes of a slide's ``[N, G]``, NaN where the truth lacks the gene."""
    if slide.genes == genes:
        return values
    columns = pd.Index(slide.genes).get_indexer(genes)
    return np.where(columns >= 0, values[:, columns], np.nan)


def _bootstrap(
    slides: Sequence[SlideEvaluation], names: Sequence[str], n_bootstrap: int, seed: int
) -> dict[str, np.ndarray]:
    """Return each row's mean over slides in resamples of the spots within slides, ``[B]``."""
    total = {name: np.zeros(n_bootstrap) for name in names}
    for slide in slides:
        rng = rng_for(seed, slide.name, "bootstrap")
        resampled = bootstrap_pearson(slide.predictions, slide.truth, rng, n_bootstrap)
        for name in names:
            total[name] += resampled.get(name, np.nan)
    return {name: values / len(slides) for name, values in total.items()}
