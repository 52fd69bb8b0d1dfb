"""Laws that every layer in ``nn.conv.__all__`` obeys."""

from functools import partial

import pytest
import torch
from slides import array, change, motion, noise, reordered, scattered, seeded, slide
from torch import nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GATv2Conv, GENConv, GraphConv, SAGEConv, TransformerConv

from stflow_graph.graph import SimilarityEdges, SpatialGraph, STFlowGraph
from stflow_graph.nn import conv as convs
from stflow_graph.nn.conv import AdaptedConv, AdditiveConv, STFlowConv
from stflow_graph.nn.conv.edge_attention import EdgeAttentionConv

C, G, K = 16, 5, 6
# layers of PyG, which AdaptedConv is tested around
ADAPTED = {
    GATv2Conv: {"heads": 4, "add_self_loops": False},
    TransformerConv: {"heads": 4},
    GENConv: {},
    GraphConv: {},
    SAGEConv: {},
}
LAYERS = {
    name: partial(getattr(convs, name), C, G) for name in convs.__all__ if name != "AdaptedConv"
}
LAYERS["AdditiveConv, typed edges"] = partial(AdditiveConv, C, G, edge_features=7)
for pyg, options in ADAPTED.items():
    LAYERS[f"AdaptedConv, {pyg.__name__}"] = partial(AdaptedConv, pyg, C, G, 8, options)
OURS = [name for name, make in LAYERS.items() if isinstance(make(), EdgeAttentionConv)]


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return LAYERS[name]().eval()


@pytest.fixture(params=LAYERS)
def layer(request):
    return make(request.param)


@pytest.fixture(params=OURS)
def ours(request):
    """A layer of ours: edges fade with their weight, and shapes are checked."""
    return make(request.param)


def spots(n: int | str = 40) -> Data:
    """Return n spots in pixels, or an array."""
    return slide(array(n) if isinstance(n, str) else scattered(n) * 100, C, G)


def graph(layer, data: Data) -> Data:
    """Return the slide with what the layer reads of it."""
    if isinstance(layer, STFlowConv):
        return STFlowGraph(K)(data)
    data = SpatialGraph(K)(data)
    typed = isinstance(layer, AdditiveConv) and layer.edge_encoder.in_features == 7
    return SimilarityEdges(3)(data) if typed else data


def run(layer, data: Data) -> torch.Tensor:
    return layer(data.x, data.y, data.edge_index, data.edge_attr, data.edge_weight)


def test_permuting_spots_permutes_the_output(layer):
    data, order = spots(), torch.randperm(40, generator=seeded(1))
    out, shuffled = (run(layer, graph(layer, d)) for d in (data, reordered(data, order)))
    assert torch.allclose(out[order], shuffled, atol=1e-5)


@pytest.mark.parametrize("kind", ["scattered", "hexagonal"])
def test_motions_and_units_leave_the_output_unchanged_and_tiny_moves_change_little(layer, kind):
    published = isinstance(layer, STFlowConv)
    if published and kind == "hexagonal":
        pytest.skip("published frames are arbitrary on lattices")
    data, moved, shaken = (spots(40 if kind == "scattered" else kind) for _ in range(3))
    unit = 1.0 if published else 31.0  # published frames are in pixels
    moved.pos = moved.pos @ motion(0.8, reflect=True).T * unit + 500
    pitch = 100 / 40**0.5 if kind == "scattered" else 1.0
    shaken.pos = shaken.pos + 1e-6 * pitch * noise(*shaken.pos.shape, seed=5)
    out, out_moved, out_shaken = (run(layer, graph(layer, d)) for d in (data, moved, shaken))
    assert change(out_moved, out) <= 1e-4
    assert change(out_shaken, out) <= 1e-3


def test_a_slide_in_a_batch_is_as_it_is_alone(layer):
    slides = [graph(layer, spots(n)) for n in (30, 12)]
    together = run(layer, Batch.from_data_list(slides))
    alone = torch.cat([run(layer, data) for data in slides])
    assert torch.allclose(together, alone, atol=1e-5)


