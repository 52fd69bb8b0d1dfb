"""Scores of a prediction against the truth; numpy and scipy only, all sums in float64.

Matrices are ``[N, G]``: N spots of one slide, G genes, log1p units. A score that a gene does not
define, such as the correlation of a constant, is NaN; :func:`mean_of_defined` leaves it out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree
from scipy.stats import energy_distance, rankdata

LEVELS = (0.5, 0.8, 0.9)
_MOST_WEIGHTS = 2**24  # bootstrap weights held at once, 128 MB


def is_constant(values: np.ndarray) -> np.ndarray:
    """Return for each column of ``[N, G]`` whether range <= 1e-9 max(1, |mean|), ``[G]`` bool."""
    values = np.asarray(values, dtype=np.float64)
    return np.ptp(values, axis=0) <= 1e-9 * np.maximum(1.0, np.abs(values.mean(axis=0)))


def mean_of_defined(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    values = np.asarray(values, dtype=np.float64)
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def pearson_per_gene(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return each gene's Pearson correlation over spots.

    Args:
        predicted: ``[N, G]``.
        truth: ``[N, G]``.

    Returns:
        ``[G]`` float64, NaN where either side is constant over the spots.
    """
    p, t = (np.asarray(v, dtype=np.float64) for v in (predicted, truth))
    constant = is_constant(p) | is_constant(t)
    p, t = p - p.mean(axis=0), t - t.mean(axis=0)
    scale = np.sqrt((p**2).sum(axis=0) * (t**2).sum(axis=0))
    r = (p * t).sum(axis=0) / np.where(constant, 1.0, scale)
    return np.where(constant, np.nan, np.clip(r, -1.0, 1.0))


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

    0 is what the slide's own mean would reach, which a model does not know.
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
    """Return ``[N, N]`` weights that average over a spot's nearest spots, itself left out.

    A spot's neighbours are all that are no farther than its ``n_neighbors``-th nearest, so that
    the order of the spots does not decide among ties. A slide of one spot has no neighbours.

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
    near = tree.query_ball_point(coords, reach, return_sorted=True)
    rows = np.repeat(np.arange(n), [len(each) for each in near])
    columns = np.concatenate(near).astype(np.int64)
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
    pairs = np.triu_indices(int(kept.sum()), k=1)
    p, t = (np.corrcoef(v[:, kept].astype(np.float64), rowvar=False) for v in (predicted, truth))
    return float(np.abs(p - t)[pairs].mean())


def crps_per_gene(samples: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return each gene's mean continuous ranked probability score over spots.

    CRPS = E|X − y| − ½ E|X − X′| with X, X′ drawn from the S samples. For one sample it is the
    absolute error. Source: Gneiting & Raftery 2007, eq. 21, as scoringRules' ``crps_sample``.

    Args:
        samples: ``[S, N, G]``.
        truth: ``[N, G]``.

    Returns:
        ``[G]`` in the truth's unit.
    """
    x = np.sort(np.asarray(samples, dtype=np.float64), axis=0)
    n = len(x)
    error = np.abs(x - truth).mean(axis=0)
    # Σ_ij |x_i − x_j| = 2 Σ_i (2i − n − 1) x_(i) for sorted x, i = 1..n
    rank = 2 * np.arange(1, n + 1) - n - 1
    spread = 2 * np.tensordot(rank, x, axes=1) / n**2
    return (error - spread / 2).mean(axis=0)


