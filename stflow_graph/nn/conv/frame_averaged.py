"""Additive attention with edges averaged over the four frames of their neighbourhood."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stflow_graph.graph.frames import EDGE_FEATURES
from stflow_graph.nn.activation import silu_maybe_inplace
from stflow_graph.nn.conv.additive import AdditiveConv


class FrameAveragedConv(AdditiveConv):
    r"""``AdditiveConv`` whose edges are encoded by frame averaging (Puny et al., ICLR 2022).

    f is the :class:`FrameEncoder`'s: φ is evaluated in each of the four frames of a neighbourhood
    and averaged, as in STFlow (Huang et al., ICML 2025, section 3.3). An average over the signs of
    an edge's two coordinates is a function of their squares, and every function of the squares is
    such an average, so the family of functions is that of ``AdditiveConv``, which evaluates φ once.
    Arguments as of ``AdditiveConv``.
    """

    def __init__(
        self,
        channels: int,
        n_genes: int,
        heads: int = 4,
        edge_channels: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(channels, n_genes, heads, edge_channels, dropout=dropout)
        self.edge_encoder = FrameEncoder(edge_channels)


class FrameEncoder(nn.Module):
    r"""Encodes an edge by its frame average, continuously where the frame is undefined.

    .. math::
        f_{ij} = w_i \tfrac14 \sum_{s \in \{-1, 1\}^2} φ([((r_{ij} - c_i) U_i) \circ s, ‖r_{ij}‖])
               + (1 - w_i) φ_0([‖r_{ij}‖, ‖r_{ij} - c_i‖, q_{ij}])

    The weight w and the second term keep the average continuous where the frame is undefined. φ
    and φ₀ share their last linear map, which commutes with the average.

    Args:
        out_channels: channels of f.
        hidden_channels: width of φ's hidden layer, ``2 * out_channels`` if None.
    """

    in_features = EDGE_FEATURES

    def __init__(self, out_channels: int, hidden_channels: int | None = None) -> None:
        super().__init__()
        hidden_channels = hidden_channels or 2 * out_channels
        self.framed = nn.Linear(3, hidden_channels)
        self.isotropic = nn.Linear(3, hidden_channels)
        self.out = nn.Linear(hidden_channels, out_channels)

    def reset_parameters(self) -> None:
        """Draw new weights."""
        for module in (self.framed, self.isotropic, self.out):
            module.reset_parameters()

    def forward(self, edge_attr: Tensor) -> Tensor:
        """Map ``edge_attr [E, 6]`` of ``graph.edge_geometry`` to ``[E, out_channels]``."""
        axes, distance, weight = edge_attr[:, :2], edge_attr[:, 2:3], edge_attr[:, 5:]
        first, second, third = self.framed.weight.T
        # flipping an axis flips the sign of its term, so the signs share their products
        along, across = axes[:, :1] * first, axes[:, 1:] * second
        centre = (distance * third).add_(self.framed.bias)
        plus, minus = centre + along, centre - along
        framed = silu_maybe_inplace(plus + across)
        framed = framed + silu_maybe_inplace(plus - across)
        framed = framed.add_(silu_maybe_inplace(minus + across))
        framed = framed.add_(silu_maybe_inplace(minus - across))
        # with the weight laid out so, its gradient is x.T @ g, several times faster than g.T @ x
        rows, weights = edge_attr[:, 2:5].contiguous(), self.isotropic.weight.T.contiguous()
        isotropic = silu_maybe_inplace(torch.addmm(self.isotropic.bias, rows, weights))
        return self.out((framed * (weight / 4)).add_(isotropic * (1 - weight)))
