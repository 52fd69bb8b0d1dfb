"""Scores of a prediction against the truth; numpy and scipy only, all sums in float64.

Matrices are ``[N, G]``: N spots of one slide, G genes, log1p units. A score that is undefined for
a gene, such as the correlation of a constant, is NaN; :func:`mean_of_defined` and its siblings
skip it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree
from scipy.stats import rankdata

from stflow_graph.stats.panels import genes_by_slides, take_genes

_GENES_AT_A_TIME = 512
_ROWS_AT_A_TIME = 2**14


def is_constant(values: np.ndarray) -> np.ndarray:
    """Return for each column of ``[N, G]`` whether range <= 1e-9 max(1, |mean|), ``[G]`` bool."""
    values = np.asarray(values, dtype=np.float64)
    return np.ptp(values, axis=0) <= 1e-9 * np.maximum(1.0, np.abs(values.mean(axis=0)))


def mean_of_defined(values: np.ndarray) -> float:
    """Return the mean of the finite values; NaN if there are none."""
    defined = _defined(values)
    return float(defined.mean()) if len(defined) else float("nan")


def std_of_defined(values: np.ndarray) -> float:
    """Return the (population) standard deviation of the finite values; NaN if there are none."""
    defined = _defined(values)
    return float(defined.std()) if len(defined) else float("nan")


def quantile_of_defined(values: np.ndarray, probability: float) -> float:
    """Return a quantile of the finite values; NaN if there are none."""
    defined = _defined(values)
    return float(np.quantile(defined, probability)) if len(defined) else float("nan")


def _defined(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    return values[np.isfinite(values)]


def none_if_nan(value: float) -> float | None:
    """Return a float for JSON, None where it is not finite."""
    return float(value) if np.isfinite(value) else None


def pearson_per_gene(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return each gene's Pearson correlation over spots.

    Args:
        predicted: ``[N, G]``.
        truth: ``[N, G]``.

    Returns:
        ``[G]`` float64, NaN where either side is constant over the spots or not measured.
    """
    p, t = (np.asarray(v, dtype=np.float64) for v in (predicted, truth))
    constant = is_constant(p) | is_constant(t)
    p, t = p - p.mean(axis=0), t - t.mean(axis=0)
    scale = np.sqrt((p**2).sum(axis=0) * (t**2).sum(axis=0))
    r = (p * t).sum(axis=0) / np.where(constant, 1.0, scale)
    return np.where(constant, np.nan, np.clip(r, -1.0, 1.0))


