"""Laws that every network on the graph obeys, whatever its layers."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from networks import MAKERS, NETWORKS, F, G, graph, network
from slides import array, in_single, noise, slide
from torch import nn
from torch_geometric.data import Batch, Data

from stflow_graph.config import GraphConfig, GraphDenoiserConfig, TransformerDenoiserConfig
from stflow_graph.graph import TiledGraph
from stflow_graph.nn.denoiser import GraphDenoiser
from stflow_graph.nn.encoder import GraphEncoder
from stflow_graph.nn.stflow.denoiser import TransformerDenoiser


@pytest.fixture(params=NETWORKS, ids=", ".join)
def case(request) -> tuple[nn.Module, str]:
    kind, layers = request.param
    return network(kind, layers), layers


@pytest.fixture
def model(case) -> nn.Module:
    return case[0]


@pytest.fixture
def data(case) -> Data:
    """The graph that the network reads, of 40 spots."""
    return graph(slide(40, F), case[1])


PARAMETERS = json.loads(Path(__file__).with_name("parameters.json").read_text())
Y = noise(40, G, seed=1).double()
T = torch.tensor([0.4]).double()


def test_a_slide_in_a_batch_is_as_it_is_alone(case):
    model, layers = case
    slides = [graph(slide(n, F), layers) for n in (30, 2, 8)]
    t = torch.tensor([0.1, 0.5, 0.8]).double()
    y = Y.split([30, 2, 8])
    alone = [model(*inputs) for inputs in zip(y, t.split(1), slides, strict=True)]
    together = model(Y, t, Batch.from_data_list(slides))
    torch.testing.assert_close(together, torch.cat(alone))


def test_gradients_reach_every_parameter(model, data):
    (model(Y, T, data) * noise(40, G).double()).sum().backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    silent = {name for name, gradient in trained.items() if gradient is None or not gradient.any()}
    # one score for all neighbours: softmax ignores what they share
    assert {name for name in silent if not name.endswith("score.mlp.fc2.bias")} <= UNUSED


# before the first block of an encoder the estimate of expression is zero
UNUSED = {"encoder.blocks.0.conv.lin_y.weight", "encoder.blocks.0.conv.score.lin_y.weight"}


@torch.no_grad()
def test_tiles_of_any_size_give_what_the_whole_slide_gives(case, monkeypatch):
    monkeypatch.setattr("stflow_graph.graph.tiles.CACHE_SIZED", 16)
    model, layers = case
    data, y_t = graph(slide(array("hexagonal"), F), layers), noise(49, G).double()
    whole = model(y_t, T, data)
    for tile_size in (1, 7, 25, 48, 49):
        tiled = model.bind(data, TiledGraph.of(data, tile_size))(y_t, T)
        torch.testing.assert_close(tiled, whole, rtol=1e-9, atol=1e-9)
    model, data = model.float(), in_single(data)
    tiled = model.bind(data, TiledGraph.of(data, 25))(y_t.float(), T.float()).double()
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-5 * float(whole.std()))


@pytest.mark.parametrize("n_slides", [1, 2])
@torch.no_grad()
def test_a_bound_network_is_its_forward_pass_with_one_time(case, n_slides, monkeypatch):
    model, layers = case
    slides = [graph(slide(n, F), layers) for n in ((40,) if n_slides == 1 else (30, 10))]
    data = slides[0] if n_slides == 1 else Batch.from_data_list(slides)
    views = [None] if n_slides == 2 else [None, TiledGraph.of(data, 9)]
    one_block = data.num_edges * 8 * 8  # bytes of the smallest encoded edges
    for view in views:
        # room for the edges of no block, of the first and a part of the second, of all
        for budget in (0, one_block * 3 // 2, 100 * one_block):
            monkeypatch.setattr("stflow_graph.nn.denoiser.MAX_CACHE_BYTES", budget)
            bound = model.bind(data, view)
            for seed, time in ((1, 0.0), (2, 0.7)):
                y_t, t = noise(40, G, seed=seed).double(), torch.tensor([time]).double()
                torch.testing.assert_close(bound(y_t, t), model(y_t, t.expand(n_slides), data))


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("two stages", "typed edges"),
        ("every step", "frame averaged"),
        pytest.param("every step", "published", marks=pytest.mark.slow),
    ],
)
def test_compiles_without_graph_breaks(kind, layers):
    model = network(kind, layers, n_layers=1)
    data = Batch.from_data_list([graph(slide(n, F), layers) for n in (28, 12)])
    t = torch.tensor([0.2, 0.5]).double()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(Y, t, data), model(Y, t, data))


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_compiles_to_machine_code_and_gives_the_same(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # a killed run leaves half files
    model, t = network(kind).float(), T.float()
    compiled = torch.compile(model, fullgraph=True)
    for n in (30, 40):  # another size must not need another graph break
        data, y_t = in_single(graph(slide(n, F))), Y[:n].float()
        torch.testing.assert_close(compiled(y_t, t, data), model(y_t, t, data))


def test_reset_parameters_draws_anew_and_closes_the_gates(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.reset_parameters()
    after = model.state_dict()
    same = {key for key in before if torch.equal(before[key], after[key])}
    drawn = {key for key in before if before[key].dim() > 1 and "projection_matrix" not in key}
    assert not drawn & same
    assert not any(value.any() for key, value in after.items() if "gate" in key)


def test_single_spots_and_pairs_have_finite_output(case):
    model, layers = case
    for n in (1, 2):
        assert torch.isfinite(model(Y[:n], T, graph(slide(n, F), layers))).all()


@pytest.mark.parametrize("name", PARAMETERS)
def test_names_and_shapes_of_parameters_are_fixed(name):
    """Renaming one makes every checkpoint useless: do it knowingly, with a new format.

    Those of the transformer are the names of the public code.
    """
    if name == "transformer":
        model = TransformerDenoiser(1024, 50)
    else:
        model = network(*name.split(", "), n_layers=1)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == PARAMETERS[name]


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (GraphEncoder, GraphDenoiserConfig),
        (GraphDenoiser, GraphDenoiserConfig),
        (TransformerDenoiser, TransformerDenoiserConfig),
    ],
)
def test_defaults_of_networks_are_those_of_the_configuration(kind, config):
    arguments = inspect.signature(kind).parameters.items()
    defaults = {k: v.default for k, v in arguments if v.default is not v.empty}
    expected = config().model_dump(exclude={"name"})
    if kind is TransformerDenoiser:
        expected["n_neighbors"] = GraphConfig().n_neighbors
    else:
        assert expected.pop("input_dropout") == "auto"  # chosen in training
        assert defaults.pop("input_dropout") == 0.0
        defaults["conv_options"] = defaults["conv_options"] or {}
    if kind is GraphDenoiser:
        del expected["ridge_rank"]
    assert defaults == expected
