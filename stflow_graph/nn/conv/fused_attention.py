"""Forward and backward pass of the fused attention: what the kernels get, and what they return."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stflow_graph.graph.edge_orders import EdgeOrders
from stflow_graph.graph.kernels import padded

_BLOCK_K = 16  # edges of a tile; most spots have fewer neighbours
# parts of the spots: their programs load the layer's weights once; the backward pass also keeps a
# sum of the weights' gradients for each
_PARTS = {"forward": 4096, "backward": 1024}
# of the loop over edges: most spots have one tile, of which nothing is loaded ahead
_STAGES = {"forward": 1, "backward_by_receiver": 2, "backward_by_sender": 1}


def padded_width(width: int) -> int:
    """Return the power of two that a matrix product in Triton takes."""
    return max(16, padded(width))


class FusedAttention(torch.autograd.Function):
    """The context of ``AdditiveConv``; arguments as of :func:`launch_forward`."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """Return the context and keep what the backward pass reads: nothing of size E · C."""
        context, log_sum = launch_forward(*inputs)
        ctx.save_for_backward(*inputs[:7], context, log_sum)
        ctx.options = inputs[7:]  # orders and precision
        return context

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of all tensors."""
        tensors: Any = ctx.saved_tensors
        arguments = (*tensors[:7], *ctx.options, *tensors[7:], grad.contiguous())
        gradients = launch_backward(*arguments)
        return (
            *(
                x if need else None
                for x, need in zip(gradients, ctx.needs_input_grad[:7], strict=True)
            ),
            None,
            None,
        )


def _launch(kernel: str, n_programs: int, like: Tensor, *arguments: Any, **widths: Any) -> None:
    kernels = importlib.import_module("stflow_graph.nn.conv.fused_kernels")
    n_warps = max(1, widths["BLOCK_D"] * widths["BLOCK_E"] // 2048)
    with torch.cuda.device_of(like):
        getattr(kernels, kernel)[(n_programs,)](
            *arguments, **widths, num_warps=n_warps, num_stages=_STAGES[kernel]
        )


def _widths(f: Tensor, att: Tensor, precision: str) -> dict[str, Any]:
    heads, width = att.shape
    return {
        "H": heads,
        "D": width,
        "D_E": f.size(1),
        "BLOCK_K": _BLOCK_K,
        "BLOCK_D": padded_width(width),
        "BLOCK_E": padded_width(f.size(1)),
        "PRECISION": precision,
    }


def launch_forward(
    receiver: Tensor,
    sender: Tensor,
    value: Tensor,
    f: Tensor,
    log_weight: Tensor | None,
    to_hidden: Tensor,
    att: Tensor,
    orders: EdgeOrders,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Return the context ``[N, C + D_e]`` and the logarithm of the softmax's sums, ``[N, H]``.

    Args:
        receiver: ``[N, C]`` terms of the receiving spots; rows are contiguous.
        sender: ``[N, C]`` terms of the sending spots.
        value: ``[N, C]``.
        f: ``[E, D_e]`` encoded edges.
        log_weight: ``[E]`` logarithms of the edges' weights.
        to_hidden: ``[C, D_e]``, W_f.
        att: ``[H, C/H]``.
        orders: the edges.
        precision: of matrix products: ``"tf32x3"``, as exact as float32, or ``"ieee"``.
    """
    n, heads = len(receiver), len(att)
    context = value.new_empty(n, att.numel() + f.size(1))
    log_sum = torch.empty(n, heads, device=value.device)
    inputs = (receiver, sender, value, f, f if log_weight is None else log_weight, to_hidden, att)
    strides = (receiver.stride(0), sender.stride(0), value.stride(0))
    widths = {**_widths(f, att, precision), "HAS_WEIGHT": log_weight is not None}
    arguments = (*inputs, *orders.forward, context, log_sum, *strides)
    n_each = -(-n // _PARTS["forward"])
    _launch("forward", -(-n // n_each) * heads, value, *arguments, n, n_each, **widths)
    return context, log_sum


def launch_backward(
    receiver: Tensor,
    sender: Tensor,
    value: Tensor,
    f: Tensor,
    log_weight: Tensor | None,
    to_hidden: Tensor,
    att: Tensor,
    orders: EdgeOrders,
    precision: str,
    context: Tensor,
    log_sum: Tensor,
    grad: Tensor,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the first seven arguments from that of the context."""
    n, heads = len(receiver), len(att)
    widths = _widths(f, att, precision)
    d_receiver, d_sender, d_value = (
        torch.empty_like(part, memory_format=torch.contiguous_format)
        for part in (receiver, sender, value)
    )
    d_f = torch.empty_like(f)
    alpha, d_logit = torch.empty(2, len(f), heads, device=f.device).unbind(0)
    strides = (receiver.stride(0), sender.stride(0))
    inputs = (receiver, sender, value, f, f if log_weight is None else log_weight, to_hidden, att)
    outputs: tuple[Any, ...] = (d_receiver, d_f, alpha, d_logit)
    padding = {"HAS_WEIGHT": log_weight is not None, "BLOCK_H": padded(heads)}
    arguments = (*inputs, *orders.forward, context, log_sum, grad, *outputs, *strides)
    _launch("backward_by_receiver", n, value, *arguments, value.stride(0), **widths, **padding)
    n_each = -(-n // _PARTS["backward"])
    n_parts = -(-n // n_each)
    d_to_hidden = to_hidden.new_empty(n_parts, *to_hidden.shape, dtype=torch.float32)
    d_att = att.new_empty(n_parts, *att.shape, dtype=torch.float32)
    saved = (receiver, sender, f, to_hidden, att, *orders.reverse, grad, alpha, d_logit)
    outputs = (d_sender, d_value, d_to_hidden, d_att, n, n_each)
    _launch("backward_by_sender", n_parts * heads, value, *saved, *outputs, *strides, **widths)
    d_log_weight = None if log_weight is None else d_logit.sum(1).to(log_weight.dtype)
    weights = (d_to_hidden.sum(0).to(to_hidden.dtype), d_att.sum(0).to(att.dtype))
    return d_receiver, d_sender, d_value, d_f, d_log_weight, *weights
