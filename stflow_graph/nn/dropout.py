"""Dropout whose masks cost little on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LANES = 4  # 16-bit numbers in an int64


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
    if not training or p == 0 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    kept = round((1 - p) * 2**16)
    words = torch.empty(-(-x.numel() // _LANES), dtype=torch.int64).random_(-(2**63), None)
    lanes = words.view(torch.int16)[: x.numel()].view(x.shape)
    return x * (lanes < kept - 2**15).to(x.dtype).mul_(2**16 / kept)


class CheapDropout(nn.Dropout):
    """``nn.Dropout`` by :func:`cheap_dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x, in training with a share ``p`` of its entries dropped."""
        return cheap_dropout(x, self.p, self.training)
