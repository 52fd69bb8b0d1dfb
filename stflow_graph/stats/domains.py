"""Domains: clusters of spots by expression, common to several slides."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

N_COMPONENTS = 20
_N_STARTS = 10
_ROWS = 2**16  # of which distances to all centres are in memory


@dataclasses.dataclass(frozen=True)
class SpotSample:
    """Spots of all slides, as many of each, or all that it has.

    Attributes:
        slides: names.
        slide: ``[n]`` index into ``slides``.
        domain: ``[n]`` from 1 on.
        features: ``[n, P]`` that domains are clustered by.
    """

    slides: Sequence[str]
    slide: np.ndarray
    domain: np.ndarray
    features: np.ndarray


@dataclasses.dataclass(frozen=True)
class Components:
    """Principal components of expression, which is centred and not scaled.

    Predicted genes vary as far as they can be predicted, so the variance of a gene is its weight.

    Attributes:
        mean: ``[G]``.
        axes: ``[P, G]``.
        explained: ``[P]`` fractions of the variance.
    """

    mean: np.ndarray
    axes: np.ndarray
    explained: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray, seed: int = 0) -> Components:
        """Find up to 20 components of ``values [n, G]``; one thread, so that bytes repeat."""
        n_components = min(N_COMPONENTS, *values.shape)
        # the fractions of constants are 0 / 0
        with threadpool_limits(1), np.errstate(invalid="ignore"):
            pca = PCA(n_components, random_state=seed).fit(values.astype(np.float64))
        explained = np.nan_to_num(pca.explained_variance_ratio_)
        return cls(pca.mean_, pca.components_, explained)

    def scores(self, values: np.ndarray) -> np.ndarray:
        """Return the components ``[n, P]`` float32 of ``values [n, G]``."""
        return ((values - self.mean) @ self.axes.T).astype(np.float32)


def smooth(scores: np.ndarray, neighbours: sp.csr_matrix, steps: int) -> np.ndarray:
    """Return scores averaged over a spot and its neighbours, all with the same weight.

    Args:
        scores: ``[N, P]``.
        neighbours: ``[N, N]`` means over neighbours, as ``metrics.neighbour_mean``.
        steps: number of averages, one after the other; 0 changes nothing.
    """
    n_near = np.diff(neighbours.indptr)[:, None]
    for _ in range(steps):
        scores = ((scores + n_near * (neighbours @ scores)) / (n_near + 1)).astype(np.float32)
    return scores


def fit_centres(scores: np.ndarray, n_domains: int, seed: int = 0) -> np.ndarray:
    """Return the centres ``[K, P]`` of k-means, the best of ten starts.

    Args:
        scores: ``[n, P]``.
        n_domains: K.
        seed: of the starts.

    Raises:
        ValueError: fewer than K rows differ.
    """
    n_different = len(np.unique(scores, axis=0))
    if n_different < n_domains:
        raise ValueError(f"{n_domains} domains of {n_different} different spots")
    # threads add up in an order of their own, which changes the last bits
    with threadpool_limits(1):
        model = KMeans(n_domains, n_init=_N_STARTS, random_state=seed).fit(scores.astype(float))
    return np.asarray(model.cluster_centers_)


def nearest_centre(scores: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return the nearest of K centres ``[K, P]`` of each row of ``[N, P]``, ``[N]`` from 0 on."""
    labels = np.empty(len(scores), np.int64)
    squares = (centres**2).sum(axis=1)
    for start in range(0, len(scores), _ROWS):
        some = scores[start : start + _ROWS].astype(np.float64)
        labels[start : start + _ROWS] = np.argmin(squares - 2 * some @ centres.T, axis=1)
    return labels


def ranks_by_size(sizes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return the rank of each domain from 1 on: the largest is 1, of equals by their centres.

    Args:
        sizes: ``[K]`` numbers of spots.
        centres: ``[K, P]``.
    """
    order = np.lexsort((*centres.T[::-1], -np.asarray(sizes)))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(1, len(order) + 1)
    return ranks
