"""Regions of slides, with halos, on which training takes its steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from stflow_graph.graph.tiles import relations_of, split_in_space

_SPOT_FIELDS = ("x", "pos", "y", "context")


def random_region(
    pos: Tensor,
    generator: torch.Generator,
    least: int = 2,
    *,
    smallest_share: float = 0.0,
    most: int | None = None,
) -> Tensor:
    """Return the rows of the ⌊uN⌋ spots nearest to a random spot, u ~ U(smallest_share, 1).

    With the defaults it is the region sampling of STFlow (Huang et al., ICML 2025).

    Args:
        pos: ``[N, 2]`` positions of a slide's spots.
        generator: a generator on the CPU.
        least: the smallest region; a smaller slide is taken whole.
        smallest_share: smallest share of the slide's spots.
        most: the largest region; None sets no bound.
    """
    n = pos.size(0)
    u = smallest_share + (1 - smallest_share) * torch.rand((), generator=generator).item()
    centre = int(torch.randint(n, (), generator=generator))
    size = min(n, max(least, int(u * n)), n if most is None else most)
    if size == n:
        return torch.arange(n)
    return (pos - pos[centre]).square().sum(1).argsort(stable=True)[:size]


def cover_slide(pos: Tensor, generator: torch.Generator, most: int) -> list[Tensor]:
    """Return the rows of regions of at most so many spots that together are the slide.

    The cuts run along a random direction and across it, so that no border stays where it is.

    Args:
        pos: ``[N, 2]`` positions of a slide's spots.
        generator: a generator on the CPU.
        most: spots of a region.
    """
    angle = 2 * np.pi * torch.rand((), generator=generator).item()
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    parts = split_in_space(pos.double().cpu().numpy() @ turn, most)
    return [torch.from_numpy(rows) for rows in parts]


def cut_region(data: Data, rows: Tensor, n_hops: int = 0) -> Data:
    """Return a region of a slide with a halo: all that is within so many hops of its spots.

    A network of as many layers that see neighbours says of the region's own spots what it says
    of them in the whole slide: their edges, and those of all that they see, are there, with the
    geometry of the whole slide. Attention over a whole slide sees the region and its halo only.

    Args:
        data: a slide with ``x``, ``pos`` and ``y``.
        rows: the spots of the region; all of them: ``data`` itself is returned.
        n_hops: width of the halo. With 0, or where the slide has no edges, there is neither halo
            nor edge.

    Returns:
        ``x``, ``pos``, ``y`` and ``context`` of the spots kept, in the slide's order; with a halo
        also their edges and ``inner [n]``: which of them are the region's own.
    """
    n = data.pos.size(0)
    if len(rows) == n:
        return data
    relations = relations_of(data) if n_hops else []
    inner = torch.zeros(n, dtype=torch.bool)
    inner[rows] = True
    kept = read = inner
    for _ in range(n_hops):
        kept, read = kept.clone(), kept
        for prefix in relations:
            sender, receiver = data[f"{prefix}edge_index"]
            kept[sender[read[receiver]]] = True
    # ascending rows keep the order of spots, and with it every sum, reproducible
    rows = kept.nonzero().flatten()
    region = Data(**{field: data[field][rows] for field in _SPOT_FIELDS if field in data})
    if "pitch" in data:
        region.pitch = data.pitch
    if relations:
        region.inner = inner[rows]
        place = torch.empty(n, dtype=torch.long)
        place[rows] = torch.arange(len(rows))
    for prefix in relations:
        edges = read[data[f"{prefix}edge_index"][1]]
        region[f"{prefix}edge_index"] = place[data[f"{prefix}edge_index"][:, edges]]
        for key in (f"{prefix}edge_attr", f"{prefix}edge_weight"):
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
                region.inner = torch.ones(region.pos.size(0), dtype=torch.bool)
    return Batch.from_data_list(list(regions))
