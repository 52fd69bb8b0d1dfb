"""Neighbourhood context: values averaged along the graph, for several distances at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform
from torch_geometric.utils import scatter


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
        data.context = averages(data.x, self.hops, data.edge_index, data.edge_weight)
        return data

    def __repr__(self) -> str:
        return f"{type(self).__name__}(hops={self.hops})"


def averages(
    x: Tensor, hops: Sequence[int], edge_index: Tensor, edge_weight: Tensor | None
) -> Tensor:
    """Return ``x [N, F]`` diffused over each number of steps, ``[N, len(hops) · F]``."""
    return torch.cat(diffuse([x] * len(hops), hops, edge_index, edge_weight), dim=1)


def diffuse(
    parts: Sequence[Tensor], hops: Sequence[int], edge_index: Tensor, edge_weight: Tensor | None
) -> list[Tensor]:
    r"""Return part p averaged :math:`n_p` times over the neighbours, times :math:`\sqrt{1 + n_p}`.

    :math:`z \leftarrow D^{-1} W z` with the edges' weights W and their sums D; a spot without
    edges keeps its value. After n steps a spot holds the mean over a disc of about
    :math:`\sqrt n` pitches; averages of that many spots vary less, and the factor gives all
    distances about the same scale. The features are those of SIGN (Frasca et al., 2020), with
    the rows of the adjacency normalised so that the border of a tissue is not darker than its
    inside.

    Args:
        parts: tensors ``[N, ...]``, one for each entry of ``hops``.
        hops: numbers of steps, ascending.
        edge_index: ``[2, E]`` neighbours (row 0) and spots (row 1).
        edge_weight: ``[E]``; None means 1.

    Raises:
        ValueError: hops that do not ascend or are not as many as the parts.
    """
    if len(parts) != len(hops) or list(hops) != sorted(set(hops)) or min(hops, default=1) < 1:
        raise ValueError(f"hops must ascend from 1 and fit {len(parts)} parts, got {list(hops)}")
    if not parts:
        return []
    sender, receiver = edge_index
    n, dtype = parts[0].size(0), parts[0].dtype
    if edge_weight is None:
        edge_weight = torch.ones(sender.size(0), device=sender.device)
    total = scatter(edge_weight, receiver, dim_size=n)
    share = (edge_weight / total.clamp(min=1e-30)[receiver]).to(dtype)[:, None]
    alone = (total <= 0).to(dtype)[:, None]
    widths = [part.size(1) for part in parts]
    left, done, results = torch.cat(list(parts), dim=1), 0, []
    for n_steps, width in zip(hops, widths, strict=True):
        for _ in range(n_steps - done):
            # not left[sender]: its gradient is summed in an order that threads decide
            sent = left.index_select(0, sender) * share
            moved = torch.zeros_like(left).index_add_(0, receiver, sent)
            left = moved + alone * left
        results.append((1 + n_steps) ** 0.5 * left[:, :width])
        left, done = left[:, width:], n_steps
    return results
