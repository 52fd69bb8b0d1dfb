"""Slides with different gene panels: what is measured where, and means over what is.

A gene that a slide does not measure is NaN in all spots of the slide. Every function gives what
plain numpy gives, to the bit, where nothing is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np


def measured_genes(y: np.ndarray) -> np.ndarray:
    """Return which genes of a slide's expression ``[N, G]`` are measured, ``[G]`` bool."""
    return ~np.isnan(y).any(axis=0)


def genes_by_slides(ys: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the genes grouped by the slides that measure them.

    Args:
        ys: expression ``[N_s, G]`` of each slide.

    Yields:
        Numbers of the slides, and columns of the genes that exactly these slides measure. Genes
        that no slide measures are left out.
    """
    measured = np.stack([measured_genes(y) for y in ys])
    patterns, group = np.unique(measured, axis=1, return_inverse=True)
    for number, pattern in enumerate(patterns.T):
        if pattern.any():
            yield np.flatnonzero(pattern), np.flatnonzero(group.reshape(-1) == number)


def take_genes(values: np.ndarray, genes: np.ndarray) -> np.ndarray:
    """Return some genes of ``[..., G]``: the array itself if they are all, in order."""
    if np.array_equal(genes, np.arange(values.shape[-1])):
        return values
    return np.ascontiguousarray(values[..., genes])


def mean_of_spots(ys: Iterable[np.ndarray]) -> np.ndarray:
    """Return the mean ``[G]`` float64 over the spots of slides ``[N_s, G]`` that measure a gene.

    Slides are taken one by one; a gene that none of them measures is NaN.
    """
    total, count = None, None
    for y in ys:
        known = ~np.isnan(y)
        of_slide = np.where(known, y, 0).sum(axis=0, dtype=np.float64), known.sum(axis=0)
        total = of_slide[0] if total is None else total + of_slide[0]
        count = of_slide[1] if count is None else count + of_slide[1]
    assert total is not None
    assert count is not None
    mean: np.ndarray = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean


def mean_of_measured(values: np.ndarray) -> np.ndarray:
    """Return the mean along the first axis of the values that are not NaN; NaN if there are none.

    Args:
        values: floats such as ``[S, G]``, a row per slide, or ``[N, G]``, a row per spot.
    """
    known = ~np.isnan(values)
    count = known.sum(axis=0).astype(values.dtype)
    total = np.where(known, values, 0).sum(axis=0)
    mean: np.ndarray = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean
