"""The published graph and its geometry: exactly k neighbours, in tables ``[N, k]``, raw frames.

This is what STFlow (Huang et al., ICML 2025) computes in every layer. ``TransformerDenoiser`` and
``STFlowConv`` share it, so that the two are equal up to rounding.
On exact lattices its frames are arbitrary; ``SpatialGraph`` is the graph without that defect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from stflow_graph.graph.backends import make_search
from stflow_graph.graph.neighbors import nearest_neighbors
from stflow_graph.graph.points import take_points
from stflow_graph.graph.whole import Edges

STFLOW_EDGE_FEATURES = 3
# decomposed at a time: cuSOLVER refuses more than about 32,000
_MATRICES = 2**14


@dataclasses.dataclass(frozen=True)
class Neighbourhoods:
    """The neighbours of every spot.

    Attributes:
        index: ``[N, k]`` int64 neighbours; a spot with fewer than k is padded with itself.
        mask: ``[N, k]`` bool, False where padded; None if nothing is.
    """

    index: Tensor
    mask: Tensor | None


def all_pairs_neighbourhoods(pos: Tensor, k: int, batch: Tensor) -> Neighbourhoods:
    """Return the k nearest spots of the same slide from the distances of all pairs.

    As published: O(N²) time and memory, ties are broken by index. A slide of n <= k spots has
    n - 1 neighbours for each.

    Args:
        pos: ``[N, 2]`` positions.
        k: number of neighbours.
        batch: ``[N]`` slide of each spot.
    """
    n = pos.size(0)
    distance = (pos[:, None] - pos[None]).norm(dim=-1)  # [N, N]
    distance.masked_fill_(batch[:, None] != batch[None], torch.inf).fill_diagonal_(torch.inf)
    distance, index = distance.topk(min(k, max(n - 1, 0)), dim=1, largest=False)
    mask = distance.isfinite()
    if mask.all():
        return Neighbourhoods(index, None)
    itself = torch.arange(n, device=pos.device)[:, None]
    return Neighbourhoods(torch.where(mask, index, itself), mask)


def edge_neighbourhoods(edge_index: Tensor, n_spots: int) -> Neighbourhoods:
    """Lay out a graph's edges by their target.

    Args:
        edge_index: ``[2, E]`` neighbours j (row 0) and spots i (row 1), in any order.
        n_spots: N.
    """
    source, target = edge_index
    slot, degree = _slots(target, n_spots)
    k = int(degree.max()) if n_spots else 0
    index = torch.arange(n_spots, device=target.device)[:, None].repeat(1, k)
    index[target, slot] = source
    if len(target) == n_spots * k:
        return Neighbourhoods(index, None)
    return Neighbourhoods(index, torch.arange(k, device=target.device) < degree[:, None])


def _slots(target: Tensor, n_spots: int) -> tuple[Tensor, Tensor]:
    """Return the column of every edge in its target's row, and the rows' lengths."""
    by_target, order = target.sort(stable=True)
    degree = torch.bincount(target, minlength=n_spots)
    first = degree.cumsum(0) - degree
    slot = torch.empty_like(target)
    slot[order] = torch.arange(len(target), device=target.device) - first[by_target]
    return slot, degree


def principal_coordinates(pos: Tensor, near: Neighbourhoods) -> Tensor:
    r"""Return every edge in the principal axes of its neighbourhood.

    With :math:`r_{ij} = p_j - p_i` and :math:`c_i` their mean, the columns of :math:`U_i` are the
    eigenvectors of :math:`C_i = \sum_j (r_{ij} - c_i)(r_{ij} - c_i)^\top` by ascending eigenvalue;
    no gradient passes through them (it is infinite where the eigenvalues are equal).

    Args:
        pos: ``[N, 2]`` positions; computed in float64, for axes of nearly isotropic
            neighbourhoods magnify every rounding.
        near: the neighbours.

    Returns:
        ``[N, k, 3]`` float64: :math:`(r - c) U` and ‖r‖; 0 where padded.
    """
    pos = pos.double()
    r = pos[near.index] - pos[:, None]  # [N, k, 2], 0 where padded
    if near.mask is None:
        centred = r - r.sum(dim=1, keepdim=True) / max(r.size(1), 1)
    else:
        present = near.mask[..., None]
        degree = present.sum(dim=1, keepdim=True).clamp(min=1)
        centred = (r - r.sum(dim=1, keepdim=True) / degree) * present
    covariance = (centred[..., :, None] * centred[..., None, :]).sum(dim=1)
    parts = covariance.detach().split(_MATRICES)
    axes = torch.cat([torch.linalg.eigh(part).eigenvectors for part in parts])  # [N, 2, 2]
    coordinates = (centred[..., None] * axes[:, None]).sum(dim=-2)
    return torch.cat([coordinates, r.norm(dim=-1, keepdim=True)], dim=-1)


def stflow_edge_geometry(pos: Tensor, edge_index: Tensor) -> Tensor:
    """Return :func:`principal_coordinates` of every edge.

    Args:
        pos: ``[N, 2]`` positions, in pixels as published.
        edge_index: ``[2, E]`` neighbours j (row 0) and spots i (row 1), in any order.

    Returns:
        ``[E, 3]`` float64.
    """
    slot, _ = _slots(edge_index[1], pos.size(0))
    table = principal_coordinates(pos, edge_neighbourhoods(edge_index, pos.size(0)))
    return table[edge_index[1], slot]


class STFlowGraph(BaseTransform):
    """Adds the graph of one slide as STFlow makes it: ``edge_index`` and ``edge_attr [E, 3]``.

    Exactly k neighbours, ties broken by index, frames in pixels without weights. Where a
    neighbourhood is isotropic (on lattices) its axes are arbitrary: the output of a denoiser then
    changes under rotations and reorderings of the spots.

    Args:
        n_neighbors: k.
        backend: k-NN backend, see ``graph.backends``.
    """

    def __init__(self, n_neighbors: int = 8, backend: str = "auto") -> None:
        self.n_neighbors = n_neighbors
        self.backend = backend

    def forward(self, data: Data) -> Data:
        """Return ``data`` with ``edge_index [2, E]`` and ``edge_attr [E, 3]``."""
        rows = torch.arange(len(data.pos), device=data.pos.device)
        data.edge_index, data.edge_attr, _ = self.edges_of(data.pos)(rows)
        return data

    def edges_of(self, pos: Tensor) -> Callable[[Tensor], Edges]:
        """Return what gives the edges that end on some spots, sorted by (spot, neighbour).

        Args:
            pos: ``[N, 2]`` positions of one slide.
        """
        search = make_search(pos.detach().double(), self.backend)

        def edges(rows: Tensor) -> Edges:
            near = nearest_neighbors(pos, self.n_neighbors, slack=0.0, search=search, rows=rows)
            nodes, local = near.edge_index.unique(return_inverse=True)
            geometry = stflow_edge_geometry(take_points(pos, nodes), local)
            return Edges(near.edge_index, geometry.to(torch.float32), None)

        return edges

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n_neighbors={self.n_neighbors}, backend={self.backend!r})"
