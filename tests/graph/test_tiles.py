import pytest
import torch
from slides import scattered, slide
from torch_geometric.data import Batch, Data

from stflow_graph.graph import (
    Averaging,
    SimilarityEdges,
    SpatialGraph,
    STFlowGraph,
    TiledGraph,
    WholeGraph,
    view_of,
)
from stflow_graph.graph.arrays import InMemory, Rows
from stflow_graph.graph.tiles import CACHE_SIZED, split_in_space
from stflow_graph.graph.whole import Edges, n_slides_of

N = 60
SIZES = [1, 7, 25, N - 1, N, 1000]


@pytest.fixture
def data() -> Data:
    return SimilarityEdges(3)(SpatialGraph(4)(slide(N)))


@pytest.fixture(params=[None, *SIZES], ids=str)
def view(request, data) -> WholeGraph | TiledGraph:
    """The slide as a whole, and in tiles of every size."""
    return WholeGraph.of(data) if request.param is None else TiledGraph.of(data, request.param)


def sorted_rows(*columns: torch.Tensor) -> list[list[float]]:
    return sorted(torch.cat([c.double().view(len(c), -1) for c in columns], dim=1).tolist())


@pytest.mark.parametrize("tile_size", SIZES)
def test_tiles_hold_every_spot_once_and_every_edge_with_its_geometry(data, tile_size):
    tiled = TiledGraph.of(data, tile_size)
    assert torch.equal(torch.cat([t.spots for t in tiled.tiles]).sort().values, torch.arange(N))
    rows = []
    for tile in tiled.tiles:
        assert 0 < len(tile) <= tile_size
        assert torch.equal(tile.nodes[: len(tile)], tile.spots)
        assert len(tile.nodes.unique()) == len(tile.nodes)
        sender, receiver = edge_index = tile.edges.edge_index.as_tensor()
        assert (receiver < len(tile)).all()
        assert (receiver.diff() >= 0).all()
        halo = torch.arange(len(tile), len(tile.nodes))
        assert torch.isin(halo, sender).all()  # no node without need
        edges = tile.nodes[edge_index]
        rows += sorted_rows(edges.T, tile.edges.edge_attr, tile.edges.edge_weight)
    assert sorted(rows) == sorted_rows(data.edge_index.T, data.edge_attr, data.edge_weight)
    assert data.num_edges == len(rows)  # the slide itself stays as it was


@pytest.mark.parametrize("graph", [SpatialGraph(4), STFlowGraph(4)], ids=["spatial", "stflow"])
@pytest.mark.parametrize("tile_size", SIZES)
@pytest.mark.parametrize("piece", [1, 20, 1000])
def test_a_graph_made_piece_by_piece_is_the_same(graph, tile_size, piece, monkeypatch):
    monkeypatch.setattr("stflow_graph.graph.tiles._PIECE", piece)
    data = graph(slide(N))
    kept: list[torch.Tensor] = []

    class Remembers(InMemory):
        def keep(self, tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor)
            return tensor.clone()

    tiled = TiledGraph.along(N, graph.edges_of(data.pos), tile_size, Remembers())
    whole = WholeGraph.of(data)
    assert torch.equal(torch.cat([t.spots for t in tiled.tiles]), torch.arange(N))
    assert all(0 < len(tile) <= tile_size for tile in tiled.tiles)
    edges = torch.cat([t.nodes[t.edges.edge_index.as_tensor()] for t in tiled.tiles], dim=1)
    assert torch.equal(edges, data.edge_index)
    attr = torch.cat([tile.edges.edge_attr for tile in tiled.tiles])
    torch.testing.assert_close(attr, data.edge_attr)
    if data.edge_weight is None:
        assert all(tile.edges.edge_weight is None for tile in tiled.tiles)
    else:
        weight = torch.cat([tile.edges.edge_weight for tile in tiled.tiles])
        assert torch.equal(weight, data.edge_weight)
    torch.testing.assert_close(tiled.average(data.x), whole.average(data.x))
    assert sum(each.numel() for each in kept) >= data.num_edges * (2 + data.edge_attr.size(1))


