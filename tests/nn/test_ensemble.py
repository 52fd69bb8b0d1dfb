import pytest
import torch
from networks import F, G, graph, network
from slides import noise, slide
from torch_geometric.data import Data

from stflow_graph.graph import TiledGraph
from stflow_graph.nn.ensemble import DenoiserEnsemble, flows_about_the_mean

N = 20
Y = noise(N, G).double()
T = torch.tensor([0.4]).double()


@pytest.fixture
def data() -> Data:
    return graph(slide(N, F))


@pytest.mark.parametrize("kind", ["every step", "two stages"])
@torch.no_grad()
def test_an_ensemble_is_the_mean_of_its_members(kind, data):
    members = [network(kind, seed=seed) for seed in range(3)]
    ensemble = DenoiserEnsemble(members)
    expected = torch.stack([member(Y, T, data) for member in members]).mean(0)
    torch.testing.assert_close(ensemble(Y, T, data), expected)
    for view in (None, TiledGraph.of(data, 7)):
        torch.testing.assert_close(ensemble.bind(data, view)(Y, T), expected)


def test_an_ensemble_needs_a_member():
    with pytest.raises(ValueError, match="needs a member"):
        DenoiserEnsemble([])


def test_each_flow_about_the_mean_is_one_members_about_the_mean_of_all(data):
    members = [network("two stages", seed=seed) for seed in range(3)]
    encodings = [member.encoder(data) for member in members]
    mean = torch.stack([encoding.mean for encoding in encodings]).mean(0)
    flows = flows_about_the_mean(members, mean, [encoding.states for encoding in encodings])
    assert len(flows) == 3
    samples = []
    for member, encoding, flow in zip(members, encodings, flows, strict=True):
        torch.testing.assert_close(flow(Y, 0 * T), mean)
        # moved by the difference of the means, it is the member's own flow
        shift = mean - encoding.mean
        samples.append(flow(Y, T))
        torch.testing.assert_close(samples[-1], member(Y - T * shift, T, data) + shift)
    assert not torch.allclose(samples[0], samples[1])
    assert not torch.allclose(samples[1], samples[2])


def test_flows_need_the_states_of_every_member(data):
    members = [network("two stages", seed=seed) for seed in range(2)]
    mean, states = members[0].encoder(data)
    with pytest.raises(ValueError, match="shorter"):
        flows_about_the_mean(members, mean, [states])
