from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from linear import CHANNELS, N_GENES, configured, linear_slide, new_network, prepared, scaling_of
from torch import nn
from torch_geometric.nn import GATv2Conv, SAGEConv
from torch_geometric.nn.attention import PolynormerAttention

from stflow_graph.errors import BadConfig
from stflow_graph.flow import prior as priors
from stflow_graph.flow import sampler as samplers
from stflow_graph.graph import NeighbourhoodContext, SpatialGraph, STFlowGraph
from stflow_graph.models.build import (
    Unchanged,
    build_context,
    build_denoiser,
    build_graph,
    build_prior,
    build_sampler,
    denoiser_arguments,
    pick_device,
)
from stflow_graph.nn.conv import AdaptedConv, AdditiveConv, FrameAveragedConv, STFlowConv
from stflow_graph.nn.denoiser import GraphDenoiser
from stflow_graph.nn.global_attention import LatentAttention, PyGAttention
from stflow_graph.nn.spot_flow import SpotFlow
from stflow_graph.nn.stflow.denoiser import TransformerDenoiser
from stflow_graph.nn.two_stage import TwoStageDenoiser


def built(kind: str = "two-stage", **changes: Any) -> Any:
    return build_denoiser(configured(kind, **changes), CHANNELS, N_GENES)


def block_of(**changes: Any) -> Any:
    return built("two-stage", **changes).encoder.blocks[0]


class OwnConv(nn.Module):
    """A layer of a user's."""

    def __init__(self, channels: int, n_genes: int, depth: int = 1) -> None:
        super().__init__()
        self.sizes = (channels, n_genes, depth)


