"""Weighted means of groups whose members need not have the same values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd


class WeightedMeans:
    """Means over the members of groups, Σ w x / Σ w over the members that have the value.

    Members are added one after the other; memory is that of the groups.
    """

    def __init__(self) -> None:
        self._columns: dict[str, int] = {}
        self._sums: dict[str, np.ndarray] = {}  # of w x and of w, [2, C]

    def add(self, group: str, names: Sequence[str], values: np.ndarray, weight: float) -> None:
        """Add a member.

        Args:
            group: its group.
            names: C names of its values.
            values: ``[C]``, NaN where it has none.
            weight: w, positive.
        """
        columns = [self._columns.setdefault(name, len(self._columns)) for name in names]
        sums = self._sums.get(group, np.zeros((2, 0)))
        sums = np.pad(sums, ((0, 0), (0, len(self._columns) - sums.shape[1])))
        values = np.asarray(values, dtype=np.float64)
        defined = np.isfinite(values)
        sums[0, columns] += np.where(defined, weight * values, 0.0)
        sums[1, columns] += np.where(defined, weight, 0.0)
        self._sums[group] = sums

    def table(self, groups: Sequence[str]) -> pd.DataFrame:
        """Return the means, a row a group and a column a name; NaN where no member has a value."""
        rows = np.full((len(groups), len(self._columns)), np.nan)
        for row, group in zip(rows, groups, strict=True):
            sums, weights = self._sums[group]
            known = np.flatnonzero(weights)
            row[known] = sums[known] / weights[known]
        return pd.DataFrame(rows, columns=list(self._columns))
