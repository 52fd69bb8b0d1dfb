"""A block of the graph denoiser, on a whole slide or tile by tile."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stflow_graph.graph.tiles import Tiles
from stflow_graph.nn.dropout import CheapDropout
from stflow_graph.nn.edge_encoder import EncodedEdges
from stflow_graph.nn.stflow.gene_head import GeneHead
from stflow_graph.nn.stflow.swiglu import SwiGLU

# (rows of the slide [n], their states [n, C]) -> their estimate of expression [n, G]
Estimate = Callable[[Tensor, Tensor], Tensor]


class Edges(NamedTuple):
    """One type of edges: ``[2, E]``, their geometry ``[E, 6]`` or encoding, and weights ``[E]``."""

    edge_index: Tensor
    edge_attr: Tensor | EncodedEdges
    edge_weight: Tensor | None


class DenoiserBlock(nn.Module):
    """One block: local attention by edge type, global attention, MLP, read-out of expression.

    Args:
        channels: C.
        convs: a layer a type of edges.
        global_attention: mixed in by a learned gate, or None.
        mlp: maps ``[N, C]`` to ``[N, C]``.
        read_out: maps ``[N, C]`` to ``[N, G]``.
    """

    def __init__(
        self,
        channels: int,
        convs: Iterable[nn.Module],
        global_attention: nn.Module | None,
        mlp: nn.Module,
        read_out: nn.Module,
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.global_attention = global_attention
        # the gate starts at 0: a model learns to look further only where that helps
        self.gate = nn.Parameter(torch.zeros(channels)) if global_attention is not None else None
        self.mlp = mlp
        self.read_out = read_out

    def reset_parameters(self) -> None:
        """Close the gate; the layers reset themselves."""
        if self.gate is not None:
            nn.init.zeros_(self.gate)

    def forward(
        self, h: Tensor, y: Tensor, relations: Iterable[Edges], batch: Tensor, n_slides: int
    ) -> tuple[Tensor, Tensor]:
        """Return the new states ``[N, C]`` and the new estimate of expression ``[N, G]``."""
        h = h + sum(conv(h, y, *edges) for conv, edges in zip(self.convs, relations, strict=True))
        if self.global_attention is not None:
            h = h + self.gate * self.global_attention(h, batch, n_slides)
        h = h + self.mlp(h)
        return h, self.read_out(h)

    def by_tiles(self, h: Tensor, y: Estimate, tiles: Tiles, out: Tensor) -> None:
        """Make the new states of one slide, the same as :meth:`forward` does.

        Args:
            h: ``[N, C]``.
            y: of the slide's spots.
            tiles: the slide's.
            out: ``[N, C]`` where the new states are written; not ``h``, which tiles read to the
                end.
        """
        whole: Any = self.global_attention  # one of nn.global_attention.GLOBAL_ATTENTIONS
        summary: Any = None
        for tile in tiles:
            part = h[tile.spots]
            for conv, edges in zip(self.convs, tile.relations, strict=True):
                nodes, *near = edges
                x = h[nodes]
                part = part + conv(x, y(nodes, x), *near)[: len(tile)]
            out[tile.spots] = part
            if whole is not None:
                read = whole.read(part)
                summary = read if summary is None else whole.merge(summary, read)
        for tile in tiles:
            part = out[tile.spots]
            if whole is not None:
                part = part + self.gate * whole.spread(part, summary)
            out[tile.spots] = part + self.mlp(part)

    def learn_by_tiles(self, h: Tensor, y: Estimate, tiles: Tiles) -> Tensor:
        """Return the new states ``[N, C]`` of one slide, the same as :meth:`forward` does.

        For the gradient nothing is kept but states of all spots: what a tile's edges take is
        made anew when its turn comes (Chen et al. 2016, "Training deep nets with sublinear memory
        cost").

        Args:
            h: ``[N, C]``.
            y: of the slide's spots; called again when the gradient is made.
            tiles: the slide's.
        """
        whole: Any = self.global_attention
        order, sizes = tiles.order
        own = h.index_select(0, order).split(sizes)
        # one gradient of all rows for each type of edges, and not one for each tile
        near = [h.index_select(0, nodes).split(sizes) for nodes, sizes in tiles.nodes]

        def local(i: int, part: Tensor, *around: Tensor) -> Tensor:
            tile = tiles[i]
            for conv, edges, x in zip(self.convs, tile.relations, around, strict=True):
                nodes, *rest = edges
                part = part + conv(x, y(nodes, x), *rest)[: len(tile)]
            return part

        def rest(part: Tensor, summary: Any) -> Tensor:
            if whole is not None:
                part = part + self.gate * whole.spread(part, summary)
            return part + self.mlp(part)

        parts = [
            checkpoint(local, i, part, *(each[i] for each in near), use_reentrant=False)
            for i, part in enumerate(own)
        ]
        summary = None
        if whole is not None:
            read = [checkpoint(whole.read, part, use_reentrant=False) for part in parts]
            summary = functools.reduce(whole.merge, read)
        parts = [checkpoint(rest, part, summary, use_reentrant=False) for part in parts]
        return torch.cat(parts).index_select(0, order.argsort())


def block_parts(channels: int, n_genes: int, dropout: float) -> tuple[nn.Module, nn.Module]:
    """Return a block's MLP and read-out, both pre-normalised."""
    mlp = nn.Sequential(
        nn.LayerNorm(channels),
        nn.Linear(channels, 2 * channels),
        nn.SiLU(),
        CheapDropout(dropout),
        nn.Linear(2 * channels, channels),
    )
    read_out = nn.Sequential(
        nn.LayerNorm(channels),
        nn.Linear(channels, channels),
        nn.GELU(),
        CheapDropout(dropout),
        nn.Linear(channels, n_genes),
    )
    return mlp, read_out


def published_block_parts(
    channels: int, n_genes: int, dropout: float
) -> tuple[nn.Module, nn.Module]:
    """Return the published block's MLP and read-out."""
    mlp = SwiGLU(channels, 4 * channels, channels, dropout)
    return mlp, GeneHead(channels, n_genes, dropout)
