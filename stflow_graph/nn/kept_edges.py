"""Edges that are encoded once a slide, for all network calls on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, nn

from stflow_graph.graph.tiles import TileEdges, Tiles
from stflow_graph.nn.block import DenoiserBlock, Edges
from stflow_graph.nn.conv import FrameAveragedConv
from stflow_graph.nn.edge_encoder import EncodedEdges

_E = TypeVar("_E", Edges, TileEdges)


class EdgeKeeper:
    """Encodes edges as long as memory suffices; the rest stay to be encoded in every call.

    An edge's encoding depends on positions alone, so it is the same in every step and sample. It
    takes E · D_e numbers a block.

    Args:
        most_bytes: what all encoded edges together may take.
    """

    def __init__(self, most_bytes: int) -> None:
        self.left = most_bytes

    def edges(self, block: DenoiserBlock, relations: Sequence[_E]) -> list[_E]:
        """Return the edges of a slide or tile as the block's layers read them, one entry a type."""
        return [
            edges._replace(edge_attr=self._encoded(conv, edges.edge_attr))
            for conv, edges in zip(block.convs, relations, strict=True)
        ]

    def tiles(self, block: DenoiserBlock, tiles: Tiles) -> Tiles:
        """Return a slide's tiles with their edges as the block's layers read them."""
        return tiles.with_tiles(
            dataclasses.replace(tile, relations=tuple(self.edges(block, tile.relations)))
            for tile in tiles
        )

    def _encoded(self, conv: nn.Module, edge_attr: Tensor | EncodedEdges) -> Tensor | EncodedEdges:
        if isinstance(edge_attr, EncodedEdges) or not isinstance(conv, FrameAveragedConv):
            return edge_attr  # it is, or belongs to a layer of somebody else's
        cost = edge_attr.size(0) * conv.edge_channels * edge_attr.element_size()
        if cost > self.left:
            return edge_attr
        self.left -= cost
        return EncodedEdges(conv.edge_encoder(edge_attr))
