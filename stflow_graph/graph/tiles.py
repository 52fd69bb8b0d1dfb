"""Spatial tiles: a slide cut into parts over which layers run one after the other.

A layer that sees a spot's neighbours needs only the edges that end on the spots it updates. Run
tile after tile, layer after layer, it gives what the whole slide would: no receptive field has to
fit into a halo, tiles of any size give the same result, and what a layer needs in between is
bounded by the tile.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Data

from stflow_graph.graph.arrays import IN_MEMORY, Arrays, Rows
from stflow_graph.graph.diffusion import Average, Averaging
from stflow_graph.graph.neighbor_sum import is_sorted, sorted_edges
from stflow_graph.graph.threads import in_threads
from stflow_graph.graph.whole import Edges, Layer, WholeGraph, n_slides_of, slide_of_spots

# spots whose edges, of 64 to 512 numbers each, take a few megabytes: a CPU's cache holds most of
# them, and an allocator gives the same memory again instead of fresh pages of the system
CACHE_SIZED = 512
# spots whose edges are made at a time; a GPU's tiles are larger
_PIECE = 2**16


@dataclasses.dataclass(frozen=True)
class Tile:
    """Some spots of a slide and all edges that end on them.

    Attributes:
        spots: ``[n]`` rows of the slide, ascending.
        nodes: ``[m]`` rows of the slide: the tile's spots, then their neighbours outside (halo).
        edges: the edges, whose ``edge_index`` counts places in ``nodes``; sorted by spot.
        rows: the tile's spots, as a slice where they are consecutive.
    """

    spots: Tensor
    nodes: Tensor
    edges: Edges
    rows: Rows

    def __len__(self) -> int:
        return len(self.spots)


class TiledGraph:
    """One slide, over which layers run tile by tile; not for gradients.

    Args:
        tiles: every spot is in exactly one.
        n_spots: N.
        arrays: where values of all spots are, and what tiles hold of edges.
        average: the mean over the neighbours of each spot; None: that of the tiles' edges.
    """

    n_slides = 1

    def __init__(
        self,
        tiles: Sequence[Tile],
        n_spots: int,
        arrays: Arrays = IN_MEMORY,
        average: Average | None = None,
    ) -> None:
        self.tiles, self.n_spots, self.arrays = tuple(tiles), n_spots, arrays
        self._average = average

    @classmethod
    def of(cls, data: Data, tile_size: int = CACHE_SIZED) -> TiledGraph:
        """Cut a slide that has its graph.

        Args:
            data: ``pos [N, 2]`` and the graph of one slide.
            tile_size: maximum number of spots of a tile.

        Raises:
            ValueError: ``tile_size`` < 1, no spots, or a batch of several slides.
        """
        if tile_size < 1:
            raise ValueError(f"tile_size must be >= 1, got {tile_size}")
        if data.pos.size(0) == 0:
            raise ValueError("tiles are of a slide with spots, got none")
        if n_slides_of(slide_of_spots(data)) > 1:
            raise ValueError("tiles are of one slide, got a batch of several")
        groups = split_in_space(data.pos.cpu().numpy(), tile_size)
        spots = [torch.from_numpy(group).to(data.pos.device) for group in groups]
        edges = Edges(data.edge_index, data.edge_attr, data.edge_weight)
        return cls(_cut(edges, spots, data.pos.size(0), IN_MEMORY), data.pos.size(0))

    @classmethod
    def along(
        cls,
        n_spots: int,
        edges_of: Callable[[Tensor], Edges],
        tile_size: int,
        arrays: Arrays = IN_MEMORY,
        device: torch.device | None = None,
    ) -> TiledGraph:
        """Cut a slide whose spots stand in a spatial order, while its graph is made.

        Args:
            n_spots: N.
            edges_of: from ascending rows to the edges that end on them, as
                ``SpatialGraph.edges_of`` returns it.
            tile_size: maximum number of spots of a tile.
            arrays: as of the class.
            device: of the edges.
        """
        n_rows = tile_size * max(1, _PIECE // tile_size)
        place = torch.device("cpu") if device is None else device

        def piece(start: int) -> tuple[list[Tile], Averaging]:
            rows = torch.arange(start, min(start + n_rows, n_spots), device=device)
            edges, tiles = edges_of(rows), []
            for tile in _cut(edges, rows.split(tile_size), n_spots, arrays):
                consecutive = slice(start, start + len(tile))
                tiles.append(dataclasses.replace(tile, rows=consecutive))
                start += len(tile)
            return tiles, _averaging(edges, rows, n_spots, arrays)

        pieces = list(in_threads(piece, range(0, n_spots, n_rows), place))
        tiles = [tile for of_piece, _ in pieces for tile in of_piece]
        average = _in_pieces([of_piece for _, of_piece in pieces], n_spots)
        return cls(tiles, n_spots, arrays, average)

    @property
    def batch(self) -> Tensor:
        """``[N]`` zeros: all spots are of one slide."""
        return self.tiles[0].spots.new_zeros(self.n_spots)

    @property
    def _n_rows(self) -> int:
        """Spots at a time where there are no edges: a GPU's tiles are large, small parts idle."""
        return max([CACHE_SIZED, *map(len, self.tiles)])

    def run(self, layer: Layer, to: Tensor | None = None) -> Tensor:
        """Return a layer's values of all spots, ``[N, C]``, added to ``to`` if that is given."""
        tiles = self.tiles
        values = self._each(lambda tile: layer(tile.nodes, tile.edges)[: len(tile)], tiles)
        return self._filled([tile.rows for tile in tiles], values, to)

    def _each(self, function: Callable[[Any], Any], parts: Sequence[Any]) -> Iterator[Any]:
        return in_threads(function, parts, self.tiles[0].spots.device)

    def _filled(self, rows: Iterable[Rows], values: Iterator[Tensor], to: Tensor | None) -> Tensor:
        """Return ``[N, C]``, put together from values of rows, added to ``to``.

        Under autocast values are of less precision than states, of whose type the sums are.
        """
        out = self.arrays.growing(self.n_spots, briefly=True)
        for here, part in zip(rows, values, strict=True):
            out.put(here, part, to)
        return out.whole()

    def attend(self, layer: Any, h: Tensor, gate: Tensor) -> Tensor:
        """Return ``h [N, C]`` and the values of a layer that sees the slide, times ``gate [C]``.

        A layer that can ``read`` a part of a slide, ``merge`` two readings and ``spread`` the
        result over a part does so for some rows at a time.
        """
        if not hasattr(layer, "read"):
            return h + gate * layer(h, self.batch, 1)
        summaries = self._each(layer.read, h.split(self._n_rows))
        summary = functools.reduce(layer.merge, summaries)
        return self.by_rows(lambda part: gate * layer.spread(part, summary), h, h)

    def by_rows(
        self, function: Callable[[Tensor], Tensor], h: Tensor, to: Tensor | None = None
    ) -> Tensor:
        """Return a function of single spots of ``h [N, C]``, for some rows at a time, added."""
        n_rows = self._n_rows
        parts = [slice(start, start + n_rows) for start in range(0, self.n_spots, n_rows)]
        return self._filled(parts, self._each(lambda rows: function(h[rows]), parts), to)

    def estimate(self, read_out: Callable[[Tensor], Tensor], h: Tensor) -> Callable[[Rows], Tensor]:
        """Return what is read out of the states ``h``, by rows, so that [N, G] is never made."""
        return lambda rows: read_out(h[rows])

    @property
    def average(self) -> Average:
        """The mean over the neighbours of each spot, of values that are in memory."""
        if self._average is None:
            index = [
                torch.stack([tile.nodes[sender], tile.spots[receiver]])
                for tile in self.tiles
                for sender, receiver in [EdgeIndex.as_tensor(tile.edges.edge_index)]
            ]
            weight = [t.edges.edge_weight for t in self.tiles if t.edges.edge_weight is not None]
            self._average = Averaging(
                torch.cat(index, dim=1), torch.cat(weight) if weight else None, self.n_spots
            )
        return self._average

    def with_edges(self, encode: Callable[[Any], Any]) -> TiledGraph:
        """Return the view with ``edge_attr`` replaced by what ``encode`` makes of it."""
        tiles = [
            dataclasses.replace(
                tile, edges=tile.edges._replace(edge_attr=encode(tile.edges.edge_attr))
            )
            for tile in self.tiles
        ]
        return TiledGraph(tiles, self.n_spots, self.arrays, self._average)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.tiles)} tiles of {self.n_spots} spots)"


