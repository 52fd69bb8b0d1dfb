"""Spatial tiles: a slide cut into parts that are worked on one after the other.

A tile holds some spots of a slide and, for each type of edges, the subgraph of all edges that end
on them. A layer that sees a spot's neighbours can thus be run on one tile at a time, and layer
after layer over all tiles gives what the whole slide would: no receptive field has to fit into a
halo, tiles of any size give the same, and what a layer needs in between is bounded by the tile.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from stflow_graph.graph.diffusion import Averaging
from stflow_graph.graph.neighbor_sum import sorted_edges

# spots whose edges, of 64 to 512 numbers each, take a few megabytes: a CPU's cache holds most of
# them, and an allocator gives the same memory again instead of fresh pages of the system
CACHE_SIZED = 512
# prefixes of the types of edges that a slide may have: in space, and of ``SimilarityEdges``
RELATIONS = ("", "similar_")


class TileEdges(NamedTuple):
    """The edges of one type that end on a tile's spots.

    Attributes:
        nodes: ``[m]`` rows of the slide: the tile's spots, then their neighbours outside (halo).
        edge_index: ``[2, e]`` places in ``nodes``: neighbours (row 0) and spots (row 1), by which
            they are sorted.
        edge_attr: ``[e, D]`` geometry, or what a layer has made of it, or None.
        edge_weight: ``[e]``, or None.
    """

    nodes: Tensor
    edge_index: EdgeIndex
    edge_attr: Any
    edge_weight: Tensor | None


@dataclasses.dataclass(frozen=True)
class Tile:
    """A tile.

    Attributes:
        spots: ``[n]`` rows of the slide that the tile is about.
        relations: its edges, one entry for each type.
    """

    spots: Tensor
    relations: tuple[TileEdges, ...]

    def __len__(self) -> int:
        return len(self.spots)


class Tiles:
    """The tiles of one slide; every spot is in exactly one.

    No ``Sequence``, which ``Data.to`` would take apart: it calls :meth:`to`.

    Args:
        tiles: the tiles.
        n_spots: N.

    Raises:
        ValueError: a spot is in no tile or in several.
    """

    def __init__(self, tiles: Sequence[Tile], n_spots: int) -> None:
        seen = torch.zeros(n_spots, dtype=torch.long)
        for tile in tiles:
            seen[tile.spots.cpu()] += 1
        if not (seen == 1).all():
            raise ValueError(f"{int((seen != 1).sum())} of {n_spots} spots are not in one tile")
        self.tiles, self.n_spots = tuple(tiles), n_spots

    def __getitem__(self, i: int) -> Tile:
        return self.tiles[i]

    def __iter__(self) -> Iterator[Tile]:
        return iter(self.tiles)

    def __len__(self) -> int:
        return len(self.tiles)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Tiles:
        """Return the tiles with all their tensors on a device."""

        def moved(value: Any) -> Any:
            return None if value is None else value.to(device, non_blocking=non_blocking)

        return self.with_tiles(
            Tile(
                moved(tile.spots),
                tuple(TileEdges(*map(moved, edges)) for edges in tile.relations),
            )
            for tile in self.tiles
        )

    def with_tiles(self, tiles: Iterable[Tile]) -> Tiles:
        """Return other tiles of the same spots, which are not checked again."""
        there = Tiles.__new__(Tiles)
        there.tiles, there.n_spots = tuple(tiles), self.n_spots
        return there

    @functools.cached_property
    def order(self) -> tuple[Tensor, list[int]]:
        """``[N]``: the rows of the slide, tile after tile, and how many each tile has."""
        return torch.cat([tile.spots for tile in self.tiles]), [len(tile) for tile in self.tiles]

    @functools.cached_property
    def nodes(self) -> list[tuple[Tensor, list[int]]]:
        """For each type of edges: ``nodes`` of tile after tile, and how many each tile has."""
        by_relation = zip(*(tile.relations for tile in self.tiles), strict=True)
        return [
            (torch.cat([each.nodes for each in edges]), [len(each.nodes) for each in edges])
            for edges in by_relation
        ]

    def average(self, z: Tensor) -> Tensor:
        """Return the mean over the spatial neighbours of each spot, of ``z``'s shape ``[N, C]``."""
        return self._averaging(z)

    @functools.cached_property
    def _averaging(self) -> Averaging:
        spatial = [(tile.spots, tile.relations[0]) for tile in self.tiles]
        index = [
            torch.stack([near.nodes[sender], spots[receiver]])
            for spots, near in spatial
            for sender, receiver in [near.edge_index.as_tensor()]
        ]
        weight = [near.edge_weight for _, near in spatial if near.edge_weight is not None]
        return Averaging(
            torch.cat(index, dim=1), torch.cat(weight) if weight else None, self.n_spots
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} tiles of {self.n_spots} spots)"


