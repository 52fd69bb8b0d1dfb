"""Local attention on the spatial graph with frame-averaged edges."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.nn import MessagePassing
from torch_geometric.typing import Adj, SparseTensor
from torch_geometric.utils import is_torch_sparse_tensor, softmax, to_edge_index
from torch_geometric.utils.sparse import set_sparse_value

from stflow_graph.graph.neighbor_sum import neighbor_sum
from stflow_graph.nn.edge_encoder import (
    EncodedEdges,
    FrameEncoder,
    InvariantEncoder,
    PublishedFrameEncoder,
)
from stflow_graph.nn.edge_score import AdditiveScore, DotScore, PublishedScore
from stflow_graph.nn.stflow.swiglu import SwiGLU

Attention = Literal["additive", "dot", "stflow"]
ATTENTIONS: tuple[Attention, ...] = ("additive", "dot", "stflow")
EDGE_ENCODERS: dict[str, type[InvariantEncoder | FrameEncoder]] = {
    "invariants": InvariantEncoder,
    "frames": FrameEncoder,
}


class FrameAveragedConv(MessagePassing):
    r"""Multi-head attention over a spot's neighbours that sees geometry and expression.

    .. math::
        h'_i = W_o \Big[ \sum_j α_{ij} v_j \,\Big\|\, \sum_j α_{ij} f_{ij} \Big], \qquad
        α_{ij} = \frac{w_{ij} e^{l_{ij}}}{\sum_m w_{im} e^{l_{im}}}

    with queries, keys and values of ``LayerNorm(x)``, y the current estimate of expression, f the
    encoded edges, w the edge weights, and scores l by kind of attention (``nn.edge_score``):
    ``additive`` (one hidden layer of head width), ``dot`` (scaled dot product) or ``stflow``, the
    published function (Huang et al., ICML 2025, section 3.3) with the published encoder of edges
    and :math:`W_o` an MLP. The first two are invariant to motions of the slide on any array;
    ``stflow`` keeps the published frames, which are arbitrary on exact lattices.

    With ``signed`` each α is multiplied by a factor in (-1, 1), so that a spot may be contrasted
    with a neighbour (as FEAST, CVPR 2026, allows). With ``three_body`` products of two pooled
    moments :math:`(A c_i) ∘ (B c_i)` of the bracket above, c, are mapped to C channels and added:
    a sum over pairs of neighbours, for the cost of a sum over neighbours.

    Edges sorted by spot, that is an ``EdgeIndex`` with ``sort_order="col"`` or a sparse matrix,
    are summed without a tensor of all messages.

    Args:
        channels: C, width of the spots' states.
        n_genes: G, width of y.
        heads: H; divides ``channels`` and ``edge_channels``.
        edge_channels: D_e, width of f.
        attention: ``"additive"``, ``"dot"`` or ``"stflow"``.
        dropout: dropout of α.
        mlp_dropout: dropout within the MLPs of ``stflow``.
        signed: whether attention may be negative; of ``additive`` attention.
        three_body: whether pairs of neighbours act together; not of ``stflow``.
        edge_encoder: ``"frames"`` averages over the signs of an edge's frame, one by one;
            ``"invariants"`` is a function of what the signs leave unchanged, the same family of
            functions for a fifth of the cost (``nn.edge_encoder``). ``stflow`` has its own.

    Raises:
        ValueError: heads that do not divide the channels, an unknown attention or encoder of
            edges, or an option that the attention does not have.
    """

    SUPPORTS_FUSED_EDGE_INDEX = True

    def __init__(
        self,
        channels: int,
        n_genes: int,
        heads: int = 4,
        edge_channels: int = 32,
        attention: str = "additive",
        dropout: float = 0.0,
        mlp_dropout: float = 0.0,
        signed: bool = False,
        three_body: bool = False,
        edge_encoder: str = "invariants",
    ) -> None:
        super().__init__(aggr="add", node_dim=0)
        if channels % heads or edge_channels % heads:
            raise ValueError(
                f"heads must divide channels and edge_channels, got {heads}, {channels}, "
                f"{edge_channels}"
            )
        if attention not in ATTENTIONS:
            raise ValueError(f"unknown attention {attention!r}; one of {', '.join(ATTENTIONS)}")
        if edge_encoder not in EDGE_ENCODERS:
            known = ", ".join(EDGE_ENCODERS)
            raise ValueError(f"unknown edge encoder {edge_encoder!r}; one of {known}")
        if signed and attention != "additive":
            raise ValueError(f"signed attention must be 'additive', got {attention!r}")
        if three_body and attention == "stflow":
            raise ValueError("the published layer, 'stflow', has no three_body term")
        self.channels, self.n_genes, self.heads = channels, n_genes, heads
        self.edge_channels = edge_channels
        self.attention, self.dropout, self.signed = attention, dropout, signed
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        widths = (channels, n_genes, heads, edge_channels)
        self.edge_encoder: InvariantEncoder | FrameEncoder | PublishedFrameEncoder
        self.score: AdditiveScore | DotScore | PublishedScore
        self.out: nn.Linear | SwiGLU
        if attention == "stflow":
            self.edge_encoder = PublishedFrameEncoder(edge_channels, mlp_dropout)
            self.score = PublishedScore(*widths, mlp_dropout)
            self.out = SwiGLU(channels + edge_channels, channels, channels, mlp_dropout)
        else:
            self.edge_encoder = EDGE_ENCODERS[edge_encoder](edge_channels)
            self.score = (
                AdditiveScore(*widths, signed) if attention == "additive" else DotScore(*widths)
            )
            self.out = nn.Linear(channels + edge_channels, channels)
        self.pair = self.pair_out = None
        if three_body:
            self.pair = nn.Linear(channels + edge_channels, 2 * channels, bias=False)
            self.pair_out = nn.Linear(channels, channels, bias=False)

    def reset_parameters(self) -> None:
        """Draw new weights."""
        super().reset_parameters()
        for module in self.children():
            if module is not self.aggr_module:
                module.reset_parameters()

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        edge_index: Adj,
        edge_attr: Tensor | EncodedEdges,
        edge_weight: Tensor | None = None,
        return_attention_weights: bool | None = None,
    ) -> Any:
        """Return the update of the spots' states, ``[N, C]``.

        Args:
            x: ``[N, C]`` states.
            y: ``[N, G]`` current estimate of expression.
            edge_index: ``[2, E]`` neighbours (row 0) and spots (row 1), a Tensor or ``EdgeIndex``;
                or its transposed sparse matrix ``[N, N]`` (PyG's ``adj_t``).
            edge_attr: ``[E, 6]`` geometry from ``graph.SpatialGraph``, for ``stflow`` ``[E, 3]``
                from ``graph.PublishedGraph``; in the order of the edges (of a sparse matrix: of
                its values). Or what this layer's ``edge_encoder`` made of it, as
                ``EncodedEdges``, to be encoded once for many calls.
            edge_weight: ``[E]`` weights in (0, 1]; None means 1.
            return_attention_weights: whether to return also the edges and their attention.

        Returns:
            ``[N, C]``; if asked for ``([N, C], (edge_index, α [E, H]))``, or with a sparse matrix
            ``([N, C], matrix of α)``, as PyG's attention layers do.

        Raises:
            ValueError: shapes that do not fit; the message prints them.
        """
        self._check(x, y, edge_index, edge_attr, edge_weight)
        given = edge_index
        if not isinstance(given, Tensor) or is_torch_sparse_tensor(given):
            edge_index = _edges_of(given)
        q, k, v = self.qkv(self.norm(x)).view(x.size(0), 3, self.heads, -1).unbind(1)
        receiver, sender = self.score.spots(q, k, y)
        f = edge_attr.f if isinstance(edge_attr, EncodedEdges) else self.edge_encoder(edge_attr)
        plain, starts = edge_index, None
        if isinstance(edge_index, EdgeIndex):
            plain, ((starts, _), _) = edge_index.as_tensor(), edge_index.get_csc()
        alpha = self.edge_updater(
            plain,
            receiver=receiver,
            sender=sender,
            f=f,
            log_weight=None if edge_weight is None else edge_weight.clamp(min=1e-30).log(),
            starts=starts,
        )
        context = self.propagate(edge_index, alpha=alpha, v=v, f=f.unflatten(1, (self.heads, -1)))
        out = self.out(context)
        if self.pair is not None and self.pair_out is not None:
            first, second = self.pair(context).chunk(2, dim=1)
            out = out + self.pair_out(first * second)
        if not return_attention_weights:
            return out
        if isinstance(given, SparseTensor):
            return out, given.set_value(alpha, layout="coo")
        if is_torch_sparse_tensor(given):
            return out, set_sparse_value(given, alpha)
        return out, (given, alpha)

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
        sign = None
        if self.signed:
            assert isinstance(self.score, AdditiveScore)
            logit, sign = self.score.score_and_sign(receiver_i, sender_j, f)
        else:
            logit = self.score(receiver_i, sender_j, f)
        if log_weight is not None:
            logit = logit + log_weight[:, None]
        alpha = softmax(logit, index, starts, size_i)
        if sign is not None:
            alpha = alpha * sign
        return F.dropout(alpha, self.dropout, self.training)

    def message(self, alpha: Tensor, v_j: Tensor, f: Tensor) -> Tensor:
        """Return ``α_ij [v_j, f_ij]``, ``[E, C + D_e]``."""
        alpha = alpha[..., None]
        return torch.cat([(alpha * v_j).flatten(1), (alpha * f).flatten(1)], dim=1)

    def message_and_aggregate(
        self, edge_index: EdgeIndex, alpha: Tensor, v: Tensor, f: Tensor
    ) -> Tensor:
        """Return the sum of all messages to each spot, ``[N, C + D_e]``, of sorted edges."""
        (starts, sender), _ = edge_index.get_csc()
        receiver = edge_index.as_tensor()[1]
        weighted = (alpha[..., None] * f).flatten(1)
        edges = weighted.new_zeros(v.size(0), weighted.size(1)).index_add_(0, receiver, weighted)
        return torch.cat([neighbor_sum(v, sender, starts, alpha).flatten(1), edges], dim=1)

    def _check(
        self,
        x: Tensor,
        y: Tensor,
        edge_index: Adj,
        edge_attr: Tensor | EncodedEdges,
        edge_weight: Tensor | None,
    ) -> None:
        if isinstance(edge_attr, EncodedEdges):
            features, width = edge_attr.f, self.edge_channels
        else:
            features, width = edge_attr, self.edge_encoder.in_features
        n, e = x.size(0), features.size(0)
        expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
            "x": (x, (n, self.channels)),
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
        return (
            f"{type(self).__name__}({self.channels}, n_genes={self.n_genes}, heads={self.heads}, "
            f"attention={self.attention!r})"
        )


def _edges_of(adj_t: Any) -> EdgeIndex:
    """Return the edges of a transposed sparse matrix in the order of its values."""
    if isinstance(adj_t, SparseTensor):
        row, col, _ = adj_t.coo()
    else:
        (row, col), _ = to_edge_index(adj_t)
    size = (int(adj_t.size(1)), int(adj_t.size(0)))
    return EdgeIndex(torch.stack([col, row]), sparse_size=size, sort_order="col")
