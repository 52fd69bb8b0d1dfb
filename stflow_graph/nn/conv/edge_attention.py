"""What the attention layers share: messages, softmax over weighted edges, forms of edges."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.nn import MessagePassing
from torch_geometric.typing import Adj, SparseTensor
from torch_geometric.utils import is_torch_sparse_tensor, softmax, to_edge_index
from torch_geometric.utils.sparse import set_sparse_value

from stflow_graph.graph.neighbor_sum import neighbor_sum
from stflow_graph.nn.edge_encoder import EncodedEdges


class EdgeAttentionConv(MessagePassing):
    r"""Multi-head attention over a spot's neighbours that sees geometry and expression.

    .. math::
        h'_i = W_o \Big[ \sum_j α_{ij} v_j \,\Big\|\, \sum_j α_{ij} f_{ij} \Big], \qquad
        α_{ij} = \frac{w_{ij} e^{l_{ij}}}{\sum_m w_{im} e^{l_{im}}}

    with queries, keys and values of ``LayerNorm(h)``, y the current estimate of expression, f the
    encoded edges and w the edge weights. A subclass chooses three parts: ``edge_encoder``, which
    maps ``edge_attr [E, in_features]`` to f; ``score``, whose ``terms(q, k, y)`` gives a term of
    the receiving and one of the sending spot, computed once per spot, and whose
    ``forward(receiver, sender, f)`` combines them to the scores l per edge; and ``out``, W_o.

    Edges sorted by spot, that is an ``EdgeIndex`` with ``sort_order="col"`` or a sparse matrix,
    are summed without a tensor of all messages.

    Args:
        channels: C, width of the spots' states.
        n_genes: G, width of y.
        heads: H; divides ``channels`` and ``edge_channels``.
        edge_channels: D_e, width of f.
        dropout: of α.

    Raises:
        ValueError: heads that do not divide the channels.
    """

    SUPPORTS_FUSED_EDGE_INDEX = True

    edge_encoder: Any
    score: Any
    out: nn.Module

    def __init__(
        self, channels: int, n_genes: int, heads: int, edge_channels: int, dropout: float
    ) -> None:
        super().__init__(aggr="add", node_dim=0)
        if channels % heads or edge_channels % heads:
            raise ValueError(
                f"heads must divide channels and edge_channels, got {heads}, {channels}, "
                f"{edge_channels}"
            )
        self.channels, self.n_genes, self.heads = channels, n_genes, heads
        self.edge_channels, self.dropout = edge_channels, dropout
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)

    def reset_parameters(self) -> None:
        """Draw new weights."""
        super().reset_parameters()
        for module in self.children():
            if module is not self.aggr_module:
                module.reset_parameters()

    def forward(
        self,
        h: Tensor,
        y: Tensor,
        edge_index: Adj,
        edge_attr: Tensor | EncodedEdges,
        edge_weight: Tensor | None = None,
        return_attention_weights: bool | None = None,
    ) -> Any:
        """Return the update of the spots' states, ``[N, C]``.

        Args:
            h: ``[N, C]`` states.
            y: ``[N, G]`` current estimate of expression.
            edge_index: ``[2, E]`` neighbours (row 0) and spots (row 1), a Tensor or ``EdgeIndex``;
                or its transposed sparse matrix ``[N, N]`` (PyG's ``adj_t``).
            edge_attr: ``[E, in_features]`` geometry, in the order of the edges (of a sparse
                matrix: of its values); or what this layer's ``edge_encoder`` made of it, as
                ``EncodedEdges``, to be encoded once for many calls.
            edge_weight: ``[E]`` weights in (0, 1]; None means 1.
            return_attention_weights: whether to return also the edges and their attention.

        Returns:
            ``[N, C]``; if asked for ``([N, C], (edge_index, α [E, H]))``, or with a sparse matrix
            ``([N, C], matrix of α)``, as PyG's attention layers do.

        Raises:
            ValueError: shapes that do not fit; the message prints them.
        """
        self._check(h, y, edge_index, edge_attr, edge_weight)
        original = edge_index
        if not isinstance(original, Tensor) or is_torch_sparse_tensor(original):
            edge_index = _edges_of(original)
        q, k, v = self.qkv(self.norm(h)).view(h.size(0), 3, self.heads, -1).unbind(1)
        receiver, sender = self.score.terms(q, k, y)
        f = edge_attr.f if isinstance(edge_attr, EncodedEdges) else self.edge_encoder(edge_attr)
        plain, starts = edge_index, None
        if isinstance(edge_index, EdgeIndex):
            plain = edge_index.as_tensor()
            if edge_index.is_sorted_by_col:
                (starts, _), _ = edge_index.get_csc()
        log_weight = None if edge_weight is None else edge_weight.clamp(min=1e-30).log()
        context = None
        if not return_attention_weights:
            context = self.fused(edge_index, receiver, sender, v, f, log_weight)
        if context is None:
            alpha = self.edge_updater(
                plain, receiver=receiver, sender=sender, f=f, log_weight=log_weight, starts=starts
            )
            f = f.unflatten(1, (self.heads, -1))
            context = self.propagate(edge_index, alpha=alpha, v=v, f=f)
        out = self.out(context)
        if not return_attention_weights:
            return out
        if isinstance(original, SparseTensor):
            return out, original.set_value(alpha, layout="coo")
        if is_torch_sparse_tensor(original):
            return out, set_sparse_value(original, alpha)
        return out, (original, alpha)

    def fused(
        self,
        edge_index: Tensor,
        receiver: Tensor,
        sender: Tensor,
        v: Tensor,
        f: Tensor,
        log_weight: Tensor | None,
    ) -> Tensor | None:
        """Return the sum of all messages ``[N, C + D_e]`` by kernels of a layer's own, if any."""
        return None

    def edge_update(
        self,
        receiver_i: Tensor,
        sender_j: Tensor,
        f: Tensor,
        log_weight: Tensor | None,
        starts: Tensor | None,
        index: Tensor,
        size_i: int | None,
    ) -> Tensor:
        """Return the attention α, ``[E, H]``; ``starts``: where sorted edges of a spot start."""
        logit = self.score(receiver_i, sender_j, f)
        if log_weight is not None:
            logit = logit + log_weight[:, None]
        return F.dropout(softmax(logit, index, starts, size_i), self.dropout, self.training)

    def message(self, alpha: Tensor, v_j: Tensor, f: Tensor) -> Tensor:
        """Return ``α_ij [v_j, f_ij]``, ``[E, C + D_e]``."""
        alpha = alpha[..., None]
        return torch.cat([(alpha * v_j).flatten(1), (alpha * f).flatten(1)], dim=1)

    def message_and_aggregate(
        self, edge_index: EdgeIndex, alpha: Tensor, v: Tensor, f: Tensor
    ) -> Tensor:
        """Return the sum of all messages to each spot, ``[N, C + D_e]``, of sorted edges."""
        (starts, sender), _ = edge_index.get_csc()
        own = torch.arange(f.size(0), device=f.device)
        sums = (neighbor_sum(v, sender, starts, alpha), neighbor_sum(f, own, starts, alpha))
        return torch.cat([each.flatten(1) for each in sums], dim=1)

    def _check(
        self,
        h: Tensor,
        y: Tensor,
        edge_index: Adj,
        edge_attr: Tensor | EncodedEdges,
        edge_weight: Tensor | None,
    ) -> None:
        if isinstance(edge_attr, EncodedEdges):
            features, width = edge_attr.f, self.edge_channels
        else:
            features, width = edge_attr, self.edge_encoder.in_features
        n, e = h.size(0), features.size(0)
        expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
            "h": (h, (n, self.channels)),
            "y": (y, (n, self.n_genes)),
            "edge_attr": (features, (e, width)),
        }
        if edge_weight is not None:
            expected["edge_weight"] = (edge_weight, (e,))
        sparse = not isinstance(edge_index, Tensor) or is_torch_sparse_tensor(edge_index)
        if not sparse:
            expected["edge_index"] = (edge_index, (2, e))
        for name, (value, shape) in expected.items():
            if tuple(value.shape) != shape:
                raise ValueError(f"{name} must be {list(shape)}, got {list(value.shape)}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.channels}, n_genes={self.n_genes}, heads={self.heads})"


def sum_with_map(a: Tensor, b: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return ``a + b + x @ weight.T``, of a's shape; overwrites a if gradients are disabled."""
    shape, rows = a.shape, (-1, weight.size(0))
    a, b = a.view(rows), b.view(rows)
    # in place: a tensor of every edge costs more to allocate than to add up
    total = a + b if torch.is_grad_enabled() else a.add_(b)
    # autocast leaves products in place as they are: types must agree
    x, weight = x.reshape(-1, weight.size(1)).to(total.dtype), weight.to(total.dtype)
    return total.addmm_(x, weight.T).view(shape)


def _edges_of(adj_t: Any) -> EdgeIndex:
    """Return the edges of a transposed sparse matrix in the order of its values."""
    if isinstance(adj_t, SparseTensor):
        row, col, _ = adj_t.coo()
    else:
        (row, col), _ = to_edge_index(adj_t)
    size = (int(adj_t.size(1)), int(adj_t.size(0)))
    return EdgeIndex(torch.stack([col, row]), sparse_size=size, sort_order="col")