class Local:
    """A layer: the weighted sum over the neighbours, of their values and geometry, and own."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def __call__(self, rows: Rows, edges: Edges) -> torch.Tensor:
        sender, receiver = edges.edge_index.as_tensor()
        own = self.x[rows]
        message = edges.edge_weight[:, None] * own[sender] * edges.edge_attr[:, 2:3]
        return own.index_add(0, receiver, message)


class Mean:
    """A global layer that sees the slide at once."""

    def __call__(self, h: torch.Tensor, batch: torch.Tensor, n_slides: int) -> torch.Tensor:
        assert batch.shape == (len(h),)
        assert n_slides == 1
        return h + h.mean(0)


class MeanByParts(Mean):
    """The same, which also reads a slide part by part."""

    def read(self, h: torch.Tensor) -> tuple[torch.Tensor, int]:
        return h.sum(0), len(h)

    def merge(self, one, other):
        return one[0] + other[0], one[1] + other[1]

    def spread(self, h, summary):
        return h + summary[0] / summary[1]


def test_every_view_computes_the_same(view, data, monkeypatch):
    monkeypatch.setattr("stflow_graph.graph.tiles.CACHE_SIZED", 16)
    x, whole = data.x, WholeGraph.of(data)
    torch.testing.assert_close(view.run(Local(x)), whole.run(Local(x)))
    torch.testing.assert_close(view.run(Local(x), 3 * x), 3 * x + whole.run(Local(x)))
    for layer in (Mean(), MeanByParts()):
        attended = view.attend(layer, x, 2 * torch.ones(x.size(1)))
        torch.testing.assert_close(attended, x + 2 * (x + x.mean(0)))
    torch.testing.assert_close(view.by_rows(torch.exp, x), x.exp())
    torch.testing.assert_close(view.by_rows(torch.exp, x, x), x + x.exp())
    rows = torch.tensor([3, 50])
    torch.testing.assert_close(view.estimate(torch.exp, x)(rows), x[rows].exp())
    expected = Averaging(data.edge_index, data.edge_weight, N)(x)
    torch.testing.assert_close(view.average(x), expected)
    doubled = view.with_edges(lambda attr: 2 * attr).run(Local(x))
    torch.testing.assert_close(doubled, 2 * whole.run(Local(x)) - x)
    torch.testing.assert_close(view.run(Local(x)), whole.run(Local(x)))  # the view is intact
    assert (view.n_spots, view.n_slides) == (N, 1)
    assert torch.equal(view.batch, torch.zeros(N).long())


def test_a_graph_without_weights_is_cut_too():
    data = STFlowGraph(4)(slide(N))
    tiled = TiledGraph.of(data, 7)
    assert all(tile.edges.edge_weight is None for tile in tiled.tiles)
    torch.testing.assert_close(tiled.average(data.x), WholeGraph.of(data).average(data.x))
    assert repr(tiled) == "TiledGraph(9 tiles of 60 spots)"


def test_sorted_edges_are_marked_as_such_and_others_are_left_alone(data):
    assert WholeGraph.of(data).edges.edge_index.is_sorted_by_col
    data.edge_index = data.edge_index.flip(1)
    assert WholeGraph.of(data).edges.edge_index is data.edge_index


def test_a_whole_view_counts_the_slides_of_a_batch():
    slides = [SpatialGraph(4)(slide(n)) for n in (20, 30)]
    batch = Batch.from_data_list(slides)
    view = WholeGraph.of(batch)
    assert (view.n_spots, view.n_slides) == (50, 2)
    assert torch.equal(view.batch, batch.batch)
    assert WholeGraph.of(batch, 5).n_slides == 5
    assert n_slides_of(torch.empty(0).long()) == 1


def test_small_slides_are_seen_as_a_whole(data):
    assert isinstance(view_of(data, above=N), WholeGraph)
    assert len(view_of(data, 7, above=N - 1).tiles) == len(TiledGraph.of(data, 7).tiles)
    assert len(view_of(data).tiles) == 1
    large = SpatialGraph(4)(slide(CACHE_SIZED + 1))
    assert len(view_of(large).tiles) == 2


@pytest.mark.parametrize("n", [0, 1, 5, 100])
def test_parts_in_space_are_compact_and_bounded(n):
    pos = scattered(n).numpy()
    parts = split_in_space(pos, 9)
    assert sorted(i for part in parts for i in part) == list(range(n))
    assert all(0 < len(part) <= 9 for part in parts)
    if n == 100:
        assert len(parts) <= 16
        assert max(pos[part].std(0).max() for part in parts) < 0.2


def test_spots_at_one_place_are_split_too():
    assert [len(p) for p in split_in_space(torch.zeros(20, 2).numpy(), 5)] == [5] * 4


def test_tiles_without_spots_and_of_several_slides_are_refused(data):
    with pytest.raises(ValueError, match="tile_size must be >= 1"):
        TiledGraph.of(data, 0)
    with pytest.raises(ValueError, match="got none"):
        TiledGraph.of(data.subgraph(torch.zeros(len(data.pos), dtype=torch.bool)), 5)
    with pytest.raises(ValueError, match="tiles are of one slide"):
        TiledGraph.of(Batch.from_data_list([data, data]), 5)
