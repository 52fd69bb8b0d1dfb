from __future__ import annotations

import torch
from torch_geometric.data import Data

from stflow_graph.graph import SpatialGraph


def test_the_graph_does_not_depend_on_the_unit_of_positions():
    pos = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)).double()
    pixels, microns = (SpatialGraph(6)(Data(pos=pos * unit + 5)) for unit in (1000.0, 0.3))
    assert torch.equal(pixels.edge_index, microns.edge_index)
    assert torch.allclose(pixels.edge_attr, microns.edge_attr, atol=1e-5)
    assert torch.allclose(pixels.edge_weight, microns.edge_weight, atol=1e-5)


def test_working_on_some_spots_at_a_time_gives_the_same_graph(monkeypatch):
    pos = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)).double()
    pos = torch.cat([pos, torch.tensor([[9.0, 9.0]] * 12)])  # a heap needs a wider search
    whole = SpatialGraph(6)(Data(pos=pos))
    monkeypatch.setattr("stflow_graph.graph.spatial._SPOTS", 7)
    monkeypatch.setattr("stflow_graph.graph.neighbors._ROWS", 5)
    monkeypatch.setattr("stflow_graph.graph.backends._WORTH_THREADS", 1)
    parts = SpatialGraph(6)(Data(pos=pos))
    for key in ("edge_index", "edge_weight", "edge_attr"):
        torch.testing.assert_close(parts[key], whole[key])


def test_repr_states_the_configuration():
    assert "n_neighbors=6" in repr(SpatialGraph(6))
