"""k-NN backends. Each returns candidates; ``graph.neighbors`` selects among them.

A search is built once for the spots of a slide and returns the ``width`` nearest of some rows, in
any order and with the spot itself among them (unless more than ``width`` spots share its place).
Since distances are computed anew from the candidates, all backends give equal edges.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from stflow_graph.errors import MissingDependency

Backend = Literal["auto", "scipy", "torch-cluster", "torch"]
BACKENDS: tuple[Backend, ...] = ("auto", "scipy", "torch-cluster", "torch")
Search = Callable[[Tensor, int], Tensor]
_CHUNK = 2**24
_WORTH_THREADS = 2**12
_TREE_ROWS = 2**16
_MAX_ON_GPU = 100  # torch-cluster's kernel keeps its candidates in registers


def make_search(pos: Tensor, backend: str = "auto") -> Search:
    """Return the search over one slide's spots.

    Args:
        pos: ``[n, 2]`` float64 positions.
        backend: one of ``BACKENDS``; ``"auto"`` takes torch-cluster for positions on a GPU, where
            it is installed, else scipy's tree, on the CPU: ``"torch"`` compares all pairs, which
            takes minutes for a million spots on any device.

    Returns:
        A function of ``(rows [m], width)`` that gives the ``[m, width]`` nearest.

    Raises:
        MissingDependency: the backend is not installed.
        ValueError: an unknown backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; one of {', '.join(BACKENDS)}")
    if backend == "auto":
        backend = "torch-cluster" if pos.is_cuda and is_available("torch-cluster") else "scipy"
    makers: dict[str, Callable[[Tensor], Search]] = {
        "scipy": TreeSearch,
        "torch-cluster": _torch_cluster,
        "torch": _torch,
    }
    return makers[backend](pos)


def is_available(backend: str) -> bool:
    """Return whether a backend's library is installed."""
    if backend != "torch-cluster":
        return backend in BACKENDS
    try:
        importlib.import_module("torch_cluster")
    except (ImportError, OSError):  # OSError: built for another torch
        return False
    return True


class TreeSearch:
    """The search by scipy's k-d tree, on the CPU.

    Args:
        pos: ``[n, 2]`` float64 positions.
    """

    def __init__(self, pos: Tensor) -> None:
        self.points, self.device = pos.cpu().numpy(), pos.device
        self.tree = cKDTree(self.points)
        self._ahead: np.ndarray | None = None

    def __call__(self, rows: Tensor, width: int) -> Tensor:
        """Return the ``[m, width]`` nearest of ``rows [m]``."""
        places = rows.cpu().numpy()
        if self._ahead is not None and self._ahead.shape[1] == width:
            index = self._ahead[places]
        else:
            index = self._query(self.points[places], width)[1]
        return torch.from_numpy(index).view(len(rows), width).to(self.device).long()

    def distances(self, width: int, ahead: int = 0) -> np.ndarray:
        """Return the distances to the ``width`` nearest of every spot, in ascending order.

        Args:
            width: at least 2 and at most n.
            ahead: width of a search that will follow, which is then answered from memory.
        """
        searched = max(width, ahead)
        nearest = np.empty((len(self.points), width))
        index = np.empty((len(self.points), ahead), dtype=np.int32)
        for start in range(0, len(self.points), _TREE_ROWS):
            part = slice(start, start + _TREE_ROWS)
            distance, places = self._query(self.points[part], searched)
            nearest[part], index[part] = distance[:, :width], places[:, :ahead]
        self._ahead = index if ahead else None
        return nearest

    def _query(self, points: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        workers = torch.get_num_threads() if len(points) >= _WORTH_THREADS else 1
        distance, index = self.tree.query(points, k=width, workers=workers)
        return distance, index


def _torch(pos: Tensor) -> Search:
    def search(rows: Tensor, width: int) -> Tensor:
        nearest = []
        for part in rows.split(max(1, _CHUNK // max(1, len(pos)))):
            # differences rather than cdist: its matrix product loses half of the digits
            distance = (pos[part, None] - pos[None]).square_().sum(-1)
            nearest.append(distance.topk(width, dim=1, largest=False).indices)
        return torch.cat(nearest) if nearest else rows.new_empty(0, width)

    return search


def _torch_cluster(pos: Tensor) -> Search:
    if not is_available("torch-cluster"):
        raise MissingDependency(
            "torch-cluster is not installed: pip install --no-build-isolation torch-cluster, or "
            'graph.backend = "scipy" or "torch"'
        )
    knn = importlib.import_module("torch_cluster").knn

    def search(rows: Tensor, width: int) -> Tensor:
        if pos.is_cuda and width > _MAX_ON_GPU:
            return _torch(pos)(rows, width)
        return knn(pos, pos[rows], width)[1].view(len(rows), width)

    return search
