"""Scores of samples, an ensemble of predictions, against the truth; all sums in float64.

Samples are ``[S, N, G]``: S samples of N spots of one slide and G genes, log1p units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.stats import energy_distance

LEVELS = (0.5, 0.8, 0.9)


def crps_per_gene(samples: np.ndarray, truth: np.ndarray, *, fair: bool = False) -> np.ndarray:
    """Return each gene's mean continuous ranked probability score over spots.

    CRPS = E|X − y| − ½ E|X − X′| with X, X′ drawn from the S samples. For one sample it is the
    absolute error. Source: Gneiting & Raftery 2007, eq. 21, as scoringRules' ``crps_sample``.

    Args:
        samples: ``[S, N, G]``.
        truth: ``[N, G]``.
        fair: take X and X′ to be different samples, S >= 2, so that samples of the truth's own
            distribution score best however few they are (Ferro 2014); else few samples score best
            when they are too narrow.

    Returns:
        ``[G]`` in the truth's unit.
    """
    x = np.sort(np.asarray(samples, dtype=np.float64), axis=0)
    n = len(x)
    error = np.abs(x - truth).mean(axis=0)
    # Σ_ij |x_i − x_j| = 2 Σ_i (2i − n − 1) x_(i) for sorted x, i = 1..n
    rank = 2 * np.arange(1, n + 1) - n - 1
    spread = 2 * np.tensordot(rank, x, axes=1) / (n * (n - 1) if fair else n**2)
    return (error - spread / 2).mean(axis=0)


def energy_score(samples: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean energy score of the spots, E‖X − y‖ − ½ E‖X − X′‖ over all genes together.

    Unlike CRPS, it is sensitive to correlations between genes.
    Source: Gneiting & Raftery 2007, eq. 22.

    Args:
        samples: ``[S, N, G]``.
        truth: ``[N, G]``.
    """
    x = np.asarray(samples, dtype=np.float64)
    error = np.mean([np.linalg.norm(sample - truth, axis=1).mean() for sample in x])
    spread = np.mean([np.linalg.norm(x - sample, axis=2).mean() for sample in x])
    return float(error - spread / 2)


def energy_distance_per_gene(samples: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return √(2 E|X − Y| − E|X − X′| − E|Y − Y′|) of each gene's values, ignoring positions.

    Compares the distribution of a gene over the slide with that of all samples pooled.
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
    """Coverage of the truth by central intervals.

    Attributes:
        level: nominal probability of the intervals.
        covered: fraction of true values inside.
        calibrated: the fraction that a perfect ensemble of this size would reach, at most
            (S − 1) / (S + 1).
        width: mean width of the intervals (sharpness; narrower is better at equal coverage).
        covered_per_gene: ``[G]`` fraction inside, gene by gene.
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
    distribution falls with the interval's probability. A value between two samples has a rank
    between theirs; where the end of an interval is too, it is inside with the share of these ranks
    that are. A value that k samples share, such as 0, has k + 1 of them: were all of them inside
    an interval that only touches it, intervals of a discrete distribution would always cover more
    than they say.

    Args:
        samples: ``[S, N, G]``, S >= 2.
        truth: ``[N, G]``.
        levels: probabilities of the intervals.
    """
    result = []
    ranks = (samples < truth).sum(axis=0), (samples <= truth).sum(axis=0) + 1
    for level in levels:
        inside = _probability_inside(*ranks, len(samples), level).mean(axis=0)
        low, high = intervals(samples, level)
        calibrated = max_coverage(level, len(samples))
        width = float((high - low).mean())
        result.append(Coverage(level, float(inside.mean()), calibrated, width, inside))
    return result


def _probability_inside(
    lowest: np.ndarray, highest: np.ndarray, n_samples: int, level: float
) -> np.ndarray:
    """Return the probability that a value of random rank is inside the central interval.

    Args:
        lowest: rank of the value, at least: the number of samples below it.
        highest: at most: one more than the number of samples that are not above it.
        n_samples: S.
        level: probability of the interval.
    """
    ends = np.array([1 - level, 1 + level]) / 2 * (n_samples + 1)
    low, high = np.clip(ends, 1, n_samples)
    shared = np.minimum(highest, high) - np.maximum(lowest, low)
    return np.maximum(shared, 0) / (highest - lowest)


def intervals(samples: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the samples' central intervals.

    Args:
        samples: ``[S, ...]``.
        level: probability of the intervals.

    Returns:
        Lower and upper ends, both ``[...]``.
    """
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(samples, ends, axis=0, method="weibull")
    return low, high


def max_coverage(level: float, n_samples: int) -> float:
    """Return the coverage of a perfect ensemble's interval, at most (S − 1) / (S + 1)."""
    return min(level, (n_samples - 1) / (n_samples + 1))