GraphView = WholeGraph | TiledGraph


def view_of(data: Data, tile_size: int | None = None, *, above: int = 0) -> GraphView:
    """Return the view of a slide that suits its size.

    Args:
        data: a slide with its graph.
        tile_size: maximum number of spots of a tile; None: what suits a CPU's cache.
        above: a slide of no more spots is seen as a whole.
    """
    if data.num_nodes <= above:
        return WholeGraph.of(data)
    return TiledGraph.of(data, tile_size or CACHE_SIZED)


def _cut(edges: Edges, spots: Sequence[Tensor], n_spots: int, arrays: Arrays) -> list[Tile]:
    """Return the tiles of some spots ``[n]`` each, of the edges that end on any of them."""
    sender, receiver = edges.edge_index
    tile_of = receiver.new_empty(n_spots)
    place = torch.empty_like(tile_of)
    for i, rows in enumerate(spots):
        tile_of[rows] = i
        place[rows] = torch.arange(len(rows), device=rows.device)
    of_edge = tile_of[receiver]
    orders: Sequence[Tensor | slice]
    sizes = torch.bincount(of_edge, minlength=len(spots)).tolist()
    if is_sorted(receiver) and is_sorted(of_edge):
        ends = list(itertools.accumulate(sizes))
        orders = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    else:
        order = receiver.argsort(stable=True)  # rows of a tile ascend, so its edges are sorted
        orders = order[of_edge[order].argsort(stable=True)].split(sizes)
    tiles = []
    for rows, here in zip(spots, orders, strict=True):
        nodes, local = _relabel(sender[here], rows, place)
        index = arrays.keep(torch.stack([local, place[receiver[here]]]))
        attr, weight = (
            None if value is None else arrays.keep(value[here])
            for value in (edges.edge_attr, edges.edge_weight)
        )
        ordered = Edges(sorted_edges(index, len(nodes)), attr, weight)
        tiles.append(Tile(rows, nodes, ordered, rows))
    return tiles


