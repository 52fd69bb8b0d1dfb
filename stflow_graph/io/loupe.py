"""Expression as categories, which is what Loupe Browser imports from a CSV.

A CSV for Loupe has a column ``Barcode`` and a column for each category group. It takes no
continuous values: every value that differs would be a category of its own. A gene is therefore
cut into levels of equally many spots, whose names begin with their rank and end with their range.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

N_LEVELS = 5


def level_edges(values: np.ndarray, n_levels: int = N_LEVELS) -> list[np.ndarray]:
    """Return the edges of each gene's levels, at most ``n_levels`` + 1 ascending numbers.

    Levels that would have no width are left out, so a constant has a single edge.

    Args:
        values: ``[N, g]``.
        n_levels: number of levels.
    """
    quantiles = np.quantile(values, np.linspace(0, 1, n_levels + 1), axis=0)
    return [np.unique(column) for column in quantiles.T]


def level_names(values: np.ndarray, edges: np.ndarray) -> pd.Categorical:
    """Return the name of each value's level, such as ``2: 0.31 to 0.56``.

    Args:
        values: ``[n]`` of a gene.
        edges: as of :func:`level_edges`.
    """
    if len(edges) == 1:
        return pd.Categorical.from_codes(np.zeros(len(values), int), [f"1: {edges[0]:.3g}"])
    pairs = zip(edges[:-1], edges[1:], strict=True)
    names = [f"{i}: {low:.3g} to {high:.3g}" for i, (low, high) in enumerate(pairs, 1)]
    codes = np.searchsorted(edges[1:-1], values, side="right")
    return pd.Categorical.from_codes(codes, names)
