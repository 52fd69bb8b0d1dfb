"""Scores of the predictions of one slide."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from stflow_graph.evaluation.baselines import DARKNESS
from stflow_graph.evaluation.records import Score, SlideEvaluation
from stflow_graph.stats import ensembles, metrics, scales


def score_slide(slide: SlideEvaluation) -> None:
    """Score every prediction of a slide."""
    weights = metrics.neighbour_mean(slide.coords)
    for name in slide.predictions:
        slide.scores[name] = _score(slide, name, weights)


def _score(slide: SlideEvaluation, name: str, weights: sp.csr_matrix) -> Score:
    predicted, truth = slide.predictions[name], slide.truth
    moran = metrics.morans_i(predicted, weights)
    per_gene: dict[str, np.ndarray] = {
        "pearson": metrics.pearson_per_gene(predicted, truth),
        "spearman": metrics.spearman_per_gene(predicted, truth),
        "moran": moran,
    }
    overall = {"moran_difference": metrics.mean_of_defined(moran - slide.moran)}
    coverage: list[ensembles.Coverage] = []
    by_scale: list[scales.ScaleCoverage] = []
    if name != DARKNESS:  # which is not in units of expression
        per_gene |= {
            "mse": metrics.mse_per_gene(predicted, truth),
            "r2": metrics.r2_per_gene(predicted, truth),
            "relative_variation": metrics.relative_variation_per_gene(predicted, truth),
        }
        distance = metrics.gene_correlation_distance(predicted, truth)
        overall["gene_correlation_distance"] = distance
    if name in slide.samples:
        samples = slide.samples[name]
        coverage = ensembles.coverage(samples, truth)
        per_gene |= {
            "crps": ensembles.crps_per_gene(samples, truth),
            "energy_distance": ensembles.energy_distance_per_gene(samples, truth),
        }
        overall |= {
            "energy_score": ensembles.energy_score(samples, truth),
            **{f"coverage_{100 * part.level:.0f}": part.covered for part in coverage},
            "width_80": next(part.width for part in coverage if part.level == 0.8),
            **_joint_scores(slide, name, weights),
        }
        by_scale = scales.coverage_by_scale(samples, truth, slide.coords)
    return Score(per_gene, overall, coverage, by_scale)


def _joint_scores(slide: SlideEvaluation, name: str, weights: sp.csr_matrix) -> dict[str, float]:
    """Score samples for how spots and genes vary together."""
    samples, truth = slide.samples[name], slide.truth
    regions = scales.region_mean(slide.coords, min(9, len(slide)))
    moran, of_truth = scales.residual_moran(samples, slide.predictions[name], truth, weights)
    return {
        "region_energy_score": scales.region_energy_score(samples, truth, regions),
        "variogram_score": scales.variogram_score(samples, truth, regions),
        "residual_moran": moran,
        "residual_moran_of_truth": of_truth,
        "residual_moran_difference": moran - of_truth,
        "sample_gene_distance": scales.sample_gene_distance(samples, truth),
    }
