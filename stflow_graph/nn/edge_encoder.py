"""Encoding of edges by geometry that the arbitrary signs of their frames leave unchanged."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stflow_graph.graph.frames import EDGE_FEATURES
from stflow_graph.nn.activation import silu_maybe_inplace


class EncodedEdges(NamedTuple):
    """Edges encoded beforehand, in place of their geometry.

    Attributes:
        f: ``[E, D_e]``.
    """

    f: Tensor


class InvariantEncoder(nn.Module):
    r"""Encodes an edge by the invariants of the four signs of its frame.

    .. math::
        f_{ij} = φ([w_i a^2, w_i b^2, ‖r_{ij}‖, ‖r_{ij} - c_i‖, q_{ij}, w_i]),
        \qquad (a, b) = (r_{ij} - c_i) U_i

    An average over the signs of (a, b), as ``FrameAveragedConv`` computes it, is a function of
    (a², b²), and every function of (a², b²) is such an average; so this encodes what frame
    averaging (Puny et al., ICLR 2022) can, with one evaluation of φ instead of five.
    Squares fade out with the axes' weight w where the axes are arbitrary, so f is continuous.

    Args:
        out_channels: channels of f.
        in_features: columns of ``edge_attr``; those beyond the six of ``graph.edge_geometry``, such
            as a type of edges, enter φ as they are.
        hidden_channels: width of φ's hidden layer, ``2 * out_channels`` if None.
    """

    def __init__(
        self,
        out_channels: int,
        in_features: int = EDGE_FEATURES,
        hidden_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        hidden_channels = hidden_channels or 2 * out_channels
        self.hidden = nn.Linear(in_features, hidden_channels)
        self.out = nn.Linear(hidden_channels, out_channels)

    def reset_parameters(self) -> None:
        """Draw new weights."""
        self.hidden.reset_parameters()
        self.out.reset_parameters()

    def forward(self, edge_attr: Tensor) -> Tensor:
        """Map ``edge_attr [E, in_features]`` to ``[E, out_channels]``."""
        squares = edge_attr[:, :2].square() * edge_attr[:, 5:6]
        # with the weight laid out so, its gradient is x.T @ g, several times faster than g.T @ x
        weight = self.hidden.weight.T.contiguous()
        invariants = torch.cat([squares, edge_attr[:, 2:]], dim=1)
        return self.out(silu_maybe_inplace(torch.addmm(self.hidden.bias, invariants, weight)))
