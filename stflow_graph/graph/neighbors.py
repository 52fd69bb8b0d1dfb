"""Nearest neighbours within a slide, by a rule that does not depend on the order of spots.

Array-based slides are full of ties: on a hexagonal array with k = 8, six of twelve equally distant
spots of the second ring would be chosen by their index, and a rotation would choose others. The
rule here takes every spot nearer than ``(1 + slack) d_k``, where ``d_k`` is the distance of the
k-th nearest, with a weight that is 1 up to ``d_k`` and falls smoothly to 0 at the cut-off. Ties
are thus kept together, and a neighbour that enters or leaves does so with weight 0.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from stflow_graph.graph.backends import Search, TreeSearch, make_search, ordered_search
from stflow_graph.graph.grid_search import GridSearch
from stflow_graph.graph.points import take_points

# relative difference of distances that count as tied, far above the rounding of a rotated array
_TIED = 1e-9
# of the distance of 8th neighbours: nearer spots share a place
_SAME_PLACE = 1e-3
# neighbours among which the nearest at another place is sought
_FOR_PITCH = 8


@dataclasses.dataclass(frozen=True)
class Neighbors:
    """Edges from neighbours to spots, sorted by (target, source).

    Attributes:
        edge_index: ``[2, E]`` int64; row 0 the neighbour j, row 1 the spot i (PyG's convention).
        distance: ``[E]`` float64, in the units of the positions.
        weight: ``[E]`` float64 in (0, 1], 1 for the k nearest.
    """

    edge_index: Tensor
    distance: Tensor
    weight: Tensor


def nearest_neighbors(
    pos: Tensor,
    k: int,
    *,
    batch: Tensor | None = None,
    slack: float = 0.1,
    same_place: float = 0.0,
    backend: str = "auto",
    search: Search | None = None,
    rows: Tensor | None = None,
) -> Neighbors:
    """Connect every spot with its nearest neighbours of the same slide, itself excluded.

    ``w_ij = s((1 + slack - d_ij / d_ik) / slack)`` with s(u) = 3u² - 2u³ clamped to [0, 1] and
    ``d_ik`` the distance of the k-th nearest, at least ``same_place``.
    A slide of n <= k spots uses n - 1 neighbours; a single spot has none.

    Args:
        pos: ``[N, 2]`` finite positions in any unit.
        k: number of neighbours, before ties.
        batch: ``[N]`` slide of each spot, ascending; None for one slide.
        slack: relative width of the cut-off; 0 takes exactly the k nearest with weight 1, of
            equally distant ones those of lowest index (as published: the graph then depends on
            the order of spots).
        same_place: distance below which spots are at one place: if more than k are, all of them
            are neighbours, with weight 1.
        backend: one of ``graph.backends.BACKENDS``; all give equal edges.
        search: a search made from these spots' positions in any unit, without ``batch``; it takes
            the place of the backend's.
        rows: the spots whose neighbours are sought, of one slide; None: all.

    Raises:
        ValueError: shapes that do not fit, rows of several slides, k < 1, slack < 0, positions
            not finite.
    """
    if pos.dim() != 2 or pos.size(1) != 2:
        raise ValueError(f"pos must be [N, 2], got {list(pos.shape)}")
    if batch is not None and batch.shape != pos.shape[:1]:
        raise ValueError(f"batch must be [{pos.size(0)}], got {list(batch.shape)}")
    if k < 1 or slack < 0 or same_place < 0:
        raise ValueError(
            f"k must be >= 1, slack and same_place >= 0, got k = {k}, slack = {slack}, "
            f"same_place = {same_place}"
        )
    if rows is not None and batch is not None:
        raise ValueError("rows are of one slide, got a batch")
    lost = int((~pos.isfinite()).any(dim=1).sum())
    if lost:
        raise ValueError(f"pos {list(pos.shape)} has {lost} rows that are not finite")
    parts, start = [], 0
    for part in _split(pos.detach().double(), batch):
        target, source, *lengths = _search_slide(
            part,
            min(k, len(part) - 1),
            slack,
            same_place,
            search or make_search(part, backend),
            torch.arange(len(part), device=pos.device) if rows is None else rows,
        )
        parts.append((target + start, source + start, *lengths))
        start += len(part)
    target, source, distance, nearest = (torch.cat(column) for column in zip(*parts, strict=True))
    order = torch.argsort(target * max(len(pos), 1) + source)
    target, source, distance = target[order], source[order], distance[order]
    weight = torch.ones_like(distance)
    if slack > 0:
        weight = _smoothstep((1 + slack - distance / nearest[order].clamp(min=1e-300)) / slack)
    return Neighbors(torch.stack([source, target]), distance, weight)


def in_pitches(pos: Tensor, k: int, backend: str = "auto") -> tuple[Tensor, Search]:
    """Return a slide's positions in spot pitches, float64, and the search for k neighbours.

    A k-d tree or a grid is built and asked once for the pitch and the neighbours.

    Args:
        pos: ``[N, 2]`` positions of one slide.
        k: as of :func:`nearest_neighbors`, which takes the search.
        backend: as of :func:`nearest_neighbors`.
    """
    pos = pos.detach().double()
    search = make_search(pos, backend)
    if not isinstance(search, TreeSearch | GridSearch):
        return pos / spot_pitch(pos), search
    return pos / _pitch(search, _first_width(len(pos), max(1, min(k, len(pos) - 1)))), search


def spot_pitch(pos: Tensor) -> float:
    """Return the median distance to the nearest other place, 1.0 if all spots share one place.

    Spots a thousand times nearer than 8th neighbours usually are (their 90% quantile) share a
    place, so that duplicates, exact or shaken a little, do not make the pitch collapse.

    Args:
        pos: ``[N, 2]`` positions of one slide.
    """
    return _pitch(ordered_search(pos.detach().double()))


def _pitch(search: TreeSearch | GridSearch, ahead: int = 0) -> float:
    nearest = _nearest_place(search, ahead)
    if not len(nearest):  # every spot has many twins
        nearest = _nearest_place(ordered_search(search.points.unique(dim=0)))
    return _quantile(nearest, 0.5) if len(nearest) else 1.0


def _nearest_place(search: TreeSearch | GridSearch, ahead: int = 0) -> Tensor:
    """Return the distance to the nearest other place of each spot that has one in reach."""
    n = len(search.points)
    if n < 2:
        return search.points.new_empty(0)
    distance = search.distances(min(n, 1 + _FOR_PITCH), ahead)[:, 1:]
    apart = distance > _SAME_PLACE * _quantile(distance[:, -1], 0.9)
    nearest = distance.masked_fill(~apart, torch.inf).amin(dim=1)
    return nearest[nearest.isfinite()]


def _quantile(x: Tensor, q: float) -> float:
    """Return a quantile of ``x [n]``; ``torch.quantile`` sorts, and takes 2^24 numbers at most."""
    place = q * (len(x) - 1)
    lower = int(place)
    below, above = (float(x.kthvalue(min(lower + i, len(x) - 1) + 1).values) for i in (0, 1))
    return below + (above - below) * (place - lower)


def rows_at_a_time(device: torch.device) -> int:
    """Return of how many spots edges are computed at a time: a CPU's cache holds what they take."""
    return 2**13 if device.type == "cpu" else 2**16


def _first_width(n: int, k: int) -> int:
    """Return the number of candidates that the search starts with, the spot itself included."""
    return min(n, 2 * k + 6)


def _split(pos: Tensor, batch: Tensor | None) -> list[Tensor]:
    if batch is None or len(pos) == 0:
        return [pos]
    sizes = torch.bincount(batch)
    if (batch[1:] < batch[:-1]).any():
        raise ValueError("batch must be ascending: the spots of a slide stand together")
    return list(pos.split(sizes[sizes > 0].tolist()))


_SlideEdges = tuple[Tensor, Tensor, Tensor, Tensor]


def _search_slide(
    pos: Tensor, k: int, slack: float, same_place: float, search: Search, rows: Tensor
) -> _SlideEdges:
    """Return (target, source, distance, d_k of the target) of the edges of spots of one slide."""
    n = len(pos)
    width = _first_width(n, k)
    edges: list[_SlideEdges] = [(rows[:0], rows[:0], pos[:0, 0], pos[:0, 0])]
    while k > 0 and len(rows):
        remaining = []
        for part in rows.split(rows_at_a_time(pos.device)):
            index = search(part, width)
            distance = (take_points(pos, index) - pos[part, None]).square().sum(-1).sqrt()
            itself = index == part[:, None]
            others = distance.masked_fill(itself, torch.inf)
            nearest = others.kthvalue(k, dim=1, keepdim=True).values.clamp(min=same_place)
            # spots that are not candidates are farther than all candidates
            beyond = distance.amax(dim=1, keepdim=True) > (1 + slack) * nearest * (1 + _TIED)
            done = beyond.squeeze(1) | (width == n)
            exact = slack == 0
            keep = _exactly(others, index, nearest, k) if exact else _ties(others, nearest, slack)
            place, column = (keep & done[:, None]).nonzero(as_tuple=True)
            edges.append(
                (part[place], index[place, column], distance[place, column], nearest[place, 0])
            )
            remaining.append(part[~done])
        rows, width = torch.cat(remaining), min(n, 2 * width)
    target, source, distance, d_k = (torch.cat(column) for column in zip(*edges, strict=True))
    return target, source, distance, d_k


def _ties(distance: Tensor, nearest: Tensor, slack: float) -> Tensor:
    # with k spots at one place d_k is 0: those at distance 0 are the neighbours
    return (distance < (1 + slack) * nearest) | (distance == nearest)


def _exactly(distance: Tensor, index: Tensor, nearest: Tensor, k: int) -> Tensor:
    """Return which k of each row's candidates are nearest, of equals those of lowest index."""
    level = (distance >= (1 - _TIED) * nearest).byte() + (distance > (1 + _TIED) * nearest)
    by_index = index.argsort(dim=1)
    order = by_index.gather(1, level.gather(1, by_index).argsort(dim=1, stable=True))
    return torch.zeros_like(level, dtype=torch.bool).scatter_(1, order[:, :k], True)


def _smoothstep(u: Tensor) -> Tensor:
    u = u.clamp(0, 1)
    return u * u * (3 - 2 * u)
