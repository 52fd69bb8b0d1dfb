"""The default layer: additive attention with invariant edges."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stflow_graph.graph.frames import EDGE_FEATURES
from stflow_graph.nn.activation import silu_maybe_inplace
from stflow_graph.nn.conv import fused
from stflow_graph.nn.conv.edge_attention import EdgeAttentionConv, sum_with_map
from stflow_graph.nn.edge_encoder import InvariantEncoder

# of steps that the kernels do not take one by one
_HOOKS = tuple(
    f"_{step}_forward_{kind}"
    for step in ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")
    for kind in ("pre_hooks", "hooks")
)


class AdditiveConv(EdgeAttentionConv):
    r"""Attention with one hidden layer as its score, as in GATv2 (Brody et al., ICLR 2022).

    .. math::
        l_{ij} = a^\top \mathrm{SiLU}(q_i + k_j + W_f f_{ij} + W_y (y_j - y_i))

    Messages and softmax are those of :class:`EdgeAttentionConv`; f is the
    :class:`~stflow_graph.nn.edge_encoder.InvariantEncoder`'s. Invariant to motions of the slide on
    any array.

    Args:
        channels: C, width of the spots' states.
        n_genes: G, width of y.
        heads: H; divides ``channels`` and ``edge_channels``.
        edge_channels: D_e, width of f.
        edge_features: columns of ``edge_attr``; 7 with ``graph.SimilarityEdges``.
        dropout: of α.

    Raises:
        ValueError: heads that do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        n_genes: int,
        heads: int = 4,
        edge_channels: int = 32,
        edge_features: int = EDGE_FEATURES,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(channels, n_genes, heads, edge_channels, dropout)
        self.edge_encoder = InvariantEncoder(edge_channels, edge_features)
        self.score = AdditiveScore(channels, n_genes, heads, edge_channels)
        self.out = nn.Linear(channels + edge_channels, channels)

    def fused(
        self,
        edge_index: Tensor,
        receiver: Tensor,
        sender: Tensor,
        v: Tensor,
        f: Tensor,
        log_weight: Tensor | None,
    ) -> Tensor | None:
        """Return the sum of all messages by the kernels of ``nn.conv.fused``, where they apply."""
        if torch.compiler.is_compiling():
            return None
        plain = type(self) is AdditiveConv and type(self.score) is AdditiveScore
        hooks = (hook for name, hook in vars(self).items() if name.endswith(_HOOKS))
        if not plain or any(hooks) or (self.training and self.dropout > 0):
            return None
        to_hidden, att = self.score.lin_edge.weight, self.score.att
        return fused.attention(edge_index, receiver, sender, v, f, log_weight, to_hidden, att)


class AdditiveScore(nn.Module):
    r"""The score of :class:`AdditiveConv`, split so that nothing of width G is made per edge.

    The first linear map of a score that sees :math:`[q_i \| k_j \| f_{ij} \| y_j - y_i]` is the sum
    :math:`(q_i - W_y y_i) + (k_j + W_y y_j) + W_f f_{ij}`; the first two terms are computed once
    per spot.

    Args:
        channels: C.
        n_genes: G.
        heads: H.
        edge_channels: D_e.
    """

    def __init__(self, channels: int, n_genes: int, heads: int, edge_channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.lin_y = nn.Linear(n_genes, channels, bias=False)
        self.lin_edge = nn.Linear(edge_channels, channels, bias=False)
        self.att = nn.Parameter(torch.empty(heads, channels // heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights."""
        self.lin_y.reset_parameters()
        self.lin_edge.reset_parameters()
        nn.init.xavier_uniform_(self.att)

    def terms(self, q: Tensor, k: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the receiver's and the sender's terms, both ``[N, H, C/H]``."""
        y = self.lin_y(y).view_as(q)
        return q - y, k + y

    def forward(self, receiver: Tensor, sender: Tensor, f: Tensor) -> Tensor:
        """Return the score of every edge and head, ``[E, H]``.

        Args:
            receiver: ``[E, H, C/H]`` terms of the receiving spots; may be overwritten.
            sender: ``[E, H, C/H]`` terms of the sending spots.
            f: ``[E, D_e]`` encoded edges.
        """
        hidden = silu_maybe_inplace(sum_with_map(receiver, sender, f, self.lin_edge.weight))
        # the products of each head's part with its row of ``att``, as one matrix product
        return hidden.flatten(1) @ torch.block_diag(*self.att).T
