"""Scores of samples as joint draws: means over regions, neighbouring spots and genes together.

Samples whose spots are independent of each other can be calibrated spot by spot and still be
wrong about every region, whose mean they average to certainty. Samples are ``[S, N, G]``: S
samples of N spots of one slide and G genes, log1p units; all sums in float64.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

from stflow_graph.stats.ensembles import Coverage, coverage
from stflow_graph.stats.metrics import gene_correlation_distance, mean_of_defined, morans_i

REGIONS = (1, 9, 25, 64)  # spots


@dataclasses.dataclass(frozen=True)
class ScaleCoverage:
    """Coverage of the means over regions of one size by the samples' intervals.

    Attributes:
        spots: spots of a region, N for the whole slide.
        whole: whether the region is the slide.
        gene_mean: whether it is the mean over all genes that is covered, instead of each gene.
        raw: of the means.
        centred: of the means less the slide's mean, of truth and of each sample; empty for the
            slide itself.
    """

    spots: int
    whole: bool
    gene_mean: bool
    raw: list[Coverage]
    centred: list[Coverage]


def region_mean(coords: np.ndarray, n_spots: int) -> sp.csr_matrix:
    """Return ``[N, N]`` weights that average over the ``n_spots`` nearest spots, itself included.

    Args:
        coords: ``[N, 2]``, any unit. Of spots at equal distances, those first in order are taken.
        n_spots: at most N.
    """
    n = len(coords)
    near = cKDTree(coords).query(coords, k=np.arange(1, n_spots + 1))[1]
    rows = np.repeat(np.arange(n), n_spots)
    weights = np.full(n * n_spots, 1 / n_spots)
    return sp.csr_matrix((weights, (rows, near.reshape(-1))), shape=(n, n))


def coverage_by_scale(
    samples: np.ndarray, truth: np.ndarray, coords: np.ndarray
) -> list[ScaleCoverage]:
    """Return the coverage of means over the 1, 9, 25 and 64 nearest spots and over the slide.

    Every spot is the middle of a region of each size that the slide has room for. Coverage is as
    in ``ensembles.coverage``, over all regions and genes, and once more of the mean over genes.

    Args:
        samples: ``[S, N, G]``, S >= 2.
        truth: ``[N, G]``.
        coords: ``[N, 2]``, any unit.
    """
    n, x, y = len(truth), samples.astype(np.float64), truth.astype(np.float64)
    # the level is the slide's, not the mean over regions, in which spots count unequally
    level, levels = y.mean(axis=0), x.mean(axis=1, keepdims=True)
    found = []
    for spots in [size for size in REGIONS if size < n] + [n]:
        averaging = region_mean(coords, spots) if spots < n else np.full((1, n), 1 / n)
        of_samples, of_truth = np.stack([averaging @ sample for sample in x]), averaging @ y
        for gene_mean in (False, True):
            parts = [of_samples, of_truth, levels, level]
            if gene_mean:
                parts = [part.mean(axis=-1, keepdims=True) for part in parts]
            centred = _centred_coverage(*parts) if spots < n else []
            found.append(ScaleCoverage(spots, spots == n, gene_mean, coverage(*parts[:2]), centred))
    return found


def _centred_coverage(
    samples: np.ndarray, truth: np.ndarray, sample_levels: np.ndarray, level: np.ndarray
) -> list[Coverage]:
    """Return the coverage of what remains without the slides' levels.

    Values that are equal, such as 0, count as equal without their levels too.

    Args:
        samples: ``[S, R, G]``, S >= 2.
        truth: ``[R, G]``.
        sample_levels: ``[S, 1, G]``.
        level: ``[G]`` of the truth.
    """
    remainder = truth - level
    return coverage(np.where(samples == truth, remainder, samples - sample_levels), remainder)


def region_energy_score(samples: np.ndarray, truth: np.ndarray, regions: sp.csr_matrix) -> float:
    """Return the mean of :func:`region_energy_scores` over regions and genes."""
    return float(region_energy_scores(samples, truth, regions).mean())


def region_energy_scores(
    samples: np.ndarray, truth: np.ndarray, regions: sp.csr_matrix
) -> np.ndarray:
    """Return the energy score of each region, of the values of a gene in its spots, ``[R]``.

    E‖X − y‖ − ½ E‖X − X′‖ with ‖·‖ the root mean square over the region's spots, mean over
    genes. Unlike CRPS, it is sensitive to correlations between neighbouring spots.
    Source: Gneiting & Raftery 2007, eq. 22.

    Args:
        samples: ``[S, N, G]``.
        truth: ``[N, G]``.
        regions: ``[R, N]`` weights, from :func:`region_mean`.
    """
    x = samples.astype(np.float64)

    def distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.sqrt((regions @ np.square(one - other)).clip(min=0)).mean(axis=1)
        return found

    error = np.mean([distance(sample, truth) for sample in x], axis=0)
    pairs = [distance(one, other) for one, other in itertools.combinations(x, 2)]
    score: np.ndarray = error - np.sum(pairs, axis=0) / len(x) ** 2  # a pair is two of the terms
    return score


def variogram_score(samples: np.ndarray, truth: np.ndarray, near: sp.csr_matrix) -> float:
    """Return the variogram score of order ½ over pairs of neighbouring spots.

    Mean over pairs i, j and genes of (|y_i − y_j|^½ − E|X_i − X_j|^½)². It is sensitive to
    how strongly neighbouring spots vary together, and blind to a common bias.
    Source: Scheuerer & Hamill 2015, eq. 12, with equal weights.

    Args:
        samples: ``[S, N, G]``.
        truth: ``[N, G]``.
        near: ``[N, N]``, whose entries off the diagonal are the pairs; others are zero.
    """
    i, j = near.nonzero()
    i, j = i[i != j], j[i != j]
    if not len(i):
        return float("nan")
    observed = np.sqrt(np.abs(truth[i].astype(np.float64) - truth[j]))
    expected = np.zeros_like(observed)
    for sample in samples:
        expected += np.sqrt(np.abs(sample[i].astype(np.float64) - sample[j])) / len(samples)
    return float(np.square(observed - expected).mean())


def residual_moran(
    samples: np.ndarray, mean: np.ndarray, truth: np.ndarray, weights: sp.csr_matrix
) -> tuple[float, float]:
    """Return Moran's I of the residuals of the samples and of the truth, means over genes.

    Residuals are about the predicted mean. Independent spots have 0; where the truth's residuals
    are similar in neighbouring spots, those of samples should be as similar.

    Args:
        samples: ``[S, N, G]``.
        mean: ``[N, G]`` the prediction.
        truth: ``[N, G]``.
        weights: ``[N, N]``, such as ``metrics.neighbour_mean``.
    """
    of_samples = [mean_of_defined(morans_i(sample - mean, weights)) for sample in samples]
    return float(np.mean(of_samples)), mean_of_defined(morans_i(truth - mean, weights))


def sample_gene_distance(samples: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean over samples of their gene-gene correlation distance to the truth."""
    return float(np.mean([gene_correlation_distance(sample, truth) for sample in samples]))