def test_isolated_spots_and_empty_graphs_give_finite_output(layer):
    data, width = spots(6), graph(layer, spots(6)).edge_attr.size(1)
    index = torch.tensor([[1, 2], [0, 0]])  # spots 1-5 have no neighbours
    out = layer(data.x, data.y, index, torch.rand(2, width), torch.ones(2))
    none = layer(data.x, data.y, torch.empty(2, 0).long(), torch.rand(0, width), torch.ones(0))
    assert torch.isfinite(out).all()
    assert torch.isfinite(none).all()
    assert torch.allclose(none[1:], out[1:])
    if isinstance(layer, EdgeAttentionConv):  # the update is of the neighbours alone
        assert torch.allclose(out[1], out[2])


def test_gradients_reach_every_parameter_and_input(layer):
    data = graph(layer, spots(30))
    data.x.requires_grad_()
    data.y.requires_grad_()
    (run(layer, data) * noise(30, C, seed=2)).sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    # one score for all neighbours: softmax ignores what they share
    silent = {n for n, p in layer.named_parameters() if not p.grad.abs().max() > 0}
    assert silent <= {"score.mlp.fc2.bias"}
    assert data.x.grad.abs().min(dim=1).values.max() > 0
    assert data.y.grad.abs().sum() > 0


def test_the_signs_of_the_axes_are_irrelevant(layer):
    data = graph(layer, spots(30))
    out = run(layer, data)
    data.edge_attr[:, :2] *= torch.tensor([1.0, -1.0])
    assert torch.allclose(run(layer, data), out, atol=1e-6)


def test_reset_parameters_draws_anew_and_repr_names_the_layer(layer):
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    layer.reset_parameters()
    changed = {k for k, v in layer.state_dict().items() if not torch.equal(before[k], v)}
    assert {k for k, v in before.items() if v.dim() > 1} <= changed
    assert type(layer).__name__ in repr(layer)
    assert str(C) in repr(layer)


def test_an_edge_of_weight_near_zero_is_no_edge(ours):
    data = graph(ours, spots(30))
    keep = torch.arange(data.num_edges) % 5 != 0
    weight = torch.where(keep, 1.0, 1e-12)
    faded = ours(data.x, data.y, data.edge_index, data.edge_attr, weight)
    cut = ours(data.x, data.y, data.edge_index[:, keep], data.edge_attr[keep])
    assert torch.allclose(faded, cut, atol=1e-5)


@pytest.mark.parametrize("wrong", ["x", "y", "edge_attr", "edge_index", "edge_weight"])
def test_wrong_shapes_are_printed(ours, wrong):
    data = graph(ours, spots(30))
    data.edge_weight = torch.ones(data.num_edges)
    inputs = {key: data[key] for key in ("x", "y", "edge_index", "edge_attr", "edge_weight")}
    inputs[wrong] = inputs[wrong][..., :-1]
    shape = ", ".join(map(str, inputs[wrong].shape))
    name = {"x": "h"}.get(wrong, wrong)
    with pytest.raises(ValueError, match=rf"{name} must be .*got \[{shape}\]"):
        ours(*inputs.values())


@pytest.mark.parametrize("spot", [-1, 30])
def test_edges_out_of_range_are_refused(ours, spot):
    data = graph(ours, spots(30))
    data.edge_index[0, 0] = spot
    with pytest.raises((IndexError, RuntimeError, ValueError), match=r"\[0, 29\]|edge_index"):
        run(ours, data)


def test_heads_that_do_not_divide_and_unknown_options_are_refused():
    for name in OURS:
        with pytest.raises(ValueError, match="heads must divide channels and edge_channels"):
            LAYERS[name].func(15, G, heads=4)
        with pytest.raises(ValueError, match="got 4, 16, 6"):
            LAYERS[name].func(16, G, heads=4, edge_channels=6)
    with pytest.raises(ValueError, match=r"GATv2Conv\(16, 16, .*heeds"):
        AdaptedConv(GATv2Conv, C, G, 8, {"heeds": 4})
