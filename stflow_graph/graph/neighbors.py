"""Nearest neighbours within a slide, by a rule that does not depend on the order of spots.

Array-based slides are full of ties: on a hexagonal array with k = 8, six of twelve equally distant
spots of the second ring would be chosen by their index, and a rotation would choose others. The
rule here takes every spot nearer than ``(1 + slack) d_k``, where ``d_k`` is the distance of the
k-th nearest, with a weight that is 1 up to ``d_k`` and falls smoothly to 0 at the cut-off. Ties
are thus kept together, and a neighbour that enters or leaves does so with weight 0.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

Backend = Literal["auto", "scipy", "torch"]
BACKENDS: tuple[Backend, ...] = ("auto", "scipy", "torch")
_CHUNK = 2**24


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
    backend: str = "auto",
) -> Neighbors:
    """Connect every spot with its nearest neighbours of the same slide, itself excluded.

    ``w_ij = s((1 + slack - d_ij / d_ik) / slack)`` with s(u) = 3u² - 2u³ clamped to [0, 1].
    A slide of n <= k spots uses n - 1 neighbours; a single spot has none.

    Args:
        pos: ``[N, 2]`` finite positions in any unit.
        k: number of neighbours, before ties.
        batch: ``[N]`` slide of each spot, ascending; None for one slide.
        slack: relative width of the cut-off, > 0.
        backend: ``"scipy"`` (k-d tree on the CPU), ``"torch"`` (chunked, any device) or ``"auto"``.

    Raises:
        ValueError: shapes that do not fit, k < 1, slack <= 0, positions not finite.
    """
    if pos.dim() != 2 or pos.size(1) != 2:
        raise ValueError(f"pos must be [N, 2], got {list(pos.shape)}")
    if batch is not None and batch.shape != pos.shape[:1]:
        raise ValueError(f"batch must be [{pos.size(0)}], got {list(batch.shape)}")
    if k < 1 or slack <= 0:
        raise ValueError(f"k must be >= 1 and slack > 0, got k = {k}, slack = {slack}")
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; one of {', '.join(BACKENDS)}")
    if not torch.isfinite(pos).all():
        raise ValueError("pos has values that are not finite")
    use_torch = backend == "torch" or (backend == "auto" and pos.is_cuda)
    search = _search_torch if use_torch else _search_scipy
    parts, start = [], 0
    for part in _split(pos.detach().double(), batch):
        parts.append(_with_offset(search(part, min(k, len(part) - 1), 1 + slack), start))
        start += len(part)
    target, source, distance, nearest = (torch.cat(column) for column in zip(*parts, strict=True))
    order = torch.argsort(target * max(len(pos), 1) + source)
    target, source, distance = target[order], source[order], distance[order]
    weight = _smoothstep((1 + slack - distance / nearest[order].clamp(min=1e-300)) / slack)
    return Neighbors(torch.stack([source, target]), distance, weight)


def spot_pitch(pos: Tensor) -> float:
    """Return the median distance to the nearest other place, 1.0 if all spots share one place.

    Args:
        pos: ``[N, 2]`` positions of one slide.
    """
    places = np.unique(pos.detach().double().cpu().numpy(), axis=0)
    if len(places) < 2:
        return 1.0
    distance, _ = cKDTree(places).query(places, k=2)
    return float(np.median(distance[:, 1]))


_Found = tuple[Tensor, Tensor, Tensor, Tensor]


def _split(pos: Tensor, batch: Tensor | None) -> list[Tensor]:
    if batch is None or len(pos) == 0:
        return [pos]
    sizes = torch.bincount(batch)
    if (batch[1:] < batch[:-1]).any():
        raise ValueError("batch must be ascending: the spots of a slide stand together")
    return list(pos.split(sizes[sizes > 0].tolist()))


def _with_offset(found: _Found, start: int) -> _Found:
    target, source, distance, nearest = found
    return target + start, source + start, distance, nearest


def _search_scipy(pos: Tensor, k: int, reach: float) -> _Found:
    """Return (target, source, distance, d_k of the target) of all pairs with d < reach * d_k."""
    points = pos.cpu().numpy()
    n = len(points)
    if k < 1:
        return _nothing(pos)
    tree = cKDTree(points)
    rows, width, found = np.arange(n), min(n, 2 * k + 6), []
    while len(rows):
        distance, index = tree.query(points[rows], k=width)
        # the spot itself is one of the zeros, so column k is the k-th nearest of the others
        nearest = distance[:, k]
        done = (distance[:, -1] > reach * nearest) | (width == n)
        keep = (_inside(distance, nearest[:, None], reach) & (index != rows[:, None]))[done]
        place = np.nonzero(keep)[0]
        found.append(
            (rows[done][place], index[done][keep], distance[done][keep], nearest[done][place])
        )
        rows, width = rows[~done], min(n, 2 * width)
    columns = (np.concatenate(column) for column in zip(*found, strict=True))
    target, source, d, d_k = (torch.from_numpy(column).to(pos.device) for column in columns)
    return target, source, d, d_k


def _search_torch(pos: Tensor, k: int, reach: float) -> _Found:
    n = len(pos)
    if k < 1:
        return _nothing(pos)
    found = []
    for rows in torch.arange(n, device=pos.device).split(max(1, _CHUNK // n)):
        # differences rather than cdist: its matrix product loses half of the digits
        distance = (pos[rows, None] - pos[None]).pow_(2).sum(-1).sqrt_()
        nearest = distance.kthvalue(k + 1, dim=1).values
        keep = _inside(distance, nearest[:, None], reach)
        keep[torch.arange(len(rows)), rows] = False
        place, source = keep.nonzero(as_tuple=True)
        found.append((rows[place], source, distance[place, source], nearest[place]))
    target, source, d, d_k = (torch.cat(column) for column in zip(*found, strict=True))
    return target, source, d, d_k


def _inside(distance, nearest, reach):  # type: ignore[no-untyped-def]  # numpy or torch alike
    # with k spots at one place d_k is 0: those at distance 0 are the neighbours
    return (distance < reach * nearest) | (distance == nearest)


def _nothing(pos: Tensor) -> _Found:
    index = torch.empty(0, dtype=torch.long, device=pos.device)
    value = torch.empty(0, dtype=torch.double, device=pos.device)
    return index, index, value, value


def _smoothstep(u: Tensor) -> Tensor:
    u = u.clamp(0, 1)
    return u * u * (3 - 2 * u)
