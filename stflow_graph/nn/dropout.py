"""Dropout whose masks cost little on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 2**16  # of the 16-bit numbers that decide what is kept
_LANES = 4  # of them in a 64-bit number


def cheap_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Return ``F.dropout(x, p, training)``, with p rounded to a multiple of 2⁻¹⁶.

    torch draws a double for every entry of a mask on the CPU, which is most of the cost of a
    strong dropout of wide inputs; here one 64-bit number gives four entries. Elsewhere it is
    torch's own.

    Args:
        x: any shape.
        p: share dropped, in [0, 1).
        training: whether to drop anything.
    """
    if not _by_numpy(x, p, training):
        return F.dropout(x, p, training)
    keep, factor = _mask(tuple(x.shape), p)
    return x * torch.from_numpy(keep).to(x.dtype).mul_(factor)


def dropped_linear(
    parts: Sequence[Tensor], p: float, weight: Tensor, bias: Tensor, training: bool
) -> Tensor:
    """Return a linear map ``[N, C]`` of inputs side by side, after dropout of their entries.

    On a CPU nothing of the inputs' width is written but the entries that are kept; they are scaled
    after the map.

    Args:
        parts: tensors ``[N, F_i]``.
        p: share dropped, in [0, 1).
        weight: ``[C, ΣF_i]``.
        bias: ``[C]``.
        training: whether to drop anything.
    """
    learned = torch.is_grad_enabled() and any(part.requires_grad for part in parts)
    single = all(part.dtype in (torch.float32, torch.float64) for part in parts)
    if learned or not single or not _by_numpy(parts[0], p, training):
        return F.linear(cheap_dropout(torch.cat(list(parts), dim=1), p, training), weight, bias)
    n, widths = parts[0].size(0), [part.size(1) for part in parts]
    keep, factor = _mask((n, sum(widths)), p)
    kept = parts[0].new_empty(keep.shape)
    for part, own, out in zip(parts, _columns(keep, widths), kept.split(widths, 1), strict=True):
        np.multiply(part.numpy(force=True), own, out=out.numpy())
    return torch.addmm(bias, kept, weight.t(), alpha=factor)


def _by_numpy(x: Tensor, p: float, training: bool) -> bool:
    compiled = torch.compiler.is_compiling()
    return training and p > 0 and x.device.type == "cpu" and not compiled


def _mask(shape: tuple[int, ...], p: float) -> tuple[np.ndarray, float]:
    """Return what to keep, and what to multiply it by; torch's generator decides."""
    n, n_kept = int(np.prod(shape)), round((1 - p) * _LEVELS)
    seed = int(torch.randint(2**63 - 1, ()))
    words: np.ndarray = np.random.SFC64(seed).random_raw(-(-n // _LANES))
    keep: np.ndarray = words.view(np.uint16)[:n].reshape(shape) < n_kept
    return keep, _LEVELS / n_kept


def _columns(matrix: np.ndarray, widths: Sequence[int]) -> list[np.ndarray]:
    return np.split(matrix, np.cumsum(widths)[:-1], axis=1)


class CheapDropout(nn.Dropout):
    """``nn.Dropout`` by :func:`cheap_dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x, in training with a share ``p`` of its entries dropped."""
        return cheap_dropout(x, self.p, self.training)
