"""Noise ceiling by thinning of counts, and confidence intervals by bootstrap over spots."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from stflow_graph.stats.metrics import is_constant, mean_of_defined, pearson_per_gene

_MAX_WEIGHTS = 2**24  # bootstrap weights in memory at once, 128 MB


def noise_ceiling(
    counts: np.ndarray,
    total: np.ndarray,
    transform: Callable[[np.ndarray, np.ndarray], np.ndarray],
    rng: np.random.Generator,
    n_repeats: int = 10,
) -> np.ndarray:
    """Return the correlation with the measured counts that a perfect model could reach.

    Binomial thinning splits each count into two independent measurements at half the depth. Their
    correlation r (mean over repeats) implies the reliability 2r / (1 + r) of the full count
    (Spearman 1910, Brown 1910); the ceiling is its square root.

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

    All predictions share the resamples, so that their differences have intervals too.

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
    """Centre and scale each column, so that one threshold detects constants."""
    values = np.asarray(values, dtype=np.float64)
    constant = is_constant(values)
    values = np.where(constant, 0.0, values - values.mean(axis=0))
    return values / np.where(constant, 1.0, np.ptp(values, axis=0))


def _moments(weights: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = weights @ values
    variance = weights @ values**2 - mean**2
    # the variance of a constant resample is rounding error
    return mean, np.where(variance > 1e-12, variance, 0.0)


def _resamples(n: int, n_resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield weights ``[B, N]`` of resamples of N spots, in chunks that fit in memory."""
    chunk = max(1, _MAX_WEIGHTS // n)
    for start in range(0, n_resamples, chunk):
        size = min(chunk, n_resamples - start)
        drawn = (np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(size))
        yield np.stack(list(drawn)) / n


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the central interval of the finite bootstrap values; NaN if there are none."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def rng_for(seed: int, slide: str, purpose: str) -> np.random.Generator:
    """Return a generator keyed by slide and purpose, so that slides do not affect each other."""
    return np.random.default_rng([seed, zlib.crc32(f"{purpose}:{slide}".encode())])
