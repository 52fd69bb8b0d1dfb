"""k-NN backends. Each returns candidates; ``graph.neighbors`` selects among them.

A search is built once for the spots of a slide and returns the ``width`` nearest of some rows, in
any order and with the spot itself among them (unless more than ``width`` spots share its place).
Since distances are computed anew from the candidates, all backends give equal edges.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from stflow_graph.errors import MissingDependency
from stflow_graph.graph.grid_search import GridSearch
from stflow_graph.graph.tree_search import TreeSearch

Backend = Literal["auto", "scipy", "grid", "torch-cluster", "torch"]
BACKENDS: tuple[Backend, ...] = ("auto", "scipy", "grid", "torch-cluster", "torch")
Search = Callable[[Tensor, int], Tensor]
_CHUNK = 2**24
_MAX_ON_GPU = 100  # torch-cluster's kernel keeps its candidates in registers


def make_search(pos: Tensor, backend: str = "auto") -> Search:
    """Return the search over one slide's spots.

    Args:
        pos: ``[n, 2]`` float64 positions.
        backend: one of ``BACKENDS``; ``"auto"`` takes the grid for positions on a GPU, else
            scipy's tree. ``"torch"`` and, on a GPU, torch-cluster compare all pairs, which takes
            minutes for a million spots.

    Returns:
        A function of ``(rows [m], width)`` that gives the ``[m, width]`` nearest.

    Raises:
        MissingDependency: the backend is not installed.
        ValueError: an unknown backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; one of {', '.join(BACKENDS)}")
    if backend == "auto":
        return ordered_search(pos)
    makers: dict[str, Callable[[Tensor], Search]] = {
        "scipy": TreeSearch,
        "grid": GridSearch,
        "torch-cluster": _torch_cluster,
        "torch": _torch,
    }
    return makers[backend](pos)


def ordered_search(pos: Tensor) -> TreeSearch | GridSearch:
    """Return the search that suits the device, which tells distances too."""
    return GridSearch(pos) if pos.is_cuda else TreeSearch(pos)


def is_available(backend: str) -> bool:
    """Return whether a backend's library is installed."""
    if backend != "torch-cluster":
        return backend in BACKENDS
    try:
        importlib.import_module("torch_cluster")
    except (ImportError, OSError):  # OSError: built for another torch
        return False
    return True


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
