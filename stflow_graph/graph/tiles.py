"""Spatial tiles: a slide cut into parts over which layers run one after the other.

A layer that sees a spot's neighbours needs only the edges that end on the spots it updates. Run
tile after tile, layer after layer, it gives what the whole slide would: no receptive field has to
fit into a halo, tiles of any size give the same result, and what a layer needs in between is
bounded by the tile.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Data

from stflow_graph.graph.diffusion import Averaging
from stflow_graph.graph.neighbor_sum import sorted_edges
from stflow_graph.graph.whole import Edges, Layer, Rows, WholeGraph, n_slides_of, slide_of_spots

# spots whose edges, of 64 to 512 numbers each, take a few megabytes: a CPU's cache holds most of
# them, and an allocator gives the same memory again instead of fresh pages of the system
CACHE_SIZED = 512


@dataclasses.dataclass(frozen=True)
class Tile:
    """Some spots of a slide and all edges that end on them.

    Attributes:
        spots: ``[n]`` rows of the slide, ascending.
        nodes: ``[m]`` rows of the slide: the tile's spots, then their neighbours outside (halo).
        edges: the edges, whose ``edge_index`` counts places in ``nodes``; sorted by spot.
    """

    spots: Tensor
    nodes: Tensor
    edges: Edges

    def __len__(self) -> int:
        return len(self.spots)


class TiledGraph:
    """One slide, over which layers run tile by tile; not for gradients.

    Args:
        tiles: every spot is in exactly one.
        n_spots: N.
    """

    n_slides = 1

    def __init__(self, tiles: Sequence[Tile], n_spots: int) -> None:
        self.tiles, self.n_spots = tuple(tiles), n_spots

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
        return cls(_cut(data, spots), data.pos.size(0))

    @property
    def batch(self) -> Tensor:
        """``[N]`` zeros: all spots are of one slide."""
        return self.tiles[0].spots.new_zeros(self.n_spots)

    @property
    def _n_rows(self) -> int:
        """Spots at a time where there are no edges: a GPU's tiles are large, small parts idle."""
        return max([CACHE_SIZED, *map(len, self.tiles)])

    def run(self, layer: Layer) -> Tensor:
        """Return a layer's values of all spots, ``[N, C]``."""
        out: Tensor | None = None
        for tile in self.tiles:
            part = layer(tile.nodes, tile.edges)[: len(tile)]
            if out is None:
                out = part.new_empty(self.n_spots, part.size(1))
            out[tile.spots] = part
        assert out is not None
        return out

    def attend(self, layer: Any, h: Tensor, gate: Tensor) -> Tensor:
        """Return the values ``[N, C]`` of a layer that sees the whole slide, times ``gate [C]``.

        A layer that can ``read`` a part of a slide, ``merge`` two readings and ``spread`` the
        result over a part does so for some rows at a time.
        """
        if not hasattr(layer, "read"):
            return gate * layer(h, self.batch, 1)
        summary = functools.reduce(layer.merge, map(layer.read, h.split(self._n_rows)))
        return self.by_rows(lambda part: gate * layer.spread(part, summary), h)

    def add(self, h: Tensor, update: Tensor) -> Tensor:
        """Return ``h + update``, in the memory of the update, which :meth:`run` allocated.

        Under autocast updates are of less precision than ``h``, of whose type the sum is.
        """
        return update.add_(h) if update.dtype == h.dtype else h + update

    def by_rows(self, function: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        """Return a function of single spots of ``h [N, C]``, made for some rows at a time."""
        out, n_rows = None, self._n_rows
        for start in range(0, self.n_spots, n_rows):
            part = function(h[start : start + n_rows])
            if out is None:
                out = part.new_empty(self.n_spots, part.size(1))
            out[start : start + n_rows] = part
        assert out is not None
        return out

    def estimate(self, read_out: Callable[[Tensor], Tensor], h: Tensor) -> Callable[[Rows], Tensor]:
        """Return what is read out of the states ``h``, by rows, so that [N, G] is never made."""
        return lambda rows: read_out(h[rows])

    @functools.cached_property
    def average(self) -> Averaging:
        """The mean over the neighbours of each spot."""
        index = [
            torch.stack([tile.nodes[sender], tile.spots[receiver]])
            for tile in self.tiles
            for sender, receiver in [EdgeIndex.as_tensor(tile.edges.edge_index)]
        ]
        weight = [t.edges.edge_weight for t in self.tiles if t.edges.edge_weight is not None]
        return Averaging(
            torch.cat(index, dim=1), torch.cat(weight) if weight else None, self.n_spots
        )

    def with_edges(self, encode: Callable[[Any], Any]) -> TiledGraph:
        """Return the view with ``edge_attr`` replaced by what ``encode`` makes of it."""
        tiles = [
            dataclasses.replace(
                tile, edges=tile.edges._replace(edge_attr=encode(tile.edges.edge_attr))
            )
            for tile in self.tiles
        ]
        return TiledGraph(tiles, self.n_spots)

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


def _cut(data: Data, spots: Sequence[Tensor]) -> list[Tile]:
    sender, receiver = data.edge_index
    tile_of = receiver.new_empty(data.pos.size(0))
    place = torch.empty_like(tile_of)
    for i, rows in enumerate(spots):
        tile_of[rows] = i
        place[rows] = torch.arange(len(rows), device=rows.device)
    order = receiver.argsort(stable=True)  # rows of a tile ascend, so its edges are sorted
    order = order[tile_of[receiver[order]].argsort(stable=True)]
    sizes = torch.bincount(tile_of[receiver], minlength=len(spots)).tolist()
    tiles = []
    for rows, edges in zip(spots, order.split(sizes), strict=True):
        nodes, local = _relabel(sender[edges], rows, place)
        index = sorted_edges(torch.stack([local, place[receiver[edges]]]), len(nodes))
        attr, weight = (
            None if value is None else value[edges] for value in (data.edge_attr, data.edge_weight)
        )
        tiles.append(Tile(rows, nodes, Edges(index, attr, weight)))
    return tiles


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
