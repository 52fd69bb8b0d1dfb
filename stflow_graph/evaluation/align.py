"""Predictions and truth of a slide brought to the same spots and genes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stflow_graph.data.barcodes import match_barcodes
from stflow_graph.data.coordinates import to_centres
from stflow_graph.data.normalise import to_target
from stflow_graph.errors import BadInput, Failures, count, unquoted
from stflow_graph.evaluation.files import ModelPrediction, Models, read_truth
from stflow_graph.evaluation.records import TRUE_MEAN, SlideEvaluation
from stflow_graph.io.expression import Expression
from stflow_graph.io.gene_names import GeneMatching
from stflow_graph.io.patches import CENTRE
from stflow_graph.stats.metrics import morans_i, neighbour_mean
from stflow_graph.stats.resampling import noise_ceiling, rng_for

if TYPE_CHECKING:
    from anndata import AnnData

_MIN_SPOTS = 3


def align_slides(
    predictions: Mapping[str, Models],
    truth: str | Path | AnnData | Mapping[str, AnnData],
    matching: GeneMatching,
    seed: int,
    failures: Failures,
) -> list[SlideEvaluation]:
    """Read the truth of every slide and align its predictions to it.

    Args:
        predictions: from :func:`files.read_predictions`.
        truth: see ``stages.evaluate``.
        matching: how genes with other names are matched.
        seed: of the thinning behind the noise ceiling.
        failures: takes the slides that fail with an error that is not of this package.

    Raises:
        BadInput: no truth for a slide, too few spots or genes in common, or models that predict
            different spots or genes.
    """
    firsts = {label: next(iter(models.values())) for label, models in predictions.items()}
    names = list(dict.fromkeys(first.slide for first in firsts.values()))
    if len(names) > 1 and not isinstance(truth, str | Path | Mapping):
        raise BadInput("truth", "slide", unquoted(f"one for slides {names[:3]}"), "slide to counts")
    slides = []
    for label, first in firsts.items():
        with failures.foreign_of(label):
            expression, file, digest = read_truth(truth, first, matching)
            slide = _align(label, predictions[label], expression, file, seed)
            slides.append(dataclasses.replace(slide, truth_sha256=digest))
    return slides


def _align(
    label: str, models: Models, expression: Expression, truth_file: str, seed: int
) -> SlideEvaluation:
    first = next(iter(models.values()))
    prediction, target = first.prediction, first.text("target")
    origin = truth_file or f"truth of {first.slide}"
    rows, truth_rows = match_barcodes(prediction.barcodes, expression.barcodes, first.path, origin)
    matched = [prediction.barcodes[i] for i in rows]
    n_unpredicted = len(expression.barcodes) - len(rows)
    expression, scored, note = _without_observed(expression, matched, models)
    n_observed = len(rows) - int(scored.sum())
    rows, truth_rows = rows[scored], truth_rows[scored]
    if not (expression.genes and len(rows)):
        found = unquoted("no spot or gene that was not measured")
        raise BadInput(first.path, "observed", found, "predictions to score")
    if len(rows) < _MIN_SPOTS:
        found = unquoted(f"{count(len(rows), 'spot')} with a truth")
        raise BadInput(first.path, "barcodes", found, f"at least {_MIN_SPOTS} to correlate")
    counts, total = expression.counts[truth_rows], expression.total[truth_rows]
    y = to_target(counts, total, target)
    coords = prediction.coords[rows]
    if expression.coords is not None:
        centres = expression.coords[truth_rows]
        coords = to_centres(coords, centres, file=first.path, other=origin, stated=CENTRE).coords
    barcodes = [prediction.barcodes[i] for i in rows]
    means, samples = _values(models, barcodes, expression.genes)
    if expression.true_mean is not None and target == "log1p":
        means[TRUE_MEAN] = expression.true_mean[truth_rows]
    fold = prediction.provenance.get("fold")
    trained_on = {name for item in models.values() for name in item.train_slides}
    return SlideEvaluation(
        id=first.slide,
        name=label,
        dataset=first.key[0],
        fold=fold if isinstance(fold, int) else None,
        target=target,
        genes=expression.genes,
        barcodes=barcodes,
        coords=coords,
        um_per_px=expression.um_per_px,
        truth=y,
        truth_file=truth_file,
        ceiling=_ceiling(counts, total, target, rng_for(seed, label, "thinning")),
        moran=morans_i(y, neighbour_mean(coords)),
        n_predicted=len(prediction.barcodes) - n_observed,
        n_unpredicted=n_unpredicted,
        held_out=first.slide not in trained_on if trained_on else None,
        predictions=means,
        samples=samples,
        scores={},
        provenance={name: item.provenance for name, item in models.items()},
        absent_genes=expression.absent,
        matched_genes=expression.matched,
        observed=note,
    )


def _without_observed(
    expression: Expression, barcodes: Sequence[str], models: Models
) -> tuple[Expression, np.ndarray, str]:
    """Leave out what was measured: it is no prediction.

    For each model that was given measured spots these are left out, or the measured genes,
    whichever leaves more to score.

    Returns:
        The expression of the genes that are scored, which of the spots ``[N]`` are, and a sentence.
    """
    spots, genes = np.ones(len(barcodes), bool), np.ones(len(expression.genes), bool)
    for item in models.values():
        prediction = item.prediction
        if prediction.observed is None:
            continue
        seen = [
            {name for name, flag in zip(names, flags, strict=True) if flag}
            for names, flags in zip(
                (prediction.barcodes, prediction.genes), prediction.observed, strict=True
            )
        ]
        other_spots = spots & [name not in seen[0] for name in barcodes]
        other_genes = genes & [name not in seen[1] for name in expression.genes]
        if other_spots.sum() * genes.sum() >= spots.sum() * other_genes.sum():
            spots = other_spots
        else:
            genes = other_genes
    counts = {"spots": int((~spots).sum()), "genes": int((~genes).sum())}
    parts = " and ".join(f"{n} measured {name}" for name, n in counts.items() if n)
    note = f"{parts} informed the others and are not scored" if parts else ""
    if not counts["genes"]:
        return expression, spots, note
    mean = expression.true_mean
    left = dataclasses.replace(
        expression,
        counts=expression.counts[:, genes],
        genes=[name for name, kept in zip(expression.genes, genes, strict=True) if kept],
        true_mean=None if mean is None else mean[:, genes],
    )
    return left, spots, note


def _ceiling(
    counts: sp.csr_matrix, total: np.ndarray, target: str, rng: np.random.Generator
) -> np.ndarray:
    return noise_ceiling(
        counts.toarray(), total, lambda half, n: to_target(sp.csr_matrix(half), n, target), rng
    )


def _values(
    models: Models, barcodes: Sequence[str], genes: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return each model's mean ``[N, G]`` and samples ``[S, N, G]`` of these spots and genes."""
    first = next(iter(models.values()))
    means, samples = {}, {}
    for name, item in models.items():
        _check_same(item, first)
        prediction = item.prediction
        rows, columns = np.ix_(
            pd.Index(prediction.barcodes).get_indexer(barcodes),
            pd.Index(prediction.genes).get_indexer(genes),
        )
        means[name] = prediction.mean[rows, columns]
        if prediction.samples is not None and len(prediction.samples) > 1:
            samples[name] = prediction.samples[:, rows, columns]
    return means, samples


def _check_same(item: ModelPrediction, first: ModelPrediction) -> None:
    """Refuse a prediction of other spots or genes than those of the first."""
    here, there = item.prediction, first.prediction
    differing = sorted(set(here.genes) ^ set(there.genes))
    if differing:
        found = unquoted(f"{len(differing)} others, such as {differing[:3]}")
        raise BadInput(item.path, "var_names", found, f"the genes of {first.path}")
    if set(here.barcodes) != set(there.barcodes):
        present = set(here.barcodes)
        absent = [barcode for barcode in there.barcodes if barcode not in present]
        found = unquoted(
            f"{count(len(present), 'spot')}, {len(absent)} absent, such as {absent[:3]}"
        )
        expected = f"the {count(len(there.barcodes), 'spot')} of {first.path}"
        raise BadInput(item.path, "obs_names", found, expected)
