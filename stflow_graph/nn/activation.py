"""Activations that save memory where no gradient is needed."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def silu_maybe_inplace(x: Tensor) -> Tensor:
    """Return SiLU of a temporary tensor, computed in place unless a gradient needs it."""
    return F.silu(x, inplace=not x.requires_grad)
