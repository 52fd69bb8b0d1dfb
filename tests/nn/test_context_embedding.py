import pytest
import torch
import torch.nn.functional as F
from slides import slide
from torch_geometric.data import Data

from stflow_graph.graph import Averaging, NeighbourhoodContext, SpatialGraph
from stflow_graph.nn.context_embedding import ContextEmbedding


@pytest.fixture
def data() -> Data:
    return NeighbourhoodContext((1, 3))(SpatialGraph(n_neighbors=4)(slide(30, channels=7)))


@pytest.fixture
def average(data) -> Averaging:
    return Averaging(data.edge_index, data.edge_weight, 30)


def test_projecting_first_and_averaging_first_are_the_same_function(data, average):
    layer = ContextEmbedding(7, 5, hops=(1, 3), dropout=0.9).eval()
    expected = F.linear(torch.cat([data.x, data.context], 1), layer.weight, layer.bias)
    for context in (None, data.context):
        out = layer(data.x, average, context)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    projected = layer.project(data.x)
    assert projected.shape == (30, layer.project_weight.size(0)) == (30, 15)


def test_dropout_acts_in_training_with_and_without_a_context_computed_before(data, average):
    layer = ContextEmbedding(7, 5, hops=(1, 3), dropout=0.5)
    out = []
    for context in (None, data.context):
        torch.manual_seed(0)
        out.append(layer(data.x, average, context))
    torch.testing.assert_close(*out)
    assert not torch.allclose(out[0], layer.eval()(data.x, average))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_without_hops_it_is_a_linear_layer(data, dropout):
    layer = ContextEmbedding(7, 5, dropout=dropout)
    expected = F.linear(data.x, layer.weight, layer.bias)
    assert torch.allclose(layer(data.x, None), expected) == (dropout == 0)
    torch.testing.assert_close(layer.eval()(data.x, None), expected)
    assert repr(layer) == f"ContextEmbedding(7, 5, hops=(), dropout={dropout})"
