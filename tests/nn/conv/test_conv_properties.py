"""Laws that every layer in ``nn.conv.__all__`` obeys."""

from __future__ import annotations

import math

import pytest
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GATv2Conv, GENConv, GraphConv, SAGEConv, TransformerConv
from torch_geometric.transforms import BaseTransform

from stflow_graph.graph import SpatialGraph, STFlowGraph
from stflow_graph.graph.stflow import stflow_edge_geometry
from stflow_graph.nn import conv as convs
from stflow_graph.nn.conv import AdaptedConv, FrameAveragedConv

CHANNELS, GENES, K = 16, 5, 6


def spots(n: int, seed: int) -> Data:
    generator = torch.Generator().manual_seed(seed)
    return Data(
        x=torch.randn(n, CHANNELS, generator=generator),
        y=torch.randn(n, GENES, generator=generator),
        pos=torch.rand(n, 2, generator=generator).double() * 100,
    )


def lattice(n: int = 8) -> Data:
    data = spots(n * n, 3)
    i, j = (g.flatten().double() for g in torch.meshgrid(*[torch.arange(n)] * 2, indexing="ij"))
    data.pos = torch.stack([i + 0.5 * (j % 2), j * math.sqrt(3) / 2], 1)
    return data


def geometry(layer) -> BaseTransform:
    """Return the transform that makes what the layer reads."""
    published = getattr(layer, "attention", None) == "stflow"
    return STFlowGraph(K) if published else SpatialGraph(K)


LAYERS = {
    "FrameAveragedConv-additive": lambda: FrameAveragedConv(CHANNELS, GENES, 4, 8),
    "FrameAveragedConv-dot": lambda: FrameAveragedConv(CHANNELS, GENES, 4, 8, "dot"),
    "FrameAveragedConv-signed": lambda: FrameAveragedConv(CHANNELS, GENES, 4, 8, signed=True),
    "FrameAveragedConv-three-body": lambda: FrameAveragedConv(
        CHANNELS, GENES, 4, 8, three_body=True
    ),
    "FrameAveragedConv-stflow": lambda: FrameAveragedConv(CHANNELS, GENES, 4, 8, "stflow"),
    "AdaptedConv-GATv2Conv": lambda: AdaptedConv(
        GATv2Conv, CHANNELS, GENES, 8, {"heads": 4, "add_self_loops": False}
    ),
    "AdaptedConv-TransformerConv": lambda: AdaptedConv(
        TransformerConv, CHANNELS, GENES, 8, {"heads": 4}
    ),
    "AdaptedConv-GENConv": lambda: AdaptedConv(GENConv, CHANNELS, GENES, 8),
    "AdaptedConv-GraphConv": lambda: AdaptedConv(GraphConv, CHANNELS, GENES, 8),
    "AdaptedConv-SAGEConv": lambda: AdaptedConv(SAGEConv, CHANNELS, GENES, 8),
}


def test_every_layer_is_here():
    assert {name.split("-")[0] for name in LAYERS} == set(convs.__all__)


@pytest.fixture(params=LAYERS)
def layer(request):
    torch.manual_seed(0)
    return LAYERS[request.param]().eval()


@pytest.fixture(params=[name for name in LAYERS if name.startswith("FrameAveragedConv")])
def ours(request):
    """A layer of ours: edges fade with their weight, and shapes are checked."""
    torch.manual_seed(0)
    return LAYERS[request.param]().eval()


def run(layer, data: Data) -> torch.Tensor:
    return layer(data.x, data.y, data.edge_index, data.edge_attr, data.edge_weight)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


def test_permuting_spots_permutes_the_output(layer):
    data, order = spots(40, 0), torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = Data(x=data.x[order], y=data.y[order], pos=data.pos[order])
    out, out_shuffled = (run(layer, geometry(layer)(d)) for d in (data, shuffled))
    assert torch.allclose(out[order], out_shuffled, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: spots(40, 0), lattice], ids=["random", "lattice"])
def test_motions_leave_the_output_unchanged(layer, make):
    published = getattr(layer, "attention", None) == "stflow"
    if published and make is lattice:
        pytest.skip("published frames are arbitrary on lattices")
    data, moved = make(), make()
    angle = 0.8
    rotation = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [-math.sin(angle), -math.cos(angle)]]
    ).double()
    unit = 1.0 if published else 31.0  # published frames are in pixels
    moved.pos = moved.pos @ rotation.T * unit + 500
    assert close(*(run(layer, geometry(layer)(d)) for d in (moved, data)), 1e-4)


def test_published_frames_are_arbitrary_on_lattices():
    torch.manual_seed(0)
    layer = LAYERS["FrameAveragedConv-stflow"]().eval()
    data, moved = lattice(), lattice()
    rotation = torch.tensor([[math.cos(0.8), -math.sin(0.8)], [math.sin(0.8), math.cos(0.8)]])
    moved.pos = moved.pos @ rotation.double().T
    # the same edges, so that only the frames differ
    data = STFlowGraph(K)(data)
    moved.edge_index = data.edge_index
    moved.edge_attr = stflow_edge_geometry(moved.pos, data.edge_index).float()
    assert not close(run(layer, moved), run(layer, data), 1e-3)


