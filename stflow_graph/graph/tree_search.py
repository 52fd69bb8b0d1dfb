"""Nearest neighbours by scipy's k-d tree."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

_WORTH_THREADS = 2**12
_ROWS = 2**16  # searched at a time


class TreeSearch:
    """The search by scipy's k-d tree, on the CPU.

    Args:
        pos: ``[n, 2]`` float64 positions.
    """

    def __init__(self, pos: Tensor) -> None:
        self.points = pos
        self._array: np.ndarray = pos.cpu().numpy()
        self._tree = cKDTree(self._array)
        self._ahead: np.ndarray | None = None

    def __call__(self, rows: Tensor, width: int) -> Tensor:
        """Return the ``[m, width]`` nearest of ``rows [m]``."""
        places = rows.cpu().numpy()
        if self._ahead is not None and self._ahead.shape[1] == width:
            index = self._ahead[places]
        else:
            index = self._query(self._array[places], width)[1]
        return torch.from_numpy(index).view(len(rows), width).to(self.points.device).long()

    def distances(self, width: int, ahead: int = 0) -> Tensor:
        """Return the ``[n, width]`` distances to the nearest of every spot, in ascending order.

        Args:
            width: at least 2 and at most n.
            ahead: width of a search that will follow, which is then answered from memory.
        """
        searched = max(width, ahead)
        nearest = np.empty((len(self.points), width))
        index = np.empty((len(self.points), ahead), dtype=np.int32)
        for start in range(0, len(self.points), _ROWS):
            part = slice(start, start + _ROWS)
            distance, places = self._query(self._array[part], searched)
            nearest[part], index[part] = distance[:, :width], places[:, :ahead]
        self._ahead = index if ahead else None
        return torch.from_numpy(nearest).to(self.points.device)

    def _query(self, points: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        workers = torch.get_num_threads() if len(points) >= _WORTH_THREADS else 1
        distance, index = self._tree.query(points, k=width, workers=workers)
        return distance, index
