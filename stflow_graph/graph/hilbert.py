"""An order of spots in which neighbours in the plane mostly stand near each other."""

from __future__ import annotations

import numpy as np

_BITS = 16
_ROWS = 2**16  # at a time: what a CPU's cache holds


def hilbert_order(pos: np.ndarray) -> np.ndarray:
    """Return the order of points along a Hilbert curve (Hilbert 1891).

    Points that share one of 2^32 cells keep their order, so the result depends on nothing else.

    Args:
        pos: ``[N, 2]`` finite positions.

    Returns:
        ``[N]`` int64 rows of ``pos``.
    """
    if not len(pos):
        return np.empty(0, dtype=np.int64)
    low = pos.min(axis=0)
    side = max(float(np.ptp(pos, axis=0).max()), 1e-300)
    place = np.empty(len(pos), dtype=np.uint32)
    for start in range(0, len(pos), _ROWS):
        part = (pos[start : start + _ROWS] - low) / side
        cells = np.minimum(part * 2**_BITS, 2**_BITS - 1).astype(np.uint32)
        place[start : start + _ROWS] = _along_curve(cells[:, 0], cells[:, 1])
    return np.argsort(place, kind="stable")


def _along_curve(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the place on the curve of cells ``x [n]``, ``y [n]``, square by square inwards."""
    place = np.zeros_like(x)
    for bit in reversed(range(_BITS)):
        right, upper = (x >> bit) & 1, (y >> bit) & 1
        place = (place << 2) | ((3 * right) ^ upper)
        # the curve enters each quarter at another corner: turned, and in two of them mirrored
        flip = ((right & (upper ^ 1)) * np.uint32(2**_BITS - 1)).astype(np.uint32)
        x, y = x ^ flip, y ^ flip
        swap = upper == 0
        x, y = np.where(swap, y, x), np.where(swap, x, y)
    return place
