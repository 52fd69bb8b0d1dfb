"""Encoded edges cached up to a memory budget, for many network calls on one slide."""

from __future__ import annotations

from typing import Any

from torch import nn

from stflow_graph.graph.tiles import GraphView
from stflow_graph.nn.conv.edge_attention import EdgeAttentionConv
from stflow_graph.nn.edge_encoder import EncodedEdges


class EdgeEncodingCache:
    """Encodes the edges of a slide for one layer after the other while memory is left.

    An edge's encoding depends on positions alone, so it is the same in every step and sample. It
    takes E · D_e numbers a layer; beyond the budget edges are encoded in every call.

    Args:
        max_bytes: memory budget of all encoded edges together.
    """

    def __init__(self, max_bytes: int) -> None:
        self.bytes_left = max_bytes

    def encode(self, conv: nn.Module, graph: GraphView) -> GraphView:
        """Return the graph with its edges as the layer encodes them, as far as memory is left."""
        if not isinstance(conv, EdgeAttentionConv):
            return graph  # a layer of the user's own

        def encoded(edge_attr: Any) -> Any:
            cost = edge_attr.size(0) * conv.edge_channels * edge_attr.element_size()
            if cost > self.bytes_left:
                return edge_attr
            self.bytes_left -= cost
            return EncodedEdges(conv.edge_encoder(edge_attr))

        return graph.with_edges(encoded)
