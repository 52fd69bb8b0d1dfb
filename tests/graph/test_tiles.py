from __future__ import annotations

import copy

import pytest
import torch
from torch_geometric.data import Batch, Data

from stflow_graph.graph import Averaging, SimilarityEdges, SpatialGraph, SpatialTiles
from stflow_graph.graph.tiles import Tile, Tiles, split_in_space


def slide(n: int = 60) -> Data:
    generator = torch.Generator().manual_seed(n)
    pos = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    return Data(x=torch.randn(n, 5, generator=generator), pos=pos)


def edges_of(data: Data, prefix: str = "") -> dict[tuple[int, int], list[float]]:
    index = data[prefix + "edge_index"].T.tolist()
    return dict(zip(map(tuple, index), data[prefix + "edge_attr"].tolist(), strict=True))


@pytest.mark.parametrize("tile_size", [1, 7, 25, 60, 1000])
def test_tiles_hold_every_spot_once_and_every_edge_with_its_geometry(tile_size):
    data = SimilarityEdges(3)(SpatialGraph(4)(slide()))
    expected = [edges_of(data), edges_of(data, "similar_")]
    weights = dict(
        zip(map(tuple, data.edge_index.T.tolist()), data.edge_weight.tolist(), strict=True)
    )
    tiled = SpatialTiles(tile_size, ("", "similar_"))(data)
    assert "edge_index" not in tiled
    assert "similar_edge_attr" not in tiled
    assert torch.cat([tile.spots for tile in tiled.tiles]).sort().values.tolist() == list(range(60))
    assert max(map(len, tiled.tiles)) <= tile_size
    found: list[dict] = [{}, {}]
    for tile in tiled.tiles:
        for here, near in zip(found, tile.relations, strict=True):
            assert near.nodes[: len(tile)].tolist() == tile.spots.tolist()
            assert len(set(near.nodes.tolist())) == len(near.nodes)
            assert not len(near.edge_index[1]) or near.edge_index[1].max() < len(tile)
            pairs = [tuple(pair) for pair in near.nodes[near.edge_index].T.tolist()]
            here.update(zip(pairs, near.edge_attr.tolist(), strict=True))
            if near.edge_weight is not None:
                assert [weights[pair] for pair in pairs] == near.edge_weight.tolist()
    assert found == expected


def test_averages_over_tiles_are_those_of_the_slide():
    data = SpatialGraph(4)(slide())
    expected = Averaging(data.edge_index, data.edge_weight, 60)(data.x)
    tiled = SpatialTiles(13)(data)
    torch.testing.assert_close(tiled.tiles.average(data.x), expected)
    assert "60 spots" in repr(tiled.tiles)
    assert "13" in repr(SpatialTiles(13))


@pytest.mark.parametrize("n", [0, 1, 5, 100])
def test_parts_in_space_are_compact_and_not_too_large(n):
    pos = slide(n).pos.numpy()
    parts = split_in_space(pos, 9)
    assert sorted(i for part in parts for i in part) == list(range(n))
    assert all(0 < len(part) <= 9 for part in parts)
    if n == 100:
        assert len(parts) <= 16
        assert max(pos[part].std(0).max() for part in parts) < 0.2


def test_spots_at_one_place_are_split_too():
    assert [len(p) for p in split_in_space(torch.zeros(20, 2).numpy(), 5)] == [5] * 4


def test_what_cannot_be_tiled_is_refused():
    with pytest.raises(ValueError, match="tile_size must be >= 1"):
        SpatialTiles(0)
    two = Batch.from_data_list([SpatialGraph(4)(slide(20)), SpatialGraph(4)(slide(30))])
    with pytest.raises(ValueError, match="tiles are of one slide"):
        SpatialTiles(5)(two)
    with pytest.raises(ValueError, match="1 of 3 spots are not in one tile"):
        Tiles([Tile(torch.tensor([0, 2]), ())], 3)


def test_tiles_move_with_their_slide_and_stay_tiles():
    data = SpatialTiles(7)(SpatialGraph(4)(slide(20)))
    moved = copy.copy(data).to("meta").tiles
    assert len(moved) == len(data.tiles)
    for tile in moved:
        tensors = [tile.spots, *(v for edges in tile.relations for v in edges if v is not None)]
        assert {str(tensor.device) for tensor in tensors} == {"meta"}