def energy_score(samples: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean energy score of the spots, E‖X − y‖ − ½ E‖X − X′‖ over all genes together.

    Unlike CRPS it sees whether genes vary together. Source: Gneiting & Raftery 2007, eq. 22.

    Args:
        samples: ``[S, N, G]``.
        truth: ``[N, G]``.
    """
    x = np.asarray(samples, dtype=np.float64)
    error = np.mean([np.linalg.norm(one - truth, axis=1).mean() for one in x])
    spread = np.mean([np.linalg.norm(x - one, axis=2).mean() for one in x])
    return float(error - spread / 2)


def energy_distance_per_gene(samples: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return √(2 E|X − Y| − E|X − X′| − E|Y − Y′|) of each gene's values, wherever they lie.

    It compares the distribution of a gene over the slide with that of all samples pooled.
    Source: Székely & Rizzo 2013.

    Args:
        samples: ``[S, N, G]``.
        truth: ``[N, G]``.

    Returns:
        ``[G]``.
    """
    pooled = np.asarray(samples, dtype=np.float64).reshape(-1, truth.shape[1])
    return np.array([energy_distance(pooled[:, g], truth[:, g]) for g in range(truth.shape[1])])


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How often central intervals hold the truth.

    Attributes:
        level: the interval's nominal probability.
        covered: share of the truth's values inside.
        calibrated: the share that a perfect ensemble of as many samples would reach: S samples
            span no more than (S − 1) / (S + 1).
        width: mean width of the intervals, their sharpness: of two that cover the same the
            narrower says more.
        covered_per_gene: ``[G]`` the share inside for each gene alone.
    """

    level: float
    covered: float
    calibrated: float
    width: float
    covered_per_gene: np.ndarray


def coverage(
    samples: np.ndarray, truth: np.ndarray, levels: Sequence[float] = LEVELS
) -> list[Coverage]:
    """Return coverage and width of the samples' central intervals over all spots and genes.

    The ends are quantiles at rank p (S + 1), between which a further draw of the same
    distribution falls with the interval's probability. An end whose rank is no whole number lies
    at the sample below it with one probability and at the sample above with the other; a point
    between the two would leave out values that many samples share, such as 0.

    Args:
        samples: ``[S, N, G]``, S >= 2.
        truth: ``[N, G]``.
        levels: probabilities of the intervals.
    """
    result, ordered = [], np.sort(samples, axis=0)
    for level in levels:
        inside = _share_inside(ordered, truth, level).mean(axis=0)
        low, high = intervals(samples, level)
        most = most_coverage(level, len(samples))
        width = float((high - low).mean())
        result.append(Coverage(level, float(inside.mean()), most, width, inside))
    return result


def _share_inside(ordered: np.ndarray, truth: np.ndarray, level: float) -> np.ndarray:
    """Return the probability that the interval of samples in ascending order holds the truth."""
    n = len(ordered)
    share = np.zeros(truth.shape)
    for end, sign in (((1 - level) / 2, 1), ((1 + level) / 2, -1)):
        rank = float(np.clip(round(end * (n + 1), 9), 1, n))
        for at, weight in ((int(rank), 1 - rank % 1), (int(rank) + 1, rank % 1)):
            if weight:
                sample = ordered[at - 1]
                share += sign * weight * (sample <= truth if sign > 0 else sample < truth)
    return share


def intervals(samples: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the samples' central intervals, both of the samples' shape but the first.

    Args:
        samples: ``[S, ...]``.
        level: probability of the intervals.
    """
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(samples, ends, axis=0, method="weibull")
    return low, high


def most_coverage(level: float, n_samples: int) -> float:
    """Return the coverage of a perfect ensemble's interval: no more than (S − 1) / (S + 1)."""
    return min(level, (n_samples - 1) / (n_samples + 1))


def noise_ceiling(
    counts: np.ndarray,
    total: np.ndarray,
    transform: Callable[[np.ndarray, np.ndarray], np.ndarray],
    rng: np.random.Generator,
    n_repeats: int = 10,
) -> np.ndarray:
    """Return the correlation with the measured counts that a perfect model could reach.

    Each count is split in two halves by binomial thinning, which are independent measurements at
    half the depth. From the halves' correlation r (mean over repeats), the whole has reliability
    2r / (1 + r) (Spearman 1910, Brown 1910), and the ceiling is its square root.

    Args:
        counts: ``[N, G]`` whole numbers.
        total: ``[N]`` counts of each spot over all genes measured.
        transform: counts ``[N, G]`` and totals ``[N]`` to what the model predicts.
        rng: source of the thinning.
        n_repeats: splits.

    Returns:
        ``[G]`` from 0 to 1; NaN where a half was constant in every split.
    """
    counts = np.asarray(counts, dtype=np.int64)
    beyond = np.asarray(np.rint(total), dtype=np.int64) - counts.sum(axis=1)
    r = np.full((n_repeats, counts.shape[1]), np.nan)
    for repeat in range(n_repeats):
        half = rng.binomial(counts, 0.5)
        half_total = half.sum(axis=1) + rng.binomial(beyond, 0.5)
        r[repeat] = pearson_per_gene(
            transform(half, half_total), transform(counts - half, total - half_total)
        )
    mean = np.array([mean_of_defined(column) for column in r.T]).clip(min=0)
    return np.sqrt(2 * mean / (1 + mean))


def bootstrap_pearson(
    predictions: Mapping[str, np.ndarray],
    truth: np.ndarray,
    rng: np.random.Generator,
    n_resamples: int = 1000,
) -> dict[str, np.ndarray]:
    """Return the mean over genes of the Pearson correlation in resamples of the spots.

    All predictions see the same resamples, so that their differences have intervals too.

    Args:
        predictions: name to ``[N, G]``.
        truth: ``[N, G]``.
        rng: source of the resamples.
        n_resamples: B.

    Returns:
        Name to ``[B]``; NaN where no gene has a correlation in a resample.
    """
    t = _centred(truth)
    centred = {name: _centred(values) for name, values in predictions.items()}
    means: dict[str, list[np.ndarray]] = {name: [] for name in predictions}
    for weights in _resamples(len(t), n_resamples, rng):
        mean_t, var_t = _moments(weights, t)
        for name, p in centred.items():
            mean_p, var_p = _moments(weights, p)
            covariance = weights @ (p * t) - mean_p * mean_t
            defined = (var_t > 0) & (var_p > 0)
            r = covariance / np.sqrt(np.where(defined, var_t * var_p, 1.0))
            n_defined = defined.sum(axis=1)
            mean = np.where(defined, r, 0.0).sum(axis=1) / np.maximum(n_defined, 1)
            means[name].append(np.where(n_defined > 0, mean, np.nan))
    return {name: np.concatenate(parts) for name, parts in means.items()}


def _centred(values: np.ndarray) -> np.ndarray:
    """Centre and scale each column, so that one threshold tells what is constant."""
    values = np.asarray(values, dtype=np.float64)
    constant = is_constant(values)
    values = np.where(constant, 0.0, values - values.mean(axis=0))
    return values / np.where(constant, 1.0, np.ptp(values, axis=0))


def _moments(weights: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = weights @ values
    variance = weights @ values**2 - mean**2
    # of a constant resample only rounding is left
    return mean, np.where(variance > 1e-12, variance, 0.0)


def _resamples(n: int, n_resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Give weights ``[B, N]`` of resamples of N spots, in chunks that fit in memory."""
    chunk = max(1, _MOST_WEIGHTS // n)
    for start in range(0, n_resamples, chunk):
        size = min(chunk, n_resamples - start)
        drawn = (np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(size))
        yield np.stack(list(drawn)) / n


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the central interval of bootstrap values, NaN left out; NaN if none is defined."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def none_if_nan(value: float) -> float | None:
    """Return a float for JSON, None where it is not finite."""
    return float(value) if np.isfinite(value) else None
