"""The published STFlow denoiser, the baseline of every comparison.

It is written with the published operations at their published cost: every edge and head
concatenates its inputs, frames are computed in every block, and without a graph the neighbours
are searched among all pairs in every call. ``nn.two_stage`` is the model to use.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.utils import scatter

from stflow_graph.flow.sampler import Model
from stflow_graph.graph.stflow import (
    Neighbourhoods,
    all_pairs_neighbourhoods,
    edge_neighbourhoods,
    principal_coordinates,
)
from stflow_graph.graph.tiles import GraphView
from stflow_graph.graph.whole import n_slides_of
from stflow_graph.nn.checks import check_edges, check_positions, check_spots
from stflow_graph.nn.pretrained import Pretrained, plain_arguments
from stflow_graph.nn.stflow.gene_head import GeneHead
from stflow_graph.nn.stflow.swiglu import SwiGLU
from stflow_graph.nn.time_embedding import TimeEmbedding

# of the two coordinates; the third column is the length
_SIGNS = ((-1.0, -1.0, 1.0), (-1.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, 1.0))


class TransformerDenoiser(Pretrained):
    r"""Predicts expression y₁ from a noised y_t, patch embeddings and positions.

    :math:`h = W x + τ(t)` passes L blocks, each of which also replaces y; the output is the mean
    of the blocks' y (Huang et al., "Scalable Generation of Spatial Transcriptomics from Histology
    Images via Whole-Slide Flow Matching", ICML 2025, section 3.3).

    The names and shapes of the parameters are the public code's, so its checkpoints load strictly.
    On exact lattices the published frames are arbitrary, and with them the promised invariance
    to rotations; it holds where no neighbourhood is isotropic.

    Args:
        in_channels: F, embedding channels.
        n_genes: G.
        hidden_channels: D.
        edge_channels: D_e.
        n_heads: H, divides both.
        n_layers: L.
        n_neighbors: k, where ``data`` brings no graph.
        dropout: of all MLPs.
        attn_dropout: of the attention.

    Raises:
        ValueError: heads that do not divide the channels, or fewer than one layer or neighbour.
    """

    def __init__(
        self,
        in_channels: int,
        n_genes: int,
        hidden_channels: int = 128,
        edge_channels: int = 128,
        n_heads: int = 4,
        n_layers: int = 4,
        n_neighbors: int = 8,
        dropout: float = 0.2,
        attn_dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.arguments = plain_arguments(locals())
        if hidden_channels % n_heads or edge_channels % n_heads:
            raise ValueError(
                f"n_heads must divide hidden_channels and edge_channels, got {n_heads} and "
                f"{hidden_channels}, {edge_channels}"
            )
        if n_layers < 1 or n_neighbors < 1:
            raise ValueError(
                f"n_layers and n_neighbors must be >= 1, got {n_layers} and {n_neighbors}"
            )
        self.in_channels, self.n_genes, self.n_neighbors = in_channels, n_genes, n_neighbors
        self.backbone = SpatialTransformer(
            SpatialBlock(hidden_channels, edge_channels, n_genes, n_heads, dropout, attn_dropout)
            for _ in range(n_layers)
        )
        self.fourier_proj = TimeEmbedding(hidden_channels)
        self.image_transform = nn.Linear(in_channels, hidden_channels)

    def forward(self, y_t: Tensor, t: Tensor, data: Data) -> Tensor:
        """Return the estimate of y₁, ``[N, G]``.

        Args:
            y_t: ``[N, G]`` noised expression of all spots of the batch.
            t: ``[n_slides]`` flow time of each slide, in [0, 1].
            data: ``x [N, F]``; ``pos [N, 2]`` in pixels (as published; each slide is centred);
                ``batch [N]`` if there are several slides; ``edge_index [2, E]`` (row 0 the
                neighbour, row 1 the spot) to use that graph, else the ``n_neighbors`` nearest.

        Raises:
            ValueError: shapes, dtypes or values that do not fit; the message prints them.
        """
        x, batch = data.x, data.batch
        check_spots(y_t, t, x, batch, self.in_channels, self.n_genes)
        if batch is None:
            batch = torch.zeros(x.size(0), dtype=torch.long, device=x.device)
        check_positions(data.pos, x.size(0))
        if data.edge_index is None:
            # centred in full precision: float32 pixels of a large slide lose the last digits
            pos = data.pos.double()
            pos = pos - scatter(pos, batch, dim_size=t.size(0), reduce="mean")[batch]
            pos = pos.to(torch.promote_types(x.dtype, torch.float32))
            near = all_pairs_neighbourhoods(pos, self.n_neighbors, batch)
        else:
            check_edges(data.edge_index, batch)
            near = edge_neighbourhoods(data.edge_index, x.size(0))
        h = self.image_transform(x) + self.fourier_proj(t)[batch]
        return self.backbone(h, y_t, data.pos, near)

    def bind(self, data: Data, graph: GraphView | None = None) -> Model:
        """Return ``model(y_t, t [1])`` on one slide or batch; nothing is computed beforehand."""
        n_slides = 1 if data.batch is None else n_slides_of(data.batch)
        return lambda y_t, t: self(y_t, t.expand(n_slides), data)


class SpatialTransformer(nn.Module):
    """The stack of blocks; the mean of their estimates."""

    def __init__(self, blocks: Iterable[SpatialBlock]) -> None:
        super().__init__()
        self.blks = nn.ModuleList(blocks)

    def forward(self, h: Tensor, y: Tensor, pos: Tensor, near: Neighbourhoods) -> Tensor:
        """Return the estimate of y₁ ``[N, G]`` from states ``h [N, D]`` and ``y [N, G]``."""
        total = torch.zeros_like(y)
        for block in self.blks:
            h, y = block(h, y, pos, near)
            total = total + y
        return total / len(self.blks)


class SpatialBlock(nn.Module):
    r"""One block: :math:`h ← h + \mathrm{attn}(h, y)`, :math:`h ← h + \mathrm{MLP}(h)`, new y."""

    def __init__(
        self,
        channels: int,
        edge_channels: int,
        n_genes: int,
        n_heads: int,
        dropout: float,
        attn_dropout: float,
    ) -> None:
        super().__init__()
        self.attn = EdgeAttention(channels, edge_channels, n_genes, n_heads, dropout, attn_dropout)
        self.mlp = SwiGLU(channels, 4 * channels, channels, dropout)
        self.gene_updater = GeneHead(channels, n_genes, dropout)

    def forward(
        self, h: Tensor, y: Tensor, pos: Tensor, near: Neighbourhoods
    ) -> tuple[Tensor, Tensor]:
        """Return the new states ``[N, D]`` and the new estimate of expression ``[N, G]``."""
        h = h + self.attn(h, y, pos, near)
        h = h + self.mlp(h)
        return h, self.gene_updater(h)


class EdgeAttention(nn.Module):
    r"""Attention over the neighbours with an MLP on each edge as its score.

    .. math::
        α_{ij}^a = \mathrm{softmax}_j\, ψ([q_i^a \| k_j^a \| f_{ij}^a \| y_j - y_i]), \qquad
        h'_i = W_o \big[ [\textstyle\sum_j α_{ij}^a v_j^a]_a \,\|\,
                         [\sum_j α_{ij}^a f_{ij}^a]_a \big]

    for the heads a, with the frame-averaged edge
    :math:`f_{ij} = \tfrac14 \sum_s φ([((r_{ij} - c_i) U_i) \circ s \,\|\, ‖r_{ij}‖])`.
    """

    def __init__(
        self,
        channels: int,
        edge_channels: int,
        n_genes: int,
        n_heads: int,
        dropout: float,
        attn_dropout: float,
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        per_head = (2 * channels + edge_channels) // n_heads
        self.layernorm_qkv = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 3 * channels)
        )
        self.mlp_attn = SwiGLU(per_head + n_genes, channels, 1, dropout)
        self.edge_trans = SwiGLU(3, edge_channels, edge_channels, dropout)
        self.W_output = SwiGLU(channels + edge_channels, channels, channels, dropout)
        self.attn_dropout = nn.Dropout(attn_dropout)

    def forward(self, h: Tensor, y: Tensor, pos: Tensor, near: Neighbourhoods) -> Tensor:
        """Return the update of the states, ``[N, D]``.

        Args:
            h: ``[N, D]`` states.
            y: ``[N, G]`` current estimate of expression.
            pos: ``[N, 2]`` positions.
            near: the neighbours.
        """
        index, heads = near.index, self.n_heads
        n, k = index.shape
        q, key, v = self.layernorm_qkv(h).view(n, 3, heads, h.size(1) // heads).unbind(1)
        f = self.edge_trans(framed_edges(pos, near).to(h.dtype)).mean(dim=1)  # [N, k, D_e]
        f = f.view(n, k, heads, f.size(-1) // heads)
        dy = y[index] - y[:, None]  # [N, k, G]
        message = torch.cat(
            [
                q[:, None].expand(n, k, *q.shape[1:]),
                key[index],
                f,
                dy[:, :, None].expand(n, k, heads, y.size(1)),
            ],
            dim=-1,
        )
        alpha = self.attn_dropout(_softmax(self.mlp_attn(message).squeeze(-1), near.mask))
        context = [torch.einsum("nkh,nkhd->nhd", alpha, value) for value in (v[index], f)]
        return self.W_output(torch.cat([part.flatten(1) for part in context], dim=1))


def framed_edges(pos: Tensor, near: Neighbourhoods) -> Tensor:
    r"""Return the published inputs of φ: every edge in the four frames of its neighbourhood.

    Args:
        pos: ``[N, 2]`` positions.
        near: the neighbours.

    Returns:
        ``[N, 4, k, 3]``: :math:`((r - c) U) \circ s` for the four signs s, and ‖r‖
        (see ``graph.stflow.principal_coordinates``).
    """
    edges = principal_coordinates(pos, near)
    return edges[:, None] * edges.new_tensor(_SIGNS)[:, None]


def _softmax(logit: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the neighbours of ``[N, k, H]``; padding gets 0, also where all is padding."""
    if mask is None:
        return logit.softmax(dim=1)
    mask = mask[..., None]
    return logit.masked_fill(~mask, torch.finfo(logit.dtype).min).softmax(dim=1) * mask
