"""Directions in which genes vary together, over slides that may lack some of the genes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from stflow_graph.nn.eigenvectors import DENSE, leading_eigenvectors
from stflow_graph.nn.expression_field import RANK


def gene_directions(
    values: Sequence[np.ndarray], measured: np.ndarray, *, of_unit_variance: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the leading eigenvectors ``[G, R]`` of the slides' mean correlation of genes.

    And the fraction ``[S, R]`` of the variance along each that the genes of a slide have together,
    1 for a slide that measures all. Of each vector the entry of largest absolute value is positive.

    Args:
        values: of each slide ``[N, G]``, 0 for genes that it does not measure.
        measured: ``[S, G]``.
        of_unit_variance: take covariances, with variances of 1 whatever the values say.
    """
    n_genes = values[0].shape[1]
    centred = [z - z.mean(axis=0) for z in values]
    if not of_unit_variance:
        centred = [z / np.maximum(z.std(axis=0), 1e-9) for z in centred]
    correlated = _mean_correlation(centred, measured)
    directions = leading_eigenvectors(correlated, n_genes, RANK)
    # an eigenvector's sign is arbitrary: rounding would decide which sample a seed gives
    largest = np.abs(directions).argmax(axis=0)[None]
    directions *= np.copysign(1.0, np.take_along_axis(directions, largest, axis=0))
    seen = np.ones((len(values), directions.shape[1]))
    if measured.all():
        return directions, seen
    whole = (directions * correlated(directions)).sum(axis=0)
    for number in np.flatnonzero(~measured.all(axis=1)):
        part = directions * measured[number][:, None]
        share = (part * correlated(part)).sum(axis=0) / np.maximum(whole, 1e-9)
        # directions in which genes hardly vary together are shared out by their loadings
        share = np.where(whole > 1e-3, share, np.square(part).sum(axis=0))
        seen[number] = np.clip(share, 0, 1)
    return directions, seen


def _mean_correlation(
    centred: Sequence[np.ndarray], measured: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Return the product with the slides' mean correlation of genes, ``[G, ...] -> [G, ...]``.

    The mean of a pair of genes is over the slides that measure both; it is 0 if there are none.

    Args:
        centred: of each slide ``[N, G]``, of mean 0.
        measured: ``[S, G]``.
    """
    missing = [
        (1 - np.square(z).mean(axis=0)) * genes for z, genes in zip(centred, measured, strict=True)
    ]

    def summed(v: np.ndarray) -> np.ndarray:
        pairs = zip(centred, missing, strict=True)
        parts = [z.T @ (z @ v) / len(z) + (rest * v.T).T for z, rest in pairs]
        total: np.ndarray = np.sum(parts, axis=0)
        return total

    n_genes = measured.shape[1]
    if n_genes <= DENSE:
        # slides that measure both genes of a pair
        matrix = summed(np.eye(n_genes)) / np.maximum(measured.T.astype(float) @ measured, 1)
        return lambda v: matrix @ v
    panels, panel = np.unique(measured, axis=1, return_inverse=True)
    counts = np.maximum(measured.T.astype(float) @ panels, 1)  # [G, panels]

    def correlated(v: np.ndarray) -> np.ndarray:
        product = np.zeros(v.shape)
        for number, count in enumerate(counts.T):
            product += (summed(((panel.reshape(-1) == number) * v.T).T).T / count).T
        return product

    return correlated
