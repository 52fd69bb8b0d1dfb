from __future__ import annotations

import torch
from torch_geometric.data import Data

from stflow_graph.graph import NeighbourhoodContext, SpatialGraph
from stflow_graph.nn.context_embedding import ContextEmbedding


def slide(n: int = 30, channels: int = 7) -> Data:
    generator = torch.Generator().manual_seed(n)
    pos = torch.rand(n, 2, generator=generator)
    return SpatialGraph(n_neighbors=4)(
        Data(x=torch.randn(n, channels, generator=generator), pos=pos)
    )


def test_mapping_first_and_averaging_first_are_the_same_function():
    data = slide()
    layer = ContextEmbedding(7, 5, hops=(1, 3), dropout=0.9).eval()
    assert layer.weight.shape == (5, 21)
    first = layer(data.x, data.edge_index, data.edge_weight)
    wide = NeighbourhoodContext((1, 3))(data).context
    second = layer(data.x, data.edge_index, data.edge_weight, wide)
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def test_training_drops_the_same_with_and_without_a_context_made_before():
    data = slide()
    layer = ContextEmbedding(7, 5, hops=(1, 3), dropout=0.5)
    found = []
    for context in (None, NeighbourhoodContext((1, 3))(data).context):
        torch.manual_seed(0)
        found.append(layer(data.x, data.edge_index, data.edge_weight, context))
    torch.testing.assert_close(*found)
    assert not torch.allclose(found[0], layer.eval()(data.x, data.edge_index, data.edge_weight))


def test_without_hops_it_is_a_linear_layer():
    data = slide()
    layer = ContextEmbedding(7, 5)
    torch.testing.assert_close(
        layer(data.x, data.edge_index), torch.nn.functional.linear(data.x, layer.weight, layer.bias)
    )
    assert "hops=()" in repr(layer)
