"""Triton kernel of the weighted sum over neighbours; imported by ``graph.neighbor_sum`` alone.

One program is one warp; with more, compilers of Triton up to 3.6 fail at some widths.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from stflow_graph.graph.kernels import padded

_TILE = 256  # numbers of a program: spots times columns
_MAX_COLUMNS = 128


@triton.jit(do_not_specialize=["n_spots", "n_columns", "stride"])
def _sum(
    values,  # [M, C]
    sender,  # [E]
    starts,  # [N + 1]
    weight,  # [E]
    out,  # [N, C]
    n_spots,
    n_columns,
    stride,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    spot = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    here, inside = spot < n_spots, column < n_columns
    first = tl.load(starts + spot, mask=here, other=0)
    last = tl.load(starts + spot + 1, mask=here, other=0)
    total = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for step in range(0, tl.max(last - first, axis=0)):
        edge = first + step
        there = edge < last
        j = tl.load(sender + edge, mask=there, other=0)
        w = tl.load(weight + edge, mask=there, other=0.0).to(tl.float32)
        mask = there[:, None] & inside[None, :]
        z = tl.load(values + j[:, None] * stride + column[None, :], mask=mask, other=0.0)
        total += w[:, None] * z.to(tl.float32)
    mask = here[:, None] & inside[None, :]
    tl.store(
        out + spot[:, None] * n_columns + column[None, :], total.to(out.dtype.element_ty), mask=mask
    )


def blocks(n_columns: int) -> tuple[int, int]:
    """Return the spots and columns of a program's tile, powers of two."""
    block_c = min(_MAX_COLUMNS, padded(n_columns))
    return _TILE // block_c, block_c


def weighted_sum(values: Tensor, sender: Tensor, starts: Tensor, weight: Tensor) -> Tensor:
    """Return :func:`stflow_graph.graph.neighbor_sum.neighbor_sum` of ``values [m, C]``.

    Sums are in float32, in the order of the edges, whatever the width. Indices are int64.
    """
    n_spots, n_columns = len(starts) - 1, values.size(1)
    out = values.new_empty(n_spots, n_columns)
    block_n, block_c = blocks(n_columns)
    grid = (triton.cdiv(n_spots, block_n), triton.cdiv(n_columns, block_c))
    if out.numel():
        with torch.cuda.device_of(values):
            _sum[grid](
                values,
                sender,
                starts,
                weight,
                out,
                n_spots,
                n_columns,
                values.stride(0),
                BLOCK_N=block_n,
                BLOCK_C=block_c,
                num_warps=1,
            )
    return out
