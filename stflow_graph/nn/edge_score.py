r"""How an edge is scored before the softmax: the kinds of local attention.

Every kind is cut into a term of the receiving spot i, a term of the sending spot j and a term of
the edge, those of spots computed once per spot; only their combination is made per edge. The first
linear map of a score that sees :math:`[q_i \| k_j \| f_{ij} \| y_j - y_i]` is the sum
:math:`(W_q q_i - W_y y_i) + (W_k k_j + W_y y_j) + W_f f_{ij}`, so nothing of width G, nor the
concatenation, is ever made per edge.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stflow_graph.nn.activation import silu_of_own
from stflow_graph.nn.stflow.swiglu import SwiGLU


class AdditiveScore(nn.Module):
    r"""One hidden layer of head width, as in GATv2 (Brody et al., ICLR 2022).

    :math:`l_{ij} = a^\top \mathrm{SiLU}(q_i + k_j + W_f f_{ij} + W_y (y_j - y_i))`. A signed one
    reads a second number from the same hidden layer, see :meth:`score_and_sign`.

    Args:
        channels: C.
        n_genes: G.
        heads: H.
        edge_channels: D_e.
        signed: whether there is :meth:`score_and_sign`.
    """

    def __init__(
        self, channels: int, n_genes: int, heads: int, edge_channels: int, signed: bool = False
    ) -> None:
        super().__init__()
        self.heads = heads
        self.lin_y = nn.Linear(n_genes, channels, bias=False)
        self.lin_edge = nn.Linear(edge_channels, channels, bias=False)
        self.att = nn.Parameter(torch.empty(heads, channels // heads))
        self.att_sign = self.sign_bias = None
        if signed:
            self.att_sign = nn.Parameter(torch.empty(heads, channels // heads))
            self.sign_bias = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights."""
        self.lin_y.reset_parameters()
        self.lin_edge.reset_parameters()
        nn.init.xavier_uniform_(self.att)
        if self.att_sign is not None and self.sign_bias is not None:
            nn.init.xavier_uniform_(self.att_sign)
            nn.init.ones_(self.sign_bias)  # to begin with, attention is positive

    def spots(self, q: Tensor, k: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the receiver's and the sender's terms, both ``[N, H, C/H]``."""
        y = self.lin_y(y).view_as(q)
        return q - y, k + y

    def forward(self, receiver: Tensor, sender: Tensor, f: Tensor) -> Tensor:
        """Return the score of every edge and head, ``[E, H]``.

        Args:
            receiver: ``[E, H, C/H]`` terms of the receiving spots; may be written over.
            sender: ``[E, H, C/H]`` terms of the sending spots.
            f: ``[E, D_e]`` encoded edges.
        """
        return _product_by_head(self._hidden(receiver, sender, f), self.att)

    def score_and_sign(self, receiver: Tensor, sender: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores as :meth:`forward` does, and factors in (-1, 1) of each attention."""
        assert self.att_sign is not None
        assert self.sign_bias is not None
        hidden = self._hidden(receiver, sender, f)
        sign = torch.tanh(_product_by_head(hidden, self.att_sign) + self.sign_bias)
        return _product_by_head(hidden, self.att), sign

    def _hidden(self, receiver: Tensor, sender: Tensor, f: Tensor) -> Tensor:
        return silu_of_own(_sum_with_map(receiver, sender, f, self.lin_edge.weight))


class DotScore(nn.Module):
    r"""Scaled dot product: :math:`l_{ij} = q_i^\top (k_j + W_f f_{ij} + W_y y_j) / \sqrt{C/H}`.

    With :math:`y_j - y_i` in the place of :math:`y_j` the softmax over j would be the same.

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

    def reset_parameters(self) -> None:
        """Draw new weights."""
        self.lin_y.reset_parameters()
        self.lin_edge.reset_parameters()

    def spots(self, q: Tensor, k: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the receiver's and the sender's terms, both ``[N, H, C/H]``."""
        return q * q.size(-1) ** -0.5, k + self.lin_y(y).view_as(k)

    def forward(self, receiver: Tensor, sender: Tensor, f: Tensor) -> Tensor:
        """Return the score of every edge and head, ``[E, H]``; as of :class:`AdditiveScore`."""
        edge = self.lin_edge(f).view_as(sender)
        return (receiver * (sender + edge)).sum(-1)


class PublishedScore(nn.Module):
    r"""The published score :math:`ψ([q_i^a \| k_j^a \| f_{ij}^a \| y_j - y_i])` of each head a.

    ψ is one :class:`SwiGLU` of hidden width C for all heads (Huang et al., ICML 2025). The widest
    tensor is ``[E, H, C]``, its hidden layer.

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

    def spots(self, q: Tensor, k: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the receiver's and the sender's terms, both ``[N, H, C]``."""
        to_q, to_k, _, to_y = self._first_map()
        y = F.linear(y, to_y)[:, None]
        return F.linear(q, to_q, self.mlp.fc1.bias) - y, F.linear(k, to_k) + y

    def forward(self, receiver: Tensor, sender: Tensor, f: Tensor) -> Tensor:
        """Return the score of every edge and head, ``[E, H]``; terms are ``[E, H, C]``."""
        edge = f.unflatten(1, (self.heads, -1))
        hidden = self.mlp.hidden(_sum_with_map(receiver, sender, edge, self._first_map()[2]))
        return self.mlp.dropout(self.mlp.fc2(hidden)).squeeze(-1)


def _sum_with_map(a: Tensor, b: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return ``a + b + x @ weight.T``, of a's shape; written over a if no gradient is wanted."""
    shape, rows = a.shape, (-1, weight.size(0))
    a, b = a.view(rows), b.view(rows)
    # in place: a tensor of every edge costs more to have than to add up
    total = a + b if torch.is_grad_enabled() else a.add_(b)
    return total.addmm_(x.reshape(-1, weight.size(1)), weight.T).view(shape)


def _product_by_head(x: Tensor, weight: Tensor) -> Tensor:
    """Return the products ``[E, H]`` of each head's part of ``x [E, H, D]`` with ``[H, D]``."""
    return x.flatten(1) @ torch.block_diag(*weight).T
