"""Embedding of the flow time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_MAX_PERIOD = 10_000


def sinusoidal(t: Tensor, channels: int) -> Tensor:
    r"""Return :math:`[\cos(t ω_i)]_i \,\|\, [\sin(t ω_i)]_i`.

    :math:`ω_i = 10000^{-2 i / d}` with i = 0, ..., d/2 - 1.

    Args:
        t: ``[n_slides]`` times in [0, 1].
        channels: d, even.

    Returns:
        ``[n_slides, channels]``, float32 or of t's dtype if that is finer.
    """
    half = channels // 2
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    frequency = torch.exp(
        torch.arange(half, dtype=t.dtype, device=t.device) * (-math.log(_MAX_PERIOD) / half)
    )
    angle = t[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """τ(t): sinusoids, then Linear - SiLU - Linear (Huang et al., ICML 2025).

    Args:
        channels: C, channels of the embedding.
        frequency_channels: channels of the sinusoids, even.

    Raises:
        ValueError: ``frequency_channels`` is odd.
    """

    def __init__(self, channels: int, frequency_channels: int = 256) -> None:
        super().__init__()
        if frequency_channels % 2:
            raise ValueError(f"frequency_channels must be even, got {frequency_channels}")
        self.frequency_channels = frequency_channels
        self.mlp = nn.Sequential(
            nn.Linear(frequency_channels, channels), nn.SiLU(), nn.Linear(channels, channels)
        )

    def forward(self, t: Tensor) -> Tensor:
        """Embed times ``[n_slides]`` as ``[n_slides, C]``."""
        embedding = sinusoidal(t, self.frequency_channels)
        return self.mlp(embedding.to(next(self.mlp.parameters()).dtype))
