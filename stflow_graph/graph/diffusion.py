"""Neighbourhood context: values averaged along the graph, for several distances at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform
from torch_geometric.utils import scatter

from stflow_graph.graph.neighbor_sum import edge_starts, neighbor_sum

# z [N, ...] -> the mean over each spot's neighbours, of z's shape
Average = Callable[[Tensor], Tensor]


class NeighbourhoodContext(BaseTransform):
    """Adds ``context [N, len(hops) · F]``: a slide's ``x`` diffused along its spatial graph.

    Made before regions are cut from a slide, so a region's border spots keep the context that
    they have in the whole slide.

    Args:
        hops: see :func:`diffuse`.
    """

    def __init__(self, hops: Sequence[int] = (1, 4, 16)) -> None:
        self.hops = tuple(hops)

    def forward(self, data: Data) -> Data:
        """Return ``data`` with ``context``; it must have been through a spatial graph."""
        average = Averaging(data.edge_index, data.edge_weight, data.x.size(0))
        data.context = diffuse(data.x, self.hops, average)
        return data

    def __repr__(self) -> str:
        return f"{type(self).__name__}(hops={self.hops})"


class Averaging:
    r"""The mean over neighbours, :math:`z \mapsto D^{-1} W z`, D the sums of the weights W.

    The rows of the adjacency are normalised so that the border of a tissue is not darker than its
    inside; a spot without edges keeps its value.

    Args:
        edge_index: ``[2, E]`` neighbours (row 0) and spots (row 1).
        edge_weight: ``[E]``; None means 1.
        n_spots: number of spots averaged, numbered from 0 in the second row.
        first: row of the first of them among the values, to which the first row of edges points;
            those that are only neighbours stand elsewhere.
    """

    def __init__(
        self, edge_index: Tensor, edge_weight: Tensor | None, n_spots: int, first: int = 0
    ) -> None:
        in_order = isinstance(edge_index, EdgeIndex) and edge_index.is_sorted_by_col
        if isinstance(edge_index, EdgeIndex):
            edge_index = edge_index.as_tensor()
        sender, receiver = edge_index
        if edge_weight is None:
            edge_weight = torch.ones(sender.size(0), device=edge_index.device)
        if not in_order:  # a compiled graph cannot ask whether plain edges are
            order = receiver.argsort(stable=True)
            sender, receiver, edge_weight = sender[order], receiver[order], edge_weight[order]
        self.sender = sender
        total = scatter(edge_weight, receiver, dim_size=n_spots)
        self.starts = edge_starts(receiver, n_spots)
        self.share = edge_weight / total.clamp(min=1e-30)[receiver]
        alone = (total <= 0)[:, None]
        # what few slides need is left out of every step; a compiled graph cannot ask
        needed = torch.compiler.is_compiling() or bool(alone.any())
        self.alone = alone if needed else None
        self.rows = slice(first, first + n_spots)

    def __call__(self, z: Tensor) -> Tensor:
        """Return the averages ``[n_spots, C]`` of ``z``, which has the neighbours' rows too."""
        average = neighbor_sum(z, self.sender, self.starts, self.share)
        if self.alone is None:
            return average
        return torch.addcmul(average, self.alone.to(z.dtype), z[self.rows])


def diffuse(x: Tensor, hops: Sequence[int], average: Average) -> Tensor:
    r"""Return x averaged :math:`n_p` times, times :math:`\sqrt{1 + n_p}`, for every entry of hops.

    After n steps a spot holds the mean over a disc of about :math:`\sqrt n` pitches; averages of
    that many spots vary less, and the factor gives all distances about the same scale. The
    features are those of SIGN (Frasca et al., 2020).

    Args:
        x: ``[N, F]``.
        hops: numbers of steps, ascending.
        average: one step.

    Returns:
        ``[N, len(hops) · F]``.

    Raises:
        ValueError: hops that do not ascend.
    """
    check_hops(hops)
    results, done = [], 0
    for n_steps in hops:
        for _ in range(n_steps - done):
            x = average(x)
        results.append((1 + n_steps) ** 0.5 * x)
        done = n_steps
    return torch.cat(results, dim=1)


def diffuse_sum(parts: Iterable[Tensor], hops: Sequence[int], average: Average) -> Tensor:
    r"""Return :math:`\sum_p \sqrt{1 + n_p} A^{n_p} z_p`, A the averaging, by Horner's rule.

    The part that goes furthest is carried first and the others join it on the way, so the number
    of steps is the largest of them and one tensor is carried.

    Args:
        parts: tensors ``[N, C]``, one for each entry of ``hops``, at least one, the furthest first.
        hops: numbers of steps n, ascending from 0 or more.
        average: one step.

    Raises:
        ValueError: hops that do not ascend or are not as many as the parts.
    """
    check_hops(hops, least=0)
    if not hops:
        raise ValueError("a sum needs one part or more")
    carried: Tensor | None = None
    for part, n_steps, before in zip(parts, reversed(hops), reversed((0, *hops[:-1])), strict=True):
        scale = (1 + n_steps) ** 0.5
        carried = part * scale if carried is None else torch.add(carried, part, alpha=scale)
        for _ in range(n_steps - before):
            carried = average(carried)
    assert carried is not None
    return carried


def check_hops(hops: Sequence[int], least: int = 1) -> None:
    """Raise ValueError unless hops ascend from 1, or another least number."""
    if list(hops) != sorted(set(hops)) or min(hops, default=least) < least:
        raise ValueError(f"hops must ascend from {least}, got {list(hops)}")
