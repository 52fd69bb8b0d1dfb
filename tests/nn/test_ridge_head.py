import pytest
import torch
from networks import F, G, graph, network
from slides import noise, slide
from torch_geometric.data import Data

from stflow_graph.graph import Averaging, NeighbourhoodContext
from stflow_graph.nn.ridge_head import RidgeHead

N, HOPS = 30, (1, 3)


@pytest.fixture
def data() -> Data:
    return NeighbourhoodContext(HOPS)(graph(slide(N, F)))


@pytest.fixture
def wide(data) -> torch.Tensor:
    return torch.cat([data.x, data.context], dim=1)


def weights(rank: int) -> torch.Tensor:
    return (noise(3 * F, rank) @ noise(rank, G, seed=1)).double()


def run(head: RidgeHead, data: Data) -> torch.Tensor:
    return head(data.x, Averaging(data.edge_index, data.edge_weight, N))


@pytest.mark.parametrize("rank", [2, 5, 50])
def test_it_is_the_linear_map_where_the_rank_is_enough(rank, data, wide):
    head = RidgeHead(F, G, rank, HOPS).double()
    assert not run(head, data).any()
    w, bias = weights(2), torch.arange(float(G)).double()
    head.set_weights(w, bias, wide @ w, mixing_weight=0.5)
    torch.testing.assert_close(run(head, data), wide @ w + bias, rtol=1e-5, atol=1e-5)
    assert head.mixing_weight == 0.5
    head.reset_parameters()
    assert not run(head, data).any()
    assert head.mixing_weight == 0


@pytest.mark.parametrize("dense", [500, 1])
def test_a_lower_rank_keeps_the_directions_of_largest_variance(data, wide, dense, monkeypatch):
    """By the matrix of all products of genes, and for many genes without it."""
    monkeypatch.setattr("stflow_graph.nn.eigenvectors.DENSE", dense)
    head, w = RidgeHead(F, G, 2, HOPS).double(), weights(4)
    exact = wide @ w
    head.set_weights(w, torch.zeros(G), exact, mixing_weight=0.5)
    best = torch.linalg.svdvals(exact)[2:].norm()  # Eckart and Young
    torch.testing.assert_close((run(head, data) - exact).norm(), best)


def test_in_an_encoder_it_is_averaged_into_the_mean_outside_of_training(data, wide):
    encoder = network("two stages", dropout=0.0).encoder
    head, w = encoder.ridge_head, weights(3)
    assert not any(p.requires_grad for p in head.parameters())
    head.reset_parameters()
    head.set_weights(w, torch.zeros(G), wide @ w, mixing_weight=0.0)
    alone = encoder(data)
    head.mixing_weight.fill_(0.25)
    mixed = encoder(data)
    torch.testing.assert_close(mixed.mean, 0.75 * alone.mean + 0.25 * wide @ w)
    assert torch.equal(mixed.states, alone.states)
    torch.testing.assert_close(encoder.train()(data).mean, alone.mean)
