import torch
from slides import scattered
from torch_geometric.data import Data

from stflow_graph.graph import SpatialGraph

KEYS = ("edge_index", "edge_weight", "edge_attr")


def test_the_graph_does_not_depend_on_the_unit_of_positions():
    pixels, microns = (SpatialGraph(6)(Data(pos=scattered(50) * u + 5)) for u in (1000.0, 0.3))
    for key in KEYS:
        torch.testing.assert_close(pixels[key], microns[key], atol=1e-5, rtol=1e-5)


def test_working_on_some_spots_at_a_time_gives_the_same_graph(monkeypatch):
    # a heap needs a wider search
    pos = torch.cat([scattered(50), torch.tensor([[9.0, 9.0]] * 12)])
    whole = SpatialGraph(6)(Data(pos=pos))
    monkeypatch.setattr("stflow_graph.graph.spatial.rows_at_a_time", lambda _: 7)
    monkeypatch.setattr("stflow_graph.graph.neighbors.rows_at_a_time", lambda _: 5)
    monkeypatch.setattr("stflow_graph.graph.tree_search._ROWS", 9)
    monkeypatch.setattr("stflow_graph.graph.tree_search._WORTH_THREADS", 1)
    parts = SpatialGraph(6)(Data(pos=pos))
    for key in KEYS:
        assert torch.equal(parts[key], whole[key])


def test_repr_states_the_configuration():
    expected = "SpatialGraph(n_neighbors=6, slack=0.1, backend='auto')"
    assert repr(SpatialGraph(6)) == expected