def _averaging(edges: Edges, rows: Tensor, n_spots: int, arrays: Arrays) -> Averaging:
    """Return the mean over the neighbours of consecutive rows, whose edges are given in order."""
    sender, receiver = edges.edge_index
    first = int(rows[0])
    local = sorted_edges(torch.stack([sender, receiver - first]), n_spots)
    average = Averaging(local, edges.edge_weight, len(rows), first)
    average.sender, average.share = arrays.keep(average.sender), arrays.keep(average.share)
    return average


def _in_pieces(averages: Sequence[Averaging], n_spots: int) -> Average:
    if len(averages) == 1:
        return averages[0]

    def average(z: Tensor) -> Tensor:
        out = z.new_empty(n_spots, z.size(1))

        def fill(part: Averaging) -> None:
            out[part.rows] = part(z)

        for _ in in_threads(fill, averages, z.device):
            pass
        return out

    return average


def _relabel(sender: Tensor, rows: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of a tile and of its halo, and the senders' places among them.

    ``place`` holds the place of a tile's own spots; it is used for those of the halo in between.
    """
    halo = torch.unique(sender)
    halo = halo[~torch.isin(halo, rows)]
    kept = place[halo]
    place[halo] = torch.arange(len(halo), device=halo.device) + len(rows)
    local = place[sender]
    place[halo] = kept
    return torch.cat([rows, halo]), local


def split_in_space(pos: np.ndarray, max_spots: int) -> list[np.ndarray]:
    """Cut a slide at medians, along its longer side first, until no part has more spots.

    Args:
        pos: ``[N, 2]`` positions.
        max_spots: maximum number of spots of a part.

    Returns:
        The rows of each part, ascending; none of a slide without spots.
    """
    parts, pending = [], [np.arange(len(pos))] if len(pos) else []
    while pending:
        rows = pending.pop()
        if len(rows) <= max_spots:
            parts.append(np.sort(rows))
            continue
        here = pos[rows]
        side = int(np.argmax(np.ptp(here, axis=0)))
        # whole parts of the wanted size, so that the last cut does not leave halves
        half = max_spots * max(1, round(len(rows) / max_spots / 2))
        order = np.argpartition(here[:, side], half)
        pending += [rows[order[half:]], rows[order[:half]]]
    return parts
