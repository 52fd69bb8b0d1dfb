"""The gated MLP that the published denoiser is made of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    r"""MLP with a SiLU gate: :math:`W_2\, \mathrm{LN}(\mathrm{SiLU}(a) \circ b) + b_2`.

    :math:`[a \| b] = W_1 x + b_1` are the halves of the hidden layer, the first one the gate
    (Shazeer, 2020). Same function, parameter names (``fc1``, ``norm``, ``fc2``) and shapes as
    timm's ``SwiGLUPacked`` with ``norm_layer=LayerNorm``: dropout after the product and at the end.

    Args:
        in_channels: channels of x.
        hidden_channels: width of both halves together, even.
        out_channels: channels of the result.
        dropout: probability of both dropouts.

    Raises:
        ValueError: ``hidden_channels`` is odd.
    """

    def __init__(
        self, in_channels: int, hidden_channels: int, out_channels: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if hidden_channels % 2:
            raise ValueError(f"hidden_channels must be even, got {hidden_channels}")
        self.fc1 = nn.Linear(in_channels, hidden_channels)
        self.norm = nn.LayerNorm(hidden_channels // 2)
        self.fc2 = nn.Linear(hidden_channels // 2, out_channels)
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        """Draw new weights."""
        for module in (self.fc1, self.norm, self.fc2):
            module.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., in_channels]`` to ``[..., out_channels]``."""
        return self.dropout(self.fc2(self.hidden(self.fc1(x))))

    def hidden(self, first: Tensor) -> Tensor:
        """Map the first linear map's result ``[..., hidden_channels]`` to the hidden layer."""
        gate, value = first.chunk(2, dim=-1)
        return self.norm(self.dropout(F.silu(gate) * value))
