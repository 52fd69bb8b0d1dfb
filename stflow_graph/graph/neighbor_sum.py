"""Weighted sums over the neighbours of each spot, without a tensor of all their values."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric import EdgeIndex

from stflow_graph.graph import kernels

_KERNEL_DTYPES = (torch.float32, torch.bfloat16)


def neighbor_sum(values: Tensor, sender: Tensor, starts: Tensor, weight: Tensor) -> Tensor:
    r"""Return :math:`\sum_{e \in i} w_e z_{j(e)}` of every spot i.

    Values are read and summed in one go (``embedding_bag``, on a GPU a kernel where no gradient is
    needed): nothing of the size of all edges times channels is made, and sums do not depend on the
    number of threads.

    Args:
        values: z, ``[m, C]``, or ``[m, H, D]`` for H heads.
        sender: j, ``[E]`` rows of ``values``, the edges of one spot after the other.
        starts: ``[n + 1]`` where the edges of each spot start, and the number of edges.
        weight: w, ``[E]``, or ``[E, H]``.

    Returns:
        ``[n, C]``, or ``[n, H, D]``.
    """
    total: Tensor
    if values.dim() == 2 and _by_kernel(values, weight):
        kernel = importlib.import_module("stflow_graph.graph.neighbor_sum_kernel")
        total = kernel.weighted_sum(values, sender, starts, weight)
        return total
    weight = weight.to(values.dtype)
    if _needs_gradient(values, weight) and not torch.compiler.is_compiling():
        total = _NeighborSum.apply(values, sender, starts, weight)
        return total
    return _sum(values, sender, starts, weight)


class _NeighborSum(torch.autograd.Function):
    """The sum, whose gradient of the values is the same sum over the edges turned round.

    ``embedding_bag`` would sort the edges of every head, and add up row by row.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, sender: Tensor, starts: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(values, sender, starts, weight)
        return _sum(values, sender, starts, weight)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        values, sender, starts, weight = ctx.saved_tensors
        (slope,) = slopes
        receiver = torch.repeat_interleave(starts.diff(), output_size=sender.size(0))
        of_values = of_weight = None
        if ctx.needs_input_grad[0]:
            order = sender.argsort(stable=True)
            back = edge_starts(sender[order], values.size(0))
            of_values = neighbor_sum(slope, receiver[order], back, weight[order])
        if ctx.needs_input_grad[3]:
            of_weight = (slope.index_select(0, receiver) * values.index_select(0, sender)).sum(-1)
        return of_values, None, None, of_weight


def _sum(values: Tensor, sender: Tensor, starts: Tensor, weight: Tensor) -> Tensor:
    if values.dim() == 2:
        return F.embedding_bag(
            sender, values, starts, mode="sum", per_sample_weights=weight, include_last_offset=True
        )
    n_edges, heads = weight.shape
    head = torch.arange(heads, device=sender.device)[:, None]
    rows = (sender * heads + head).flatten()  # head by head, all edges
    bags = torch.cat([(starts[:-1] + head * n_edges).flatten(), starts[-1:] * heads])
    sums = F.embedding_bag(
        rows,
        values.flatten(0, 1),
        bags,
        mode="sum",
        per_sample_weights=weight.t().flatten(),
        include_last_offset=True,
    )
    return sums.view(heads, -1, values.size(2)).transpose(0, 1)


def _needs_gradient(values: Tensor, weight: Tensor) -> bool:
    return torch.is_grad_enabled() and (values.requires_grad or weight.requires_grad)


def _by_kernel(values: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling() or not kernels.wanted(values) or not kernels.is_available():
        return False
    if _needs_gradient(values, weight):
        return False
    if values.dtype not in _KERNEL_DTYPES or values.stride(1) != 1:
        return False
    width = kernels.padded(values.size(1))
    return _works(values.device, values.dtype, weight.dtype, width)


@functools.cache
def _works(device: torch.device, dtype: torch.dtype, weight_dtype: torch.dtype, width: int) -> bool:
    """Return whether the kernel compiles, which a sum of one spot shows once and for all."""
    values = torch.ones(1, width, device=device, dtype=dtype)
    weight = torch.ones(1, device=device, dtype=weight_dtype)
    sender, starts = torch.zeros_like(weight, dtype=torch.long), torch.arange(2, device=device)

    def attempt() -> None:
        kernel = importlib.import_module("stflow_graph.graph.neighbor_sum_kernel")
        if not (kernel.weighted_sum(values, sender, starts, weight) == 1).all():
            raise ArithmeticError("a wrong sum")

    return kernels.compiles(attempt, "sums over neighbours run without their GPU kernel")


def edge_starts(receiver: Tensor, n_spots: int) -> Tensor:
    """Return ``[n_spots + 1]``: where the edges of each spot start in a sorted ``receiver [E]``."""
    spots = torch.arange(n_spots + 1, device=receiver.device, dtype=receiver.dtype)
    return torch.searchsorted(receiver, spots)


def is_sorted(receiver: Tensor) -> bool:
    """Return whether the edges of each spot stand side by side, those of the first spot first."""
    return bool((receiver[1:] >= receiver[:-1]).all())


def sorted_edges(edge_index: Tensor, n_spots: int) -> EdgeIndex:
    """Return ``edge_index [2, E]``, sorted by spot (row 1), as PyG's ``EdgeIndex`` that says so."""
    return EdgeIndex(edge_index, sparse_size=(n_spots, n_spots), sort_order="col")
