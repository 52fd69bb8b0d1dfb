"""A graph as layers see it, and the view of all its edges at once.

A network's formula is written once, in terms of a view of the graph: :class:`WholeGraph`, here, or
``graph.tiles.TiledGraph``. The graph itself stays intact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data

from stflow_graph.graph.arrays import Rows
from stflow_graph.graph.diffusion import Averaging
from stflow_graph.graph.neighbor_sum import is_sorted, sorted_edges


class Edges(NamedTuple):
    """Edges as a layer takes them.

    Attributes:
        edge_index: ``[2, E]`` neighbours (row 0) and spots (row 1), as places among the layer's
            rows.
        edge_attr: ``[E, D]`` geometry, or what a layer encoded from it, or None.
        edge_weight: ``[E]``, or None.
    """

    edge_index: Tensor
    edge_attr: Any
    edge_weight: Tensor | None


# (rows of the slide [m], edges among them) -> values of these rows, of which the first are used
Layer = Callable[[Rows, Edges], Tensor]


class WholeGraph:
    """A batch of slides, whose edges a layer sees all at once.

    Args:
        edges: all edges.
        batch: ``[N]`` slide of each spot.
        n_slides: number of slides.
    """

    def __init__(self, edges: Edges, batch: Tensor, n_slides: int) -> None:
        self.edges, self.batch, self.n_slides = edges, batch, n_slides
        self._average: Averaging | None = None

    @classmethod
    def of(cls, data: Data, n_slides: int | None = None) -> WholeGraph:
        """Return the view of a ``Data`` or ``Batch`` with its graph.

        Args:
            data: the slides.
            n_slides: how many they are; None counts them in ``data.batch``.
        """
        batch = slide_of_spots(data)
        edges = data.edge_index
        if not torch.compiler.is_compiling():  # values are not known while a graph is traced
            plain = type(edges) is Tensor and edges.layout == torch.strided
            if plain and is_sorted(edges[1]):  # layers sum sorted edges the faster way
                edges = sorted_edges(edges, batch.size(0))
        if n_slides is None:
            n_slides = 1 if data.batch is None else n_slides_of(batch)
        return cls(Edges(edges, data.edge_attr, data.edge_weight), batch, n_slides)

    @property
    def n_spots(self) -> int:
        """N."""
        return self.batch.size(0)

    def run(self, layer: Layer, to: Tensor | None = None) -> Tensor:
        """Return a layer's values of all spots, added to ``to [N, C]`` if that is given."""
        return _sum(to, layer(slice(None), self.edges))

    def attend(self, layer: Any, h: Tensor, gate: Tensor) -> Tensor:
        """Return ``h [N, C]`` and the values of a layer that sees whole slides, times ``gate``."""
        return h + gate * layer(h, self.batch, self.n_slides)

    def by_rows(
        self, function: Callable[[Tensor], Tensor], h: Tensor, to: Tensor | None = None
    ) -> Tensor:
        """Return a function of single spots of ``h [N, C]``, added to ``to``."""
        return _sum(to, function(h))

    def estimate(self, read_out: Callable[[Tensor], Tensor], h: Tensor) -> Callable[[Rows], Tensor]:
        """Return what is read out of the states ``h``, by rows; here it is computed once."""
        y = read_out(h)
        return lambda rows: y[rows]

    @property
    def average(self) -> Averaging:
        """The mean over the neighbours of each spot."""
        if self._average is None:  # torch.compile cannot trace a cached_property's lock
            edges = self.edges
            self._average = Averaging(edges.edge_index, edges.edge_weight, self.n_spots)
        return self._average

    def with_edges(self, encode: Callable[[Any], Any]) -> WholeGraph:
        """Return the view with ``edge_attr`` replaced by what ``encode`` makes of it."""
        edges = self.edges._replace(edge_attr=encode(self.edges.edge_attr))
        return type(self)(edges, self.batch, self.n_slides)


def _sum(to: Tensor | None, values: Tensor) -> Tensor:
    return values if to is None else to + values


def slide_of_spots(data: Data) -> Tensor:
    """Return the slide of each spot of a ``Data`` or ``Batch``, ``[N]``."""
    if data.batch is not None:
        return data.batch
    rows = data.x if data.x is not None else data.pos
    return torch.zeros(rows.size(0), dtype=torch.long, device=rows.device)


def n_slides_of(batch: Tensor) -> int:
    """Return the number of slides in ``batch [N]``; a batch without spots is one."""
    return int(batch.max()) + 1 if batch.numel() else 1