class SpatialTiles(BaseTransform):
    """Cuts a slide that has its graph into tiles: ``data.tiles`` takes the place of its edges.

    Args:
        tile_size: most spots of a tile.
        relations: prefixes of the types of edges, the spatial one first.

    Raises:
        ValueError: ``tile_size`` < 1.
    """

    def __init__(self, tile_size: int = CACHE_SIZED, relations: Sequence[str] = ("",)) -> None:
        if tile_size < 1:
            raise ValueError(f"tile_size must be >= 1, got {tile_size}")
        self.tile_size, self.relations = tile_size, tuple(relations)

    def forward(self, data: Data) -> Data:
        """Return ``data`` with ``tiles`` in the place of its edges; ``pos [N, 2]`` must be there.

        Raises:
            ValueError: a batch of several slides.
        """
        if data.batch is not None and len(data.batch) and int(data.batch.max()) > 0:
            raise ValueError("tiles are of one slide, got a batch of several")
        groups = split_in_space(data.pos.cpu().numpy(), self.tile_size)
        spots = [torch.from_numpy(group).to(data.pos.device) for group in groups]
        by_relation = [self._cut(data, prefix, spots) for prefix in self.relations]
        tiles = [Tile(each, tuple(edges)) for each, *edges in zip(spots, *by_relation, strict=True)]
        data.tiles = Tiles(tiles, data.pos.size(0))
        for prefix in self.relations:
            for key in ("edge_index", "edge_attr", "edge_weight"):
                if prefix + key in data:
                    del data[prefix + key]
        return data

    @staticmethod
    def _cut(data: Data, prefix: str, spots: Sequence[Tensor]) -> list[TileEdges]:
        sender, receiver = data[prefix + "edge_index"]
        tile_of = receiver.new_empty(data.pos.size(0))
        place = torch.empty_like(tile_of)
        for i, rows in enumerate(spots):
            tile_of[rows] = i
            place[rows] = torch.arange(len(rows), device=rows.device)
        order = receiver.argsort(stable=True)  # rows of a tile ascend, so its edges are sorted
        order = order[tile_of[receiver[order]].argsort(stable=True)]
        sizes = torch.bincount(tile_of[receiver], minlength=len(spots)).tolist()
        parts = []
        values = [
            data[prefix + key] if prefix + key in data else None
            for key in ("edge_attr", "edge_weight")
        ]
        for rows, edges in zip(spots, order.split(sizes), strict=True):
            nodes, local = _relabel(sender[edges], rows, place)
            index = sorted_edges(torch.stack([local, place[receiver[edges]]]), len(nodes))
            attr, weight = (None if value is None else value[edges] for value in values)
            parts.append(TileEdges(nodes, index, attr, weight))
        return parts

    def __repr__(self) -> str:
        return f"{type(self).__name__}(tile_size={self.tile_size})"


def relations_of(data: Data) -> list[str]:
    """Return the prefixes of the types of edges that a slide has."""
    return [prefix for prefix in RELATIONS if f"{prefix}edge_index" in data]


def in_tiles(data: Data, tile_size: int | None = None, *, above: int = 0) -> Data:
    """Return a slide with all its edges in tiles, on which a ``GraphDenoiser`` works one by one.

    Args:
        data: a slide; one that has no edges is returned as it is.
        tile_size: spots of a tile; None: what suits a CPU's cache.
        above: a slide of no more spots is returned as it is too.
    """
    relations = relations_of(data)
    if not relations or data.num_nodes <= above:
        return data
    tiled: Data = SpatialTiles(tile_size or CACHE_SIZED, relations)(data)
    return tiled


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


def split_in_space(pos: np.ndarray, most: int) -> list[np.ndarray]:
    """Cut a slide at medians, along its longer side first, until no part has more spots.

    Args:
        pos: ``[N, 2]`` positions.
        most: spots of a part.

    Returns:
        The rows of each part, ascending; none of a slide without spots.
    """
    parts, pending = [], [np.arange(len(pos))] if len(pos) else []
    while pending:
        rows = pending.pop()
        if len(rows) <= most:
            parts.append(np.sort(rows))
            continue
        here = pos[rows]
        side = int(np.argmax(np.ptp(here, axis=0)))
        # whole parts of the wanted size, so that the last cut does not leave halves
        half = most * max(1, round(len(rows) / most / 2))
        order = np.argpartition(here[:, side], half)
        pending += [rows[order[half:]], rows[order[:half]]]
    return parts
