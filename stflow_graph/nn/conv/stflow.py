"""The published layer of STFlow as message passing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stflow_graph.graph.stflow import STFLOW_EDGE_FEATURES
from stflow_graph.nn.conv.edge_attention import EdgeAttentionConv, sum_with_map
from stflow_graph.nn.stflow.swiglu import SwiGLU

_SIGNS = ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0))


class STFlowConv(EdgeAttentionConv):
    r"""The published attention (Huang et al., ICML 2025, section 3.3), never wide per edge.

    .. math::
        l_{ij}^a = ψ([q_i^a \| k_j^a \| f_{ij}^a \| y_j - y_i]), \qquad
        f_{ij} = \tfrac14 \sum_s φ([((r_{ij} - c_i) U_i) \circ s \,\|\, ‖r_{ij}‖])

    for the heads a; φ, ψ and W_o are ``SwiGLU``. Equal to the layer of ``TransformerDenoiser`` on
    the same graph, which ``graph.STFlowGraph`` makes. It keeps the published frames, which are
    arbitrary on exact lattices, and with them the output.

    Args:
        channels: C, width of the spots' states.
        n_genes: G, width of y.
        heads: H; divides ``channels`` and ``edge_channels``.
        edge_channels: D_e, width of f.
        dropout: of α.
        mlp_dropout: of φ, ψ and W_o.

    Raises:
        ValueError: heads that do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        n_genes: int,
        heads: int = 4,
        edge_channels: int = 128,
        dropout: float = 0.2,
        mlp_dropout: float = 0.2,
    ) -> None:
        super().__init__(channels, n_genes, heads, edge_channels, dropout)
        self.edge_encoder = STFlowEdgeEncoder(edge_channels, mlp_dropout)
        self.score = STFlowScore(channels, n_genes, heads, edge_channels, mlp_dropout)
        self.out = SwiGLU(channels + edge_channels, channels, channels, mlp_dropout)


class STFlowEdgeEncoder(SwiGLU):
    r"""The published encoder: :math:`\tfrac14 \sum_s φ([((r - c) U) \circ s \,\|\, ‖r‖])`.

    φ is a :class:`SwiGLU`; its last linear map commutes with the average and is applied once.

    Args:
        out_channels: D_e.
        dropout: of φ.
    """

    signs: Tensor
    in_features = STFLOW_EDGE_FEATURES

    def __init__(self, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__(3, out_channels, out_channels, dropout)
        signs = torch.cat([torch.tensor(_SIGNS), torch.ones(4, 1)], dim=1)
        self.register_buffer("signs", signs, persistent=False)

    def forward(self, edge_attr: Tensor) -> Tensor:
        """Map ``edge_attr [E, 3]`` of ``graph.STFlowGraph`` to ``[E, D_e]``."""
        hidden = self.hidden(self.fc1(edge_attr[:, None] * self.signs))
        return self.dropout(self.fc2(hidden.mean(dim=1)))


class STFlowScore(nn.Module):
    r"""The published score ψ, its first linear map split as that of ``AdditiveScore``.

    One :class:`SwiGLU` of hidden width C for all heads. The widest tensor is ``[E, H, C]``, its
    hidden layer.

    Args:
        channels: C.
        n_genes: G.
        heads: H.
        edge_channels: D_e.
        dropout: of ψ.
    """

    def __init__(
        self, channels: int, n_genes: int, heads: int, edge_channels: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.heads = heads
        width, edge_width = channels // heads, edge_channels // heads
        self.parts = (width, width, edge_width, n_genes)
        self.mlp = SwiGLU(sum(self.parts), channels, 1, dropout)

    def reset_parameters(self) -> None:
        """Draw new weights."""
        self.mlp.reset_parameters()

    def _first_map(self) -> tuple[Tensor, ...]:
        """Return W_q, W_k, W_f and W_y: the columns of ψ's first linear map."""
        return self.mlp.fc1.weight.split(self.parts, dim=1)

    def terms(self, q: Tensor, k: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the receiver's and the sender's terms, both ``[N, H, C]``."""
        to_q, to_k, _, to_y = self._first_map()
        y = F.linear(y, to_y)[:, None]
        return F.linear(q, to_q, self.mlp.fc1.bias) - y, F.linear(k, to_k) + y

    def forward(self, receiver: Tensor, sender: Tensor, f: Tensor) -> Tensor:
        """Return the score of every edge and head, ``[E, H]``; terms are ``[E, H, C]``."""
        edge = f.unflatten(1, (self.heads, -1))
        hidden = self.mlp.hidden(sum_with_map(receiver, sender, edge, self._first_map()[2]))
        return self.mlp.dropout(self.mlp.fc2(hidden)).squeeze(-1)
