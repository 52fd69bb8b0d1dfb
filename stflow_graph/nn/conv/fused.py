"""The default layer's attention in three kernels, on a GPU where Triton is installed.

The kernels compute what ``AdditiveConv`` computes in PyG's terms, which stays the reference: the
sums over a spot's neighbours of values and encoded edges, weighted by attention. Nothing of size
E · C is written. The backward pass goes over the edges twice, by receiving and by sending spot,
without atomic additions, so it is deterministic; it cannot be differentiated again.

They run as ``graph.kernels`` says. Under ``torch.compile``, with attention dropout or with hooks
on messages the reference runs.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from stflow_graph.graph import kernels
from stflow_graph.graph.edge_orders import EdgeOrders
from stflow_graph.nn.conv.fused_attention import (
    FusedAttention,
    launch_backward,
    launch_forward,
    padded_width,
)

# of matrix products in the kernels where others are float32: three TF32 products, about as exact,
# or float32
PRECISIONS = ("tf32x3", "ieee")
precision = PRECISIONS[0]
_MAX_TILE = 2**13  # padded C / H times padded D_e: what registers hold
_MAX_SIZE = 2**31  # offsets are int32
_DTYPES = (torch.float32, torch.bfloat16)


def attention(
    edge_index: Any,
    receiver: Tensor,
    sender: Tensor,
    value: Tensor,
    f: Tensor,
    log_weight: Tensor | None,
    to_hidden: Tensor,
    att: Tensor,
) -> Tensor | None:
    """Return the context of ``AdditiveConv``, or None where the kernels do not apply.

    Args:
        edge_index: ``[2, E]``.
        receiver: ``[N, H, C/H]`` terms of the receiving spots.
        sender: ``[N, H, C/H]`` terms of the sending spots.
        value: ``[N, H, C/H]``.
        f: ``[E, D_e]`` encoded edges.
        log_weight: ``[E]`` logarithms of the edges' weights.
        to_hidden: ``[C, D_e]``, W_f.
        att: ``[H, C/H]``.

    Returns:
        ``[N, C + D_e]``.
    """
    if not _applies(edge_index, receiver, sender, value, f):
        return None
    of_products = _precision(value)
    kind = (value.dtype, f.dtype, log_weight is not None, *att.shape, f.size(1), of_products)
    if not _works(receiver.device, torch.is_grad_enabled(), *kind):
        return None
    orders = EdgeOrders.of(edge_index)
    if len(orders.forward.starts) != len(receiver) + 1:  # a matrix of another size
        return None
    weight = None if log_weight is None else log_weight.contiguous()
    rows = (_by_rows(part) for part in (receiver, sender, value))
    context: Tensor = FusedAttention.apply(
        *rows, f.contiguous(), weight, to_hidden.contiguous(), att.contiguous(), orders, of_products
    )
    return context


def _precision(value: Tensor) -> str:
    """Return that of the kernels' products: no better than that of all other products."""
    low = value.dtype == torch.bfloat16 or torch.get_float32_matmul_precision() != "highest"
    return "tf32" if low else precision


def _applies(edge_index: Any, receiver: Tensor, sender: Tensor, value: Tensor, f: Tensor) -> bool:
    if not isinstance(edge_index, EdgeIndex) or not edge_index.is_sorted_by_col:
        return False
    if not kernels.wanted(receiver) or not len(f) or not kernels.is_available():
        return False
    parts = (receiver, sender, value, f)
    # the context is the widest of the spots' tensors, values may be a third of wider rows
    largest = max(len(receiver) * (value.stride(0) + f.size(1)), f.numel())
    tile = padded_width(receiver.size(2)) * padded_width(f.size(1))
    return (
        all(part.dtype in _DTYPES for part in parts) and largest < _MAX_SIZE and tile <= _MAX_TILE
    )


@functools.cache
def _works(
    device: torch.device,
    with_gradients: bool,
    dtype: torch.dtype,
    edge_dtype: torch.dtype,
    weighted: bool,
    heads: int,
    width: int,
    edge_width: int,
    precision: str,
) -> bool:
    """Return whether the kernels compile, which a graph of two spots shows once and for all."""
    channels = heads * width

    @torch.no_grad()
    def attempt() -> None:
        wide = torch.zeros(2, 3 * channels, device=device, dtype=dtype)
        rows = (wide[:, :channels].contiguous(), wide[:, :channels].contiguous())
        f = torch.zeros(2, edge_width, device=device, dtype=edge_dtype)
        weights = torch.zeros(2, device=device) if weighted else None
        to_hidden = torch.zeros(channels, edge_width, device=device)
        index = torch.tensor([[1, 0], [0, 1]], device=device)
        orders = EdgeOrders(EdgeIndex(index, sparse_size=(2, 2), sort_order="col"))
        att = torch.zeros(heads, width, device=device)
        inputs = (*rows, wide[:, 2 * channels :], f, weights, to_hidden, att, orders, precision)
        context, log_sum = launch_forward(*inputs)
        if with_gradients:
            launch_backward(*inputs, context, log_sum, torch.zeros_like(context))

    return kernels.compiles(attempt, "the default layer runs without its GPU kernels")


def _by_rows(x: Tensor) -> Tensor:
    """Return ``x [N, H, C/H]`` as ``[N, C]`` with contiguous rows, a view if possible."""
    x = x.flatten(1)
    return x if x.stride(1) == 1 else x.contiguous()
