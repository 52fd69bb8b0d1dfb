"""The published read-out of expression."""

from __future__ import annotations

from torch import Tensor, nn


class GeneHead(nn.Module):
    """Reads expression out of the states: Linear, GELU, LayerNorm, Linear (STFlow).

    The names of the parameters are the public code's.

    Args:
        channels: D.
        n_genes: G.
        dropout: before and after the last map.
    """

    def __init__(self, channels: int, n_genes: int, dropout: float) -> None:
        super().__init__()
        self.output = nn.Sequential(
            nn.Linear(channels, channels),
            nn.GELU(),
            nn.LayerNorm(channels),
            nn.Dropout(dropout),
            nn.Linear(channels, n_genes),
            nn.Dropout(dropout),
        )

    def forward(self, h: Tensor) -> Tensor:
        """Map ``[N, D]`` to ``[N, G]``."""
        return self.output(h)
