"""Regions of slides, with halos, on which training takes its steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from stflow_graph.graph.tiles import split_in_space

_SPOT_FIELDS = ("x", "pos", "y", "context")


def random_region(
    pos: Tensor,
    generator: torch.Generator,
    min_spots: int = 2,
    *,
    min_fraction: float = 0.0,
    max_spots: int | None = None,
) -> Tensor:
    """Return the rows of the ⌊uN⌋ spots nearest to a random spot, u ~ U(min_fraction, 1).

    With the defaults it is the region sampling of STFlow (Huang et al., ICML 2025).

    Args:
        pos: ``[N, 2]`` positions of a slide's spots.
        generator: a generator on the CPU.
        min_spots: size of the smallest region; a smaller slide is taken whole.
        min_fraction: smallest fraction of the slide's spots.
        max_spots: size of the largest region; None sets no bound.
    """
    n = pos.size(0)
    u = min_fraction + (1 - min_fraction) * torch.rand((), generator=generator).item()
    centre = int(torch.randint(n, (), generator=generator))
    size = min(n, max(min_spots, int(u * n)), n if max_spots is None else max_spots)
    if size == n:
        return torch.arange(n)
    return (pos - pos[centre]).square().sum(1).argsort(stable=True)[:size]


def cover_slide(pos: Tensor, generator: torch.Generator, max_spots: int) -> list[Tensor]:
    """Return the rows of regions of limited size that together cover the slide.

    The cuts run along a random direction and across it, so that no border stays where it is.

    Args:
        pos: ``[N, 2]`` positions of a slide's spots.
        generator: a generator on the CPU.
        max_spots: maximum number of spots of a region.
    """
    angle = 2 * np.pi * torch.rand((), generator=generator).item()
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    parts = split_in_space(pos.double().cpu().numpy() @ turn, max_spots)
    return [torch.from_numpy(rows) for rows in parts]


def cut_region(data: Data, rows: Tensor, n_hops: int = 0) -> Data:
    """Return a region of a slide with a halo: all spots within so many hops of its own.

    For the region's own spots a network of as many layers of messages computes what it does on the
    whole slide: their edges, and those of all spots that they depend on, are included with the
    geometry of the whole slide. Attention over a whole slide sees the region and its halo only.

    Args:
        data: a slide with ``x``, ``pos`` and ``y``, on any device.
        rows: the spots of the region, on any device; for all of them ``data`` itself is returned.
        n_hops: width of the halo. With 0, or where the slide has no edges, there is neither halo
            nor edge.

    Returns:
        ``x``, ``pos``, ``y`` and ``context`` of the spots kept, in the slide's order; with a halo
        also their edges and ``inner [n]``: which of them are the region's own.
    """
    n = data.pos.size(0)
    if len(rows) == n:
        return data
    halo = n_hops > 0 and "edge_index" in data
    device = data.pos.device
    inner = torch.zeros(n, dtype=torch.bool, device=device)
    inner[rows.to(device)] = True
    kept = updated = inner
    for _ in range(n_hops if halo else 0):
        kept, updated = kept.clone(), kept
        sender, receiver = data.edge_index
        kept[sender[updated[receiver]]] = True
    # ascending rows keep the order of spots, and with it every sum, reproducible
    rows = kept.nonzero().flatten()
    region = Data(**{field: data[field][rows] for field in _SPOT_FIELDS if field in data})
    if halo:
        region.inner = inner[rows]
        place = torch.empty(n, dtype=torch.long, device=device)
        place[rows] = torch.arange(len(rows), device=device)
        edges = updated[data.edge_index[1]]
        region.edge_index = place[data.edge_index[:, edges]]
        for key in ("edge_attr", "edge_weight"):
            if key in data:
                region[key] = data[key][edges]
    return region


def join_regions(regions: Sequence[Data]) -> Batch:
    """Return regions as one batch, with ``inner [N]`` if one of them has a halo.

    A slide that is there as a whole has no halo: all its spots are its own.
    """
    if any("inner" in region for region in regions):
        regions = [copy.copy(region) for region in regions]
        for region in regions:
            if "inner" not in region:
                region.inner = torch.ones_like(region.pos[:, 0], dtype=torch.bool)
    return Batch.from_data_list(list(regions))
