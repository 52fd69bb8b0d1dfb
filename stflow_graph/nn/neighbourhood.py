"""Neighbourhoods as dense ``[N, k]`` tables, the layout of the published denoiser."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


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
    """Find the k nearest spots of the same slide from the distances of all pairs.

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
    target, order = target.sort(stable=True)
    degree = torch.bincount(target, minlength=n_spots)
    k = int(degree.max()) if n_spots else 0
    slot = torch.arange(len(target), device=target.device) - (degree.cumsum(0) - degree)[target]
    index = torch.arange(n_spots, device=target.device)[:, None].repeat(1, k)
    index[target, slot] = source[order]
    if len(target) == n_spots * k:
        return Neighbourhoods(index, None)
    return Neighbourhoods(index, torch.arange(k, device=target.device) < degree[:, None])
