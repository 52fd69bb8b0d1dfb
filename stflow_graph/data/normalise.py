"""Counts to the two targets that models learn."""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.sparse as sp

Target = Literal["log1p", "log1p_normalised"]
TARGETS: tuple[Target, ...] = ("log1p", "log1p_normalised")


def to_target(counts: sp.csr_matrix, total: np.ndarray, target: str) -> np.ndarray:
    """Return ``log1p(counts)`` or ``log1p(1e4 counts / total)`` as ``[N, G]`` float32.

    Args:
        counts: ``[N, G]`` raw counts.
        total: ``[N]`` counts of each spot over all genes; a spot of total 0 gives zeros.
        target: one of ``TARGETS``.

    Raises:
        ValueError: the target's name is unknown.
    """
    dense = np.asarray(counts.toarray(), dtype=np.float64)
    if target == "log1p_normalised":
        dense *= 1e4 / np.maximum(total, 1.0)[:, None]
    elif target != "log1p":
        raise ValueError(f"unknown target {target!r}; one of {', '.join(TARGETS)}")
    return np.log1p(dense).astype(np.float32)
