"""Laws that every layer in ``nn.conv.__all__`` obeys."""

from __future__ import annotations

import math

import pytest
import torch
from torch_geometric.data import Batch, Data

from stflow_graph.graph import SpatialGraph
from stflow_graph.nn import conv as convs

CHANNELS, GENES = 16, 5


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


def variants() -> list:
    kinds = []
    for name in convs.__all__:
        for attention in ("additive", "dot"):
            kinds.append(pytest.param((getattr(convs, name), attention), id=f"{name}-{attention}"))
    return kinds


@pytest.fixture(params=variants())
def layer(request):
    kind, attention = request.param
    torch.manual_seed(0)
    return kind(CHANNELS, GENES, heads=4, edge_channels=8, attention=attention).eval()


def run(layer, data: Data) -> torch.Tensor:
    return layer(data.x, data.y, data.edge_index, data.edge_attr, data.edge_weight)


def test_permuting_spots_permutes_the_output(layer):
    data, order = spots(40, 0), torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = Data(x=data.x[order], y=data.y[order], pos=data.pos[order])
    out, out_shuffled = (run(layer, SpatialGraph(6)(d)) for d in (data, shuffled))
    assert torch.allclose(out[order], out_shuffled, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: spots(40, 0), lattice], ids=["random", "lattice"])
def test_motions_leave_the_output_unchanged(layer, make):
    data, moved = make(), make()
    angle = 0.8
    rotation = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [-math.sin(angle), -math.cos(angle)]]
    ).double()
    moved.pos = moved.pos @ rotation.T * 31 + 500
    out, out_moved = (run(layer, SpatialGraph(8)(d)) for d in (data, moved))
    assert (out - out_moved).norm() <= 1e-4 * out.norm()


@pytest.mark.parametrize("make", [lambda: spots(40, 0), lattice], ids=["random", "lattice"])
def test_tiny_moves_change_little(layer, make):
    data, moved = SpatialGraph(8)(make()), make()
    noise = torch.randn(moved.pos.shape, generator=torch.Generator().manual_seed(5)).double()
    pitch = 100 / math.sqrt(40) if data.pos.max() > 20 else 1.0
    moved.pos = moved.pos + 1e-6 * pitch * noise
    out, out_moved = run(layer, data), run(layer, SpatialGraph(8)(moved))
    assert (out - out_moved).norm() <= 1e-3 * out.norm()


def test_a_slide_in_a_batch_is_as_it_is_alone(layer):
    slides = [SpatialGraph(5)(spots(n, n)) for n in (30, 12)]
    together = run(layer, Batch.from_data_list(slides))
    alone = torch.cat([run(layer, slide) for slide in slides])
    assert torch.allclose(together, alone, atol=1e-5)


def test_isolated_spots_and_empty_graphs_give_finite_output(layer):
    data = spots(6, 0)
    index = torch.tensor([[1, 2], [0, 0]])  # spots 1-5 have no neighbours
    out = layer(data.x, data.y, index, torch.rand(2, 6))
    assert torch.isfinite(out).all()
    assert torch.allclose(out[1], out[2])  # without neighbours the state plays no part
    none = layer(data.x, data.y, torch.empty(2, 0).long(), torch.rand(0, 6))
    assert torch.allclose(none, out[1].expand(6, -1))


def test_gradients_reach_every_parameter_and_input(layer):
    data = SpatialGraph(5)(spots(30, 0))
    data.x.requires_grad_()
    data.y.requires_grad_()
    run(layer, data).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    # softmax ignores what all neighbours share, so only these parts may be without effect
    silent = [n for n, p in layer.named_parameters() if p.grad.abs().max() == 0]
    assert silent == []
    assert data.x.grad.abs().min(dim=1).values.max() > 0
    assert data.y.grad.abs().sum() > 0


def test_an_edge_of_weight_near_zero_is_no_edge(layer):
    data = SpatialGraph(5)(spots(30, 0))
    keep = torch.arange(data.num_edges) % 5 != 0
    weight = torch.where(keep, 1.0, 1e-12)
    faded = layer(data.x, data.y, data.edge_index, data.edge_attr, weight)
    cut = layer(data.x, data.y, data.edge_index[:, keep], data.edge_attr[keep])
    assert torch.allclose(faded, cut, atol=1e-5)


def test_signs_of_the_axes_play_no_part(layer):
    data = SpatialGraph(5)(spots(30, 0))
    flipped = data.edge_attr.clone()
    signs = torch.tensor([[1.0, -1.0]]).repeat(30, 1)[data.edge_index[1]]
    flipped[:, :2] *= signs
    out = layer(data.x, data.y, data.edge_index, flipped, data.edge_weight)
    assert torch.allclose(out, run(layer, data), atol=1e-6)


def test_reset_parameters_draws_anew_and_repr_names_the_layer(layer):
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    layer.reset_parameters()
    assert any(not torch.equal(before[k], v) for k, v in layer.state_dict().items())
    assert type(layer).__name__ in repr(layer)
    assert str(GENES) in repr(layer)


@pytest.mark.parametrize("wrong", ["x", "y", "edge_attr", "edge_index"])
def test_wrong_shapes_are_printed(layer, wrong):
    data = SpatialGraph(5)(spots(30, 0))
    inputs = {key: data[key] for key in ("x", "y", "edge_index", "edge_attr")}
    inputs[wrong] = inputs[wrong][..., :-1]
    with pytest.raises(ValueError, match=rf"{wrong} must be .*got \[{inputs[wrong].size(0)}, "):
        layer(**inputs)
