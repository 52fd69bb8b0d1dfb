"""The default denoiser: an encoder once a slide, then a flow of single spots."""

import pytest
import torch
from networks import SMALL, F, G, graph, network
from slides import noise, slide
from torch_geometric.data import Data

from stflow_graph.graph import NeighbourhoodContext, TiledGraph, WholeGraph
from stflow_graph.nn.two_stage import TwoStageDenoiser

N = 30
Y = noise(N, G).double()
T = torch.tensor([0.4]).double()


@pytest.fixture
def model() -> TwoStageDenoiser:
    return network("two stages")


@pytest.fixture
def data() -> Data:
    return graph(slide(N, F))


def test_the_encoder_sees_neither_noise_nor_time(model, data):
    encodings = []
    model.encoder.register_forward_hook(lambda *call: encodings.append(call[-1]))
    for y_t, t in ((Y, T), (Y + 1, T), (Y, 0 * T), (100 * Y, 0 * T)):
        y_1 = model(y_t, t, data)
        if not t:  # before any noise is removed only the encoding is informative
            torch.testing.assert_close(y_1, encodings[-1].mean)
    for encoding in encodings[1:]:
        assert torch.equal(encoding.mean, encodings[0].mean)
        assert torch.equal(encoding.states, encodings[0].states)
    assert not torch.allclose(model(Y, T, data), model(Y + 1, T, data))
    assert not torch.allclose(model(Y, T, data), model(Y, T / 2, data))


def test_without_a_flow_the_mean_is_returned(data):
    model = network("two stages", "mean alone")
    assert model.flow is None
    mean = model.encoder(data).mean
    for y_t, t in ((Y, T), (Y + 1, 0 * T)):
        assert torch.equal(model(y_t, t, data), mean)
        assert torch.equal(model.bind(data)(y_t, t), mean)


@pytest.mark.parametrize("layers", ["additive", "no ridge", "local", "published"])
@pytest.mark.parametrize("view", [WholeGraph.of, lambda data: TiledGraph.of(data, 7)])
@torch.no_grad()
def test_four_steps_over_some_spots_at_a_time_are_the_encoder(layers, view):
    model = network("two stages", layers)
    encoder, data = model.encoder, graph(slide(N, F), layers)
    expected = encoder(data)
    projected = torch.cat([x @ encoder.project_weight.T for x in data.x.split(11)])
    n_hops = len(encoder.hops)
    distances, average = projected.chunk(1 + n_hops, dim=1), view(data).average
    gathered = torch.cat(
        [
            encoder.gather([each[:, columns] for each in reversed(distances)], average, columns)
            for columns in (slice(0, 9), slice(9, None))
        ],
        dim=1,
    )
    code = encoder.encode(gathered, view(data))
    rank = 0 if layers == "no ridge" else G  # at most as many directions as genes
    assert projected.shape == (N, (1 + n_hops) * (16 + rank))
    assert gathered.shape == (N, 16 + rank)
    assert [part.size(1) for part in code] == [16, 16] + [rank] * bool(rank)
    rows = torch.randperm(N)
    parts = [encoder.decode([part[some] for part in code]) for some in rows.split(13)]
    for i, values in enumerate(expected):
        torch.testing.assert_close(torch.cat([part[i] for part in parts]), values[rows])


def test_a_context_computed_before_changes_nothing(model, data):
    expected = model(Y, T, data)
    data = NeighbourhoodContext(model.encoder.embed_x.hops)(data)
    torch.testing.assert_close(model(Y, T, data), expected)


def test_each_dropout_acts_in_training_alone(data):
    rates = {"dropout": 0.0, "input_dropout": 0.0}
    for name in rates:
        model = network("two stages", **{**rates, name: 0.5})
        assert torch.equal(model(Y, T, data), model(Y, T, data))
        model.train()
        assert not torch.equal(*(model.encoder(data).mean for _ in "ab"))
    encoder = network("two stages", **rates).train().encoder
    assert torch.equal(encoder(data).mean, encoder(data).mean)


def test_a_network_is_made_again_from_its_arguments(data):
    options = {**SMALL, "flow": False, "ridge_rank": 2}
    model = TwoStageDenoiser.make(**options)
    assert model.arguments == options
    again = TwoStageDenoiser.make(**model.arguments)
    again.load_state_dict(model.state_dict())
    assert again.n_genes == G
    single = graph(slide(N, F)).apply(lambda v: v.float() if v.is_floating_point() else v)
    call = (Y.float(), T.float(), single)
    assert torch.equal(again.eval()(*call), model.eval()(*call))
