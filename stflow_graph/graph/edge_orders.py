"""The orders of a graph's edges that GPU kernels read: by receiving and by sending spot."""

from __future__ import annotations

import functools
from typing import NamedTuple

from torch import Tensor
from torch_geometric import EdgeIndex

from stflow_graph.graph.neighbor_sum import edge_starts

_CACHED = "_stflow_graph_orders"


class Indices(NamedTuple):
    """Edges as the kernels read them, all int32.

    Attributes:
        starts: ``[N + 1]`` where the edges of each receiving spot start.
        senders: ``[E]``.
    """

    starts: Tensor
    senders: Tensor


class ReverseIndices(NamedTuple):
    """The edges by sending spot, all int32.

    Attributes:
        starts: ``[N + 1]`` where the edges of each sending spot start.
        edges: ``[E]`` their places among the edges by receiving spot.
        receivers: ``[E]``.
    """

    starts: Tensor
    edges: Tensor
    receivers: Tensor


class EdgeOrders:
    """The orders of a graph's edges, computed once and kept on the ``EdgeIndex``.

    Args:
        edge_index: edges sorted by receiving spot.
    """

    def __init__(self, edge_index: EdgeIndex) -> None:
        (starts, senders), _ = edge_index.get_csc()
        self.forward = Indices(starts.int(), senders.int())
        self._receivers = edge_index.as_tensor()[1].int()

    @classmethod
    def of(cls, edge_index: EdgeIndex) -> EdgeOrders:
        """Return the orders of these edges."""
        orders: EdgeOrders | None = getattr(edge_index, _CACHED, None)
        if orders is None:
            orders = cls(edge_index)
            setattr(edge_index, _CACHED, orders)
        return orders

    @functools.cached_property
    def reverse(self) -> ReverseIndices:
        """The edges by sending spot; a stable sort, so that sums are always in one order."""
        senders, order = self.forward.senders.sort(stable=True)
        starts = edge_starts(senders, len(self.forward.starts) - 1)
        return ReverseIndices(starts.int(), order.int(), self._receivers[order])