@pytest.mark.parametrize("make", [lambda: spots(40, 0), lattice], ids=["random", "lattice"])
def test_tiny_moves_change_little(layer, make):
    if getattr(layer, "attention", None) == "stflow" and make is lattice:
        pytest.skip("published frames are arbitrary on lattices")
    data, moved = geometry(layer)(make()), make()
    noise = torch.randn(moved.pos.shape, generator=torch.Generator().manual_seed(5)).double()
    pitch = 100 / math.sqrt(40) if data.pos.max() > 20 else 1.0
    moved.pos = moved.pos + 1e-6 * pitch * noise
    assert close(run(layer, geometry(layer)(moved)), run(layer, data), 1e-3)


def test_a_slide_in_a_batch_is_as_it_is_alone(layer):
    slides = [geometry(layer)(spots(n, n)) for n in (30, 12)]
    together = run(layer, Batch.from_data_list(slides))
    alone = torch.cat([run(layer, slide) for slide in slides])
    assert torch.allclose(together, alone, atol=1e-5)


def test_isolated_spots_and_empty_graphs_give_finite_output(layer):
    data = spots(6, 0)
    index = torch.tensor([[1, 2], [0, 0]])  # spots 1-5 have no neighbours
    width = layer.edge_encoder.in_features if layer.edge_encoder is not None else 6
    out = layer(data.x, data.y, index, torch.rand(2, width), torch.ones(2))
    none = layer(data.x, data.y, torch.empty(2, 0).long(), torch.rand(0, width), torch.ones(0))
    assert torch.isfinite(out).all()
    assert torch.isfinite(none).all()
    assert torch.allclose(none[1:], out[1:])
    if isinstance(layer, FrameAveragedConv):  # without neighbours the state plays no part
        assert torch.allclose(out[1], out[2])


def test_gradients_reach_every_parameter_and_input(layer):
    data = geometry(layer)(spots(30, 0))
    data.x.requires_grad_()
    data.y.requires_grad_()
    probe = torch.randn(30, CHANNELS, generator=torch.Generator().manual_seed(2))
    (run(layer, data) * probe).sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    # one score for all neighbours: softmax ignores what they share
    silent = {n for n, p in layer.named_parameters() if not p.grad.abs().max() > 0}
    assert silent <= {"score.mlp.fc2.bias"}
    assert data.x.grad.abs().min(dim=1).values.max() > 0
    assert data.y.grad.abs().sum() > 0


def test_an_edge_of_weight_near_zero_is_no_edge(ours):
    data = geometry(ours)(spots(30, 0))
    keep = torch.arange(data.num_edges) % 5 != 0
    weight = torch.where(keep, 1.0, 1e-12)
    faded = ours(data.x, data.y, data.edge_index, data.edge_attr, weight)
    cut = ours(data.x, data.y, data.edge_index[:, keep], data.edge_attr[keep])
    assert torch.allclose(faded, cut, atol=1e-5)


def test_signs_of_the_axes_play_no_part(layer):
    data = geometry(layer)(spots(30, 0))
    flipped = data.edge_attr.clone()
    signs = torch.tensor([[1.0, -1.0]]).repeat(30, 1)[data.edge_index[1]]
    flipped[:, :2] *= signs
    out = layer(data.x, data.y, data.edge_index, flipped, data.edge_weight)
    assert torch.allclose(out, run(layer, data), atol=1e-6)


def test_reset_parameters_draws_anew_and_repr_names_the_layer(layer):
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    layer.reset_parameters()
    changed = {k for k, v in layer.state_dict().items() if not torch.equal(before[k], v)}
    assert {k for k, v in before.items() if v.dim() > 1} <= changed | {"edge_encoder.signs"}
    assert type(layer).__name__ in repr(layer)
    assert str(CHANNELS) in repr(layer)


@pytest.mark.parametrize("wrong", ["x", "y", "edge_attr", "edge_index", "edge_weight"])
def test_wrong_shapes_are_printed(ours, wrong):
    data = geometry(ours)(spots(30, 0))
    data.edge_weight = torch.ones(data.num_edges)
    inputs = {key: data[key] for key in ("x", "y", "edge_index", "edge_attr", "edge_weight")}
    inputs[wrong] = inputs[wrong][..., :-1]
    found = ", ".join(map(str, inputs[wrong].shape))
    with pytest.raises(ValueError, match=rf"{wrong} must be .*got \[{found}\]"):
        ours(**inputs)


@pytest.mark.parametrize("spot", [-1, 30])
def test_edges_out_of_range_are_refused(ours, spot):
    data = geometry(ours)(spots(30, 0))
    data.edge_index[0, 0] = spot
    with pytest.raises((IndexError, RuntimeError, ValueError), match=r"\[0, 29\]|edge_index"):
        run(ours, data)


def test_options_that_a_layer_lacks_are_refused():
    with pytest.raises(ValueError, match=r"GATv2Conv\(16, 16, .*heeds"):
        AdaptedConv(GATv2Conv, CHANNELS, GENES, 8, {"heeds": 4})
