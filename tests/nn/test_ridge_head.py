from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Data

from stflow_graph.graph import NeighbourhoodContext, SpatialGraph
from stflow_graph.nn.denoiser import GraphDenoiser
from stflow_graph.nn.ridge_head import LinearPart


def slide(n: int = 30) -> Data:
    generator = torch.Generator().manual_seed(n)
    pos = torch.rand(n, 2, generator=generator)
    return SpatialGraph(n_neighbors=4)(Data(x=torch.randn(n, 6, generator=generator), pos=pos))


def wide(data: Data) -> torch.Tensor:
    return torch.cat([data.x, NeighbourhoodContext((1, 3))(data).context], dim=1)


def weights(rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    left, right = (torch.randn(18, rank, generator=generator), torch.randn(rank, 5))
    return (left @ right).double()


@pytest.mark.parametrize("rank", [2, 5])
def test_it_is_the_linear_map_where_the_rank_is_enough(rank):
    data, part = slide(), LinearPart(6, 5, rank, hops=(1, 3))
    w, bias = weights(2), torch.arange(5.0)
    part.set_weights(w, bias, wide(data).double() @ w, share=0.5)
    expected = wide(data) @ w.float() + bias
    found = part(data.x, data.edge_index, data.edge_weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert part.share == 0.5


def test_a_lower_rank_keeps_what_varies_most():
    data, part = slide(), LinearPart(6, 5, 2, hops=(1, 3))
    w = weights(4)
    exact = wide(data).double() @ w
    part.set_weights(w, torch.zeros(5), exact, share=0.5)
    found = part(data.x, data.edge_index, data.edge_weight).double()
    singular = torch.linalg.svdvals(exact)
    best = singular[2:].square().sum().sqrt()  # Eckart and Young
    torch.testing.assert_close((found - exact).norm(), best, rtol=1e-4, atol=1e-4)


def test_in_a_denoiser_it_counts_outside_of_training_and_once_it_has_weights():
    torch.manual_seed(0)
    model = GraphDenoiser(
        6, 5, 8, 8, n_layers=1, dropout=0.0, graph_once=True, context_hops=(1, 3), ridge_rank=3
    ).eval()
    data = slide()
    alone = model.condition(data).mean
    w = weights(3)
    model.linear_part.set_weights(w, torch.zeros(5), wide(data).double() @ w, share=0.25)
    linear = wide(data) @ w.float()
    expected = 0.75 * alone + 0.25 * linear
    torch.testing.assert_close(model.condition(data).mean, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.train().condition(data).mean, alone)
    assert not any(p.requires_grad for p in model.linear_part.parameters())
    model.reset_parameters()
    assert model.linear_part.share == 0
    with pytest.raises(ValueError, match="ridge_rank needs graph_once"):
        GraphDenoiser(6, 5, ridge_rank=3)