def pooled_pearson(predicted: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> np.ndarray:
    """Return each gene's Pearson correlation over the spots of all slides that measure it.

    Args:
        predicted: ``[N_s, G]`` of each slide.
        truth: ``[N_s, G]``, NaN for genes that a slide does not measure.

    Returns:
        ``[G]`` float64, NaN as in :func:`pearson_per_gene`.
    """
    scores = np.full(truth[0].shape[1], np.nan)
    for slides, genes in genes_by_slides(truth):
        pairs = ([take_genes(values[i], genes) for i in slides] for values in (predicted, truth))
        scores[genes] = pearson_per_gene(*map(np.concatenate, pairs))
    return scores


def spearman_per_gene(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return each gene's rank correlation over spots, ties at their mean rank; ``[G]``."""
    constant = is_constant(predicted) | is_constant(truth)
    r = pearson_per_gene(rankdata(predicted, axis=0), rankdata(truth, axis=0))
    return np.where(constant, np.nan, r)


def mse_per_gene(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return each gene's mean squared error over spots, ``[G]``."""
    p, t = (np.asarray(v, dtype=np.float64) for v in (predicted, truth))
    return ((p - t) ** 2).mean(axis=0)


def r2_per_gene(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return each gene's 1 − MSE / variance of the truth, ``[G]``; NaN where the truth is constant.

    The slide's own mean, which no model has access to, would score 0.
    """
    variance = np.asarray(truth, dtype=np.float64).var(axis=0)
    constant = is_constant(truth)
    r2 = 1 - mse_per_gene(predicted, truth) / np.where(constant, 1.0, variance)
    return np.where(constant, np.nan, r2)


def relative_variation_per_gene(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return (var ŷ − var y)² / (var y)² of each gene, ``[G]``; NaN where the truth is constant.

    Its mean over genes is the relative variation distance, 0 for a prediction that varies as much
    as the truth and 1 for a constant one. Source: Stem, ICLR 2025.
    """
    p, t = (np.asarray(v, dtype=np.float64).var(axis=0) for v in (predicted, truth))
    constant = is_constant(truth)
    return np.where(constant, np.nan, ((p - t) / np.where(constant, 1.0, t)) ** 2)


def neighbour_mean(coords: np.ndarray, n_neighbors: int = 6) -> sp.csr_matrix:
    """Return ``[N, N]`` weights that average over a spot's nearest spots, itself excluded.

    The neighbours of a spot are all spots up to the distance of its ``n_neighbors``-th nearest, so
    that ties do not depend on the order of the spots. A slide of one spot has no neighbours.

    Args:
        coords: ``[N, 2]``, any unit.
        n_neighbors: fewer where the slide has fewer other spots.
    """
    n = len(coords)
    k = min(n_neighbors, n - 1)
    if k < 1:
        return sp.csr_matrix((n, n))
    tree = cKDTree(coords)
    reach = tree.query(coords, k=[k + 1])[0][:, 0] * (1 + 1e-9)
    counts, parts = np.zeros(n, np.int64), []
    for start in range(0, n, _ROWS_AT_A_TIME):  # they come as lists of Python's numbers
        some = slice(start, start + _ROWS_AT_A_TIME)
        near = tree.query_ball_point(coords[some], reach[some], return_sorted=True)
        counts[some] = [len(indices) for indices in near]
        parts.append(np.concatenate(near).astype(np.int64))
    rows, columns = np.repeat(np.arange(n), counts), np.concatenate(parts)
    other = rows != columns
    rows, columns = rows[other], columns[other]
    weights = 1 / np.bincount(rows, minlength=n)[rows]
    return sp.csr_matrix((weights, (rows, columns)), shape=(n, n))


def morans_i(values: np.ndarray, weights: sp.csr_matrix) -> np.ndarray:
    """Return Moran's I of each gene, (N / Σw) zᵀWz / zᵀz with z centred.

    Args:
        values: ``[N, G]``.
        weights: ``[N, N]`` W, such as :func:`neighbour_mean`.

    Returns:
        ``[G]``, NaN for constant genes and where no spot has a neighbour.
    """
    total = weights.sum()
    z = np.asarray(values, dtype=np.float64)
    undefined = is_constant(z) | (total == 0)
    z = z - z.mean(axis=0)
    squares = np.where(undefined, 1.0, (z**2).sum(axis=0))
    autocovariance = (z * (weights @ z)).sum(axis=0) * len(z) / (total or 1.0)
    return np.where(undefined, np.nan, autocovariance / squares)


def gene_correlation_distance(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean absolute difference of the gene-gene correlations, from 0 to 2.

    Mean over pairs of genes a < b of |corr(ŷ_a, ŷ_b) − corr(y_a, y_b)|, over genes that are not
    constant on either side; NaN where fewer than two are left.
    """
    kept = ~(is_constant(predicted) | is_constant(truth))
    if kept.sum() < 2:
        return float("nan")
    p, t = (_of_unit_length(v[:, kept].astype(np.float64)) for v in (predicted, truth))
    n_genes, total = p.shape[1], 0.0
    for start in range(0, n_genes, _GENES_AT_A_TIME):  # 20,000 genes have 400 million pairs
        rows = slice(start, start + _GENES_AT_A_TIME)
        total += float(np.abs(p[:, rows].T @ p - t[:, rows].T @ t).sum())
    return total / (n_genes * (n_genes - 1))


def _of_unit_length(values: np.ndarray) -> np.ndarray:
    """Return columns that are centred and of length 1: their products are correlations."""
    centred: np.ndarray = values - values.mean(axis=0)
    centred /= np.sqrt(np.square(centred).sum(axis=0))
    return centred