class OwnAttention(nn.Module):
    """A global layer of a user's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels


# denoisers


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("two-stage", TwoStageDenoiser),
        ("regression", TwoStageDenoiser),
        ("graph", GraphDenoiser),
        ("transformer", TransformerDenoiser),
    ],
)
def test_the_kind_of_denoiser_is_chosen_by_name_and_flow(kind, expected):
    network = built(kind)
    assert type(network) is expected
    if expected is TwoStageDenoiser:
        assert isinstance(network.flow, SpotFlow if kind == "two-stage" else type(None))
    # it knows what it was made with
    arguments = denoiser_arguments(configured(kind), CHANNELS, N_GENES)[1]
    assert network.arguments == arguments
    again = expected.make(**arguments)
    assert again.state_dict().keys() == network.state_dict().keys()


def test_every_argument_reaches_the_encoder():
    network = built(
        denoiser__hidden_channels=12,
        denoiser__n_layers=3,
        denoiser__n_heads=3,
        denoiser__dropout=0.11,
        denoiser__input_dropout=0.22,
        denoiser__context_hops=(2, 5),
        denoiser__ridge_rank=2,
        denoiser__global_attention="latent",
        denoiser__conv_options={"edge_channels": 15, "dropout": 0.33},
    ).encoder
    assert (network.in_channels, network.n_genes, network.channels) == (CHANNELS, N_GENES, 12)
    assert len(network.blocks) == 3
    assert network.embed_x.hops == (2, 5)
    assert network.embed_x.dropout == 0.22
    assert network.ridge_head.down.out_features == 2
    for block in network.blocks:
        assert (block.conv.heads, block.conv.edge_channels, block.conv.dropout) == (3, 15, 0.33)
        assert block.global_attention.heads == 3
        drops = [module.p for module in block.modules() if isinstance(module, nn.Dropout)]
        assert drops == [0.11, 0.11]
    assert built(denoiser__ridge_rank=0).encoder.ridge_head is None


def test_every_argument_reaches_the_transformer():
    network = built(
        "transformer",
        graph__n_neighbors=3,
        denoiser__hidden_channels=12,
        denoiser__edge_channels=6,
        denoiser__n_heads=3,
        denoiser__n_layers=2,
        denoiser__dropout=0.11,
        denoiser__attn_dropout=0.22,
    )
    assert network.arguments == {
        "in_channels": CHANNELS,
        "n_genes": N_GENES,
        "hidden_channels": 12,
        "edge_channels": 6,
        "n_heads": 3,
        "n_layers": 2,
        "n_neighbors": 3,
        "dropout": 0.11,
        "attn_dropout": 0.22,
    }


def test_arguments_that_do_not_fit_together_are_refused():
    with pytest.raises(BadConfig, match=r"^denoiser: heads must divide"):
        built(denoiser__n_heads=3)
    with pytest.raises(BadConfig, match=r"^denoiser: .*unexpected keyword argument 'depth'"):
        built(denoiser__conv_options={"depth": 2})
    with pytest.raises(BadConfig, match=r"input_dropout: 'auto' is set by training"):
        built(denoiser__input_dropout="auto")


# layers


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("additive", AdditiveConv),
        ("frame_averaged", FrameAveragedConv),
        ("stflow", STFlowConv),
    ],
)
def test_local_layers_by_name(name, expected):
    assert type(block_of(denoiser__conv=name).conv) is expected


def test_local_layers_of_pyg_are_adapted():
    options = {"heads": 2, "add_self_loops": False}
    layer = block_of(denoiser__conv="pyg:GATv2Conv", denoiser__conv_options=options).conv
    assert isinstance(layer, AdaptedConv)
    assert isinstance(layer.layer, GATv2Conv)
    assert (layer.layer.heads, layer.layer.out_channels) == (2, 4)
    assert not layer.layer.add_self_loops
    assert isinstance(block_of(denoiser__conv="pyg:SAGEConv").conv.layer, SAGEConv)


def test_layers_of_the_users_are_made_with_their_options():
    name = f"{__name__}:OwnConv"
    layer = block_of(denoiser__conv=name, denoiser__conv_options={"depth": 4}).conv
    assert isinstance(layer, OwnConv)
    assert layer.sizes == (8, N_GENES, 4)


def test_global_layers_by_name():
    assert block_of(denoiser__global_attention="none").global_attention is None
    latent = block_of(denoiser__global_attention="latent").global_attention
    assert isinstance(latent, LatentAttention)
    layer = block_of(denoiser__global_attention="pyg:PolynormerAttention").global_attention
    assert isinstance(layer, PyGAttention)
    assert isinstance(layer.attention, PolynormerAttention)
    assert layer.attention.heads == 2
    own = block_of(denoiser__global_attention=f"{__name__}:OwnAttention").global_attention
    assert isinstance(own, OwnAttention)
    assert own.channels == 8


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("conv", "gat", r"conv = 'gat': expected additive, frame_averaged, stflow, 'pyg:Name' or"),
        ("conv", "pyg:NoConv", "torch_geometric.nn has"),
        ("conv", "no_such_module:Layer", "cannot import 'no_such_module'"),
        ("conv", "torch_geometric.nn:GATv2Conv", r"need an adapter\. Fix: 'pyg:GATv2Conv'"),
        ("conv", "torch_geometric.nn.conv:SAGEConv", "Fix: 'pyg:SAGEConv'"),
        ("conv", "os:kill", "'os:kill': found <built-in function kill>, expected a subclass of"),
        ("conv", "collections:OrderedDict", "expected a subclass of torch.nn.Module"),
        ("conv", "pyg:knn_graph", "'torch_geometric.nn:knn_graph': found <function.* expected a"),
        ("conv", "pyg:conv", "expected a subclass of torch.nn.Module"),
        ("global_attention", "os:system", "expected a subclass of torch.nn.Module"),
        ("global_attention", "pyg:performer", "expected a subclass of torch.nn.Module"),
        ("global_attention", "performer", "expected latent, none, 'pyg:Name' or 'module:Name'"),
        ("global_attention", "pyg:NoAttention", "torch_geometric.nn.attention has"),
        (
            "global_attention",
            "torch_geometric.nn.attention:PerformerAttention",
            "denoiser.global_attention = .* Fix: 'pyg:PerformerAttention'",
        ),
    ],
)
def test_unknown_layers_and_bare_layers_of_pyg_are_refused(option, name, message):
    with pytest.raises(BadConfig, match=message):
        built(**{f"denoiser__{option}": name})


# graphs


def test_the_graph_is_the_one_that_the_layer_reads():
    settings = {"graph__n_neighbors": 5, "graph__slack": 0.3, "graph__backend": "scipy"}
    graph = build_graph(configured(**settings))
    assert isinstance(graph, SpatialGraph)
    assert (graph.n_neighbors, graph.slack, graph.backend) == (5, 0.3, "scipy")
    published = build_graph(configured(denoiser__conv="stflow", **settings))
    assert isinstance(published, STFlowGraph)
    assert (published.n_neighbors, published.backend) == (5, "scipy")
    assert isinstance(build_graph(configured("transformer")), Unchanged)


def test_the_context_is_that_of_the_configured_hops():
    context = build_context(configured(denoiser__context_hops=(2, 3)))
    assert isinstance(context, NeighbourhoodContext)
    assert context.hops == (2, 3)
    for config in (configured("transformer"), configured(denoiser__context_hops=())):
        assert isinstance(build_context(config), Unchanged)


@pytest.mark.parametrize("conv", ["additive", "frame_averaged", "stflow", "pyg:SAGEConv"])
@pytest.mark.parametrize("kind", ["two-stage", "graph"])
def test_what_is_built_fits_together(kind, conv):
    config, slide = configured(kind, denoiser__conv=conv), linear_slide("S", 16)
    inputs = prepared(slide, config, scaling_of([slide], config))
    model = new_network(config).eval().bind(inputs.data, inputs.graph)
    with torch.no_grad():
        y = model(torch.zeros(16, N_GENES), torch.tensor([0.5]))
    assert y.shape == (16, N_GENES)
    assert y.isfinite().all()


# flows


def test_priors_and_samplers_by_name():
    kinds = {"zinb": priors.ZINBPrior, "gaussian": priors.GaussianPrior, "zero": priors.ZeroPrior}
    for name, kind in kinds.items():
        assert build_prior(configured(flow__prior=name).flow) == kind()
    for name in samplers.__all__:
        assert build_sampler(configured(flow__sampler=name).flow) is getattr(samplers, name)


# devices


def test_devices_by_name(monkeypatch):
    assert pick_device("cpu") == torch.device("cpu")
    for present, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", functools.partial(bool, present))
        assert pick_device("auto") == torch.device(expected)


def test_each_rank_has_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert pick_device("auto") == torch.device("cuda")
    place = {"RANK": "6", "WORLD_SIZE": "8", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in {**place, "LOCAL_RANK": "6"}.items():
        monkeypatch.setenv(name, value)
    assert pick_device("auto") == torch.device("cuda:2")
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("auto") == torch.device("cuda")


NO_DEVICES = [
    "abacus",
    "meta",
    "hpu",
    "xla",
    "opengl",
    "vulkan",
    "cuda:-1",
    "cuda:",
    "",
    "x" * 9999,
]


@pytest.mark.parametrize("name", NO_DEVICES)
def test_only_devices_that_compute_are_accepted(name):
    with pytest.raises(BadConfig, match=r"^device '[^\n]*: expected auto, cpu, cuda, ") as caught:
        pick_device(name)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["cuda:999", "xpu:9", "mps"])
def test_a_device_that_this_machine_lacks_is_one_line(name):
    with pytest.raises(BadConfig, match=rf"^device '{name}': [^\n]+$"):
        pick_device(name)
