"""Scores of the predictions of one slide."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse as sp

from stflow_graph.evaluation.baselines import DARKNESS
from stflow_graph.evaluation.records import Score, SlideEvaluation
from stflow_graph.stats import ensembles, metrics


def score_slide(slide: SlideEvaluation) -> None:
    """Score every prediction of a slide."""
    weights = metrics.neighbour_mean(slide.coords)
    for name, predicted in slide.predictions.items():
        score = _score_pattern(predicted, slide, weights)
        if name != DARKNESS:
            score = _with_units(score, predicted, slide.truth)
        if name in slide.samples:
            score = _with_samples(score, slide.samples[name], slide.truth)
        slide.scores[name] = score


def _score_pattern(predicted: np.ndarray, slide: SlideEvaluation, weights: sp.csr_matrix) -> Score:
    """Return the scores that do not depend on units."""
    moran = metrics.morans_i(predicted, weights)
    per_gene = {
        "pearson": metrics.pearson_per_gene(predicted, slide.truth),
        "spearman": metrics.spearman_per_gene(predicted, slide.truth),
        "moran": moran,
    }
    return Score(per_gene, {"moran_difference": metrics.mean_of_defined(moran - slide.moran)}, [])


def _with_units(score: Score, predicted: np.ndarray, truth: np.ndarray) -> Score:
    per_gene = {
        "mse": metrics.mse_per_gene(predicted, truth),
        "r2": metrics.r2_per_gene(predicted, truth),
        "relative_variation": metrics.relative_variation_per_gene(predicted, truth),
    }
    distance = metrics.gene_correlation_distance(predicted, truth)
    return dataclasses.replace(
        score,
        per_gene=score.per_gene | per_gene,
        overall=score.overall | {"gene_correlation_distance": distance},
    )


def _with_samples(score: Score, samples: np.ndarray, truth: np.ndarray) -> Score:
    per_gene = {
        "crps": ensembles.crps_per_gene(samples, truth),
        "energy_distance": ensembles.energy_distance_per_gene(samples, truth),
    }
    coverage = ensembles.coverage(samples, truth)
    overall = {
        "energy_score": ensembles.energy_score(samples, truth),
        **{f"coverage_{100 * part.level:.0f}": part.covered for part in coverage},
        "width_80": next(part.width for part in coverage if part.level == 0.8),
    }
    return Score(score.per_gene | per_gene, score.overall | overall, coverage)
