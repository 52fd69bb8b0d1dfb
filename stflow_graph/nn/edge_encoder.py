"""Encoders of edges that do not see the arbitrary signs of their frames."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stflow_graph.nn.activation import silu_of_own
from stflow_graph.nn.stflow.swiglu import SwiGLU

_SIGNS = ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0))


class EncodedEdges(NamedTuple):
    """Edges that were encoded before, in the place of their geometry.

    Attributes:
        f: ``[E, D_e]``.
    """

    f: Tensor


class FrameEncoder(nn.Module):
    r"""Encodes an edge by its frame average, continuously where the frame is undefined.

    .. math::
        f_{ij} = w_i \tfrac14 \sum_{s \in \{-1, 1\}^2} φ([((r_{ij} - c_i) U_i) \circ s, ‖r_{ij}‖])
               + (1 - w_i) φ_0([‖r_{ij}‖, ‖r_{ij} - c_i‖, q_{ij}])

    The first term is the frame average of STFlow (Huang et al., ICML 2025, section 3.3); the
    weight w and the second term keep it continuous where the frame is undefined. φ and φ₀ share
    their last linear map, which commutes with the average.

    Args:
        out_channels: channels of f.
        hidden_channels: width of φ's hidden layer, ``2 * out_channels`` if None.
    """

    in_features = 6

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
        # flipping an axis flips the sign of its term, so the four signs need no products of theirs
        along, across = axes[:, :1] * first, axes[:, 1:] * second
        centre = (distance * third).add_(self.framed.bias)
        plus, minus = centre + along, centre - along
        framed = silu_of_own(plus + across)
        framed = framed + silu_of_own(plus - across)
        framed = framed.add_(silu_of_own(minus + across)).add_(silu_of_own(minus - across))
        # with the weight laid out so, its gradient is x.T @ g, several times faster than g.T @ x
        rows, weights = edge_attr[:, 2:5].contiguous(), self.isotropic.weight.T.contiguous()
        isotropic = silu_of_own(torch.addmm(self.isotropic.bias, rows, weights))
        return self.out((framed * (weight / 4)).add_(isotropic * (1 - weight)))


class InvariantEncoder(nn.Module):
    r"""Encodes an edge by what the four signs of its frame leave unchanged.

    .. math::
        f_{ij} = φ([w_i a^2, w_i b^2, ‖r_{ij}‖, ‖r_{ij} - c_i‖, q_{ij}, w_i]),
        \qquad (a, b) = (r_{ij} - c_i) U_i

    An average over the signs of (a, b), as :class:`FrameEncoder` makes, is a function of
    (a², b²), and every function of (a², b²) is such an average; so this encodes what frame
    averaging (Puny et al., ICLR 2022) can, with one evaluation of φ in the place of five.
    Squares fade out with the axes' weight w where the axes are arbitrary, so f is continuous.

    Args:
        out_channels: channels of f.
        hidden_channels: width of φ's hidden layer, ``2 * out_channels`` if None.
    """

    in_features = 6

    def __init__(self, out_channels: int, hidden_channels: int | None = None) -> None:
        super().__init__()
        hidden_channels = hidden_channels or 2 * out_channels
        self.hidden = nn.Linear(self.in_features, hidden_channels)
        self.out = nn.Linear(hidden_channels, out_channels)

    def reset_parameters(self) -> None:
        """Draw new weights."""
        self.hidden.reset_parameters()
        self.out.reset_parameters()

    def forward(self, edge_attr: Tensor) -> Tensor:
        """Map ``edge_attr [E, 6]`` of ``graph.edge_geometry`` to ``[E, out_channels]``."""
        squares = edge_attr[:, :2].square() * edge_attr[:, 5:]
        # with the weight laid out so, its gradient is x.T @ g, several times faster than g.T @ x
        weight = self.hidden.weight.T.contiguous()
        invariants = torch.cat([squares, edge_attr[:, 2:]], dim=1)
        return self.out(silu_of_own(torch.addmm(self.hidden.bias, invariants, weight)))


class PublishedFrameEncoder(SwiGLU):
    r"""The published encoder: :math:`\tfrac14 \sum_s φ([((r - c) U) \circ s \,\|\, ‖r‖])`.

    φ is a :class:`SwiGLU`; its last linear map commutes with the average and is applied once.

    Args:
        out_channels: D_e.
        dropout: of φ.
    """

    signs: Tensor
    in_features = 3

    def __init__(self, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__(3, out_channels, out_channels, dropout)
        signs = torch.cat([torch.tensor(_SIGNS), torch.ones(4, 1)], dim=1)
        self.register_buffer("signs", signs, persistent=False)

    def forward(self, edge_attr: Tensor) -> Tensor:
        """Map ``edge_attr [E, 3]`` of ``graph.PublishedGraph`` to ``[E, D_e]``."""
        hidden = self.hidden(self.fc1(edge_attr[:, None] * self.signs))
        return self.dropout(self.fc2(hidden.mean(dim=1)))
