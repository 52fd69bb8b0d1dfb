"""The default layer's GPU kernels against PyG's terms: on a GPU, and under Triton's interpreter."""

import copy
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import F as EMBEDDING
from networks import G as GENES
from networks import graph, network
from slides import array, change, in_single, noise, slide
from torch import Tensor
from torch_geometric.data import Data
from triton_runs import INTERPRETED, TRITON, on_cpu, on_gpu

from stflow_graph.graph import SpatialGraph, TiledGraph, kernels
from stflow_graph.graph.edge_orders import EdgeOrders
from stflow_graph.graph.neighbor_sum import sorted_edges
from stflow_graph.graph.whole import Edges, WholeGraph
from stflow_graph.nn.conv import AdditiveConv, FrameAveragedConv, fused, fused_attention
from stflow_graph.nn.edge_encoder import EncodedEdges

devices = pytest.mark.parametrize("device", [on_cpu, on_gpu])
gpu_alone = pytest.mark.parametrize("device", [on_gpu])
KERNELS = ["forward", "backward_by_receiver", "backward_by_sender"]
# C, G, H, D_e
SHAPES = {"usual": (128, 7, 4, 32), "odd": (12, 3, 3, 9), "one head": (20, 2, 1, 5)}


@pytest.fixture(autouse=True)
def _full_precision():
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(precision)


def case(shape: str, n: int = 9) -> tuple[AdditiveConv, Data, Edges]:
    """Return a layer, and a slide one of whose spots has more neighbours than a tile has rows.

    Spots 0 and 1 receive nothing, spot 2 sends nothing, the last has neither.
    """
    channels, genes, heads, edge_channels = SHAPES[shape]
    torch.manual_seed(0)
    layer = AdditiveConv(channels, genes, heads, edge_channels)
    pairs = [(j % 2, 3) for j in range(35)] + [(3, 2), (4, 2), (5, 4), (3, 5), (6, 6), (0, 7)]
    index = torch.tensor(sorted(pairs, key=lambda pair: pair[1])).T.contiguous()
    n_edges = len(pairs)
    weight = torch.rand(n_edges, generator=torch.Generator().manual_seed(1))
    weight[:2] = torch.tensor([1.0, 1e-6])
    edges = Edges(sorted_edges(index, n), noise(n_edges, 6, seed=2), weight)
    return layer, slide(n, channels, genes), edges


def passes(layer: AdditiveConv, data: Data, edges: Edges, mode: str) -> list[Tensor]:
    """Return the update and the gradients of everything that the layer takes or learns."""
    dtype, device = layer.score.att.dtype, layer.score.att.device
    inputs = [data.x, data.y, edges.edge_attr, edges.edge_weight]
    h, y, attr, weight = (
        None if x is None else x.to(device, dtype).requires_grad_() for x in inputs
    )
    index = sorted_edges(edges.edge_index.as_tensor().to(device), len(data.x))
    with kernels.using(mode):
        out = layer(h, y, index, attr, weight)
        probe = noise(*out.shape, seed=3).to(out)
        learned = [x for x in (h, y, attr, weight, *layer.parameters()) if x is not None]
        gradients = torch.autograd.grad((out * probe).sum(), learned)
    return [part.detach().cpu() for part in (out, *gradients)]


def assert_near(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max().clamp(min=1e-3)


@pytest.fixture
def launched(monkeypatch) -> list[str]:
    """Return the list of the kernels that have run, which grows."""
    names, launch = [], fused_attention._launch

    def launch_and_note(kernel, *arguments, **widths):
        launch(kernel, *arguments, **widths)
        names.append(kernel)

    monkeypatch.setattr(fused_attention, "_launch", launch_and_note)
    return names


@devices
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("weighted", "precision"), [(True, "tf32x3"), (False, "ieee")])
def test_values_and_gradients_equal_the_reference_in_float64(
    device, shape, weighted, precision, monkeypatch, launched
):
    monkeypatch.setattr(fused, "precision", precision)
    layer, data, edges = case(shape)
    if not weighted:
        edges = edges._replace(edge_weight=None)
    expected = passes(copy.deepcopy(layer).double(), data, edges, "off")
    actual = passes(layer.to(device), data, edges, "on")
    assert launched[-3:] == KERNELS
    assert_near(actual, expected, 2e-5)


@devices
def test_bfloat16(device, launched):
    layer, data, edges = case("odd")
    low = copy.deepcopy(layer).to(device, torch.bfloat16)
    expected = passes(low.double(), data, edges, "off")
    actual = passes(low.bfloat16(), data, edges, "on")
    assert launched[-3:] == KERNELS
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == torch.bfloat16
        assert change(one.double(), other) < 0.1


@devices
@pytest.mark.parametrize("allowed", ["highest", "high"])
def test_products_are_as_exact_as_all_others(device, allowed, monkeypatch):
    layer, data, edges = case("usual")
    asked, launch = [], fused_attention._launch

    def note(*arguments, **widths):
        asked.append(widths["PRECISION"])
        launch(*arguments, **widths)

    monkeypatch.setattr(fused_attention, "_launch", note)
    expected = passes(copy.deepcopy(layer).double(), data, edges, "off")
    torch.set_float32_matmul_precision(allowed)
    actual = passes(layer.to(device), data, edges, "on")
    assert set(asked) == {"tf32x3" if allowed == "highest" else "tf32"}
    assert_near(actual, expected, 2e-5 if allowed == "highest" else 2e-2)


@devices
def test_edges_encoded_beforehand_and_spots_outside(device, launched):
    """A tile's halo receives nothing; without gradients nothing else is computed."""
    layer, data, edges = case("usual", n=12)
    layer, data = layer.to(device), data.to(device)
    index = sorted_edges(edges.edge_index.as_tensor().to(device), 12)
    weight = edges.edge_weight.to(device)
    with torch.no_grad():
        f = EncodedEdges(layer.edge_encoder(edges.edge_attr.to(device)))
        one, other = (_with(mode, layer, data, index, f, weight) for mode in ("on", "off"))
    assert change(one, other) < 1e-5
    assert set(launched) == {"forward"}
    assert "reverse" not in vars(EdgeOrders.of(index))


def _with(mode: str, layer, data, *edges) -> Tensor:
    with kernels.using(mode):
        return layer(data.x, data.y, *edges)


@gpu_alone
def test_results_are_the_same_every_time(device):
    data = SpatialGraph(8)(slide(3000, 64, 5))
    torch.manual_seed(0)
    layer = AdditiveConv(64, 5).to(device)
    edges = WholeGraph.of(data).edges
    # the update, and the gradients of what the layer takes: cuBLAS sums those of its weights
    one, other = (passes(layer, data, edges, "auto")[:5] for _ in range(2))
    assert all(map(torch.equal, one, other))


@gpu_alone
def test_a_large_slide(device, launched):
    """Every program of the backward pass has several senders."""
    data = SpatialGraph(8)(slide(5000, 128, 50))
    torch.manual_seed(0)
    layer = AdditiveConv(128, 50)
    edges = WholeGraph.of(data).edges
    expected = passes(copy.deepcopy(layer).double(), data, edges, "off")
    actual = passes(layer.to(device), data, edges, "auto")
    assert launched[-3:] == KERNELS
    assert_near(actual, expected, 1e-4)
    assert_near(passes(layer, data, edges, "off"), expected, 1e-4)


@gpu_alone
@pytest.mark.parametrize("kind", ["every step", "two stages"])
def test_a_whole_network(device, kind, launched):
    data = in_single(graph(slide(array("isolated"), EMBEDDING, GENES)))
    model, t = network(kind).float().to(device), torch.full((1,), 0.3, device=device)
    y_t, data = noise(len(data.x), GENES, seed=5).to(device), data.to(device)
    found = []
    for mode in ("auto", "off"):
        with kernels.using(mode):
            out = model(y_t, t, data)
            learned = [p for p in model.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(out.square().sum(), learned, allow_unused=True)
            with torch.no_grad():
                tiled = model.bind(data, TiledGraph.of(data, 11))(y_t, t)
        found.append([out, tiled, *(g for g in gradients if g is not None)])
    assert set(launched) == set(KERNELS)
    scale = max(g.abs().max() for g in found[1][2:])
    for one, other in zip(found[0][:2], found[1][:2], strict=True):
        assert change(one, other) < 2e-5
    for one, other in zip(found[0][2:], found[1][2:], strict=True):
        assert (one - other).abs().max() <= 1e-4 * scale


def test_the_reverse_order_lists_the_edges_of_each_sender():
    _, _, edges = case("odd")
    orders = EdgeOrders.of(edges.edge_index)
    assert EdgeOrders.of(edges.edge_index) is orders
    sender, receiver = edges.edge_index.as_tensor()
    starts, order, receivers = orders.reverse
    for j in range(9):
        part = slice(int(starts[j]), int(starts[j + 1]))
        assert order[part].tolist() == (sender == j).nonzero().flatten().tolist()
        assert torch.equal(receivers[part], receiver[order[part]].int())
    assert all(x.dtype == torch.int32 for x in (*orders.forward, *orders.reverse))


@pytest.mark.parametrize("why", ["mode", "device", "unsorted", "double", "dropout", "hook", "kind"])
def test_where_the_kernels_do_not_apply(why, monkeypatch):
    monkeypatch.setattr(kernels, "is_available", lambda: True)
    monkeypatch.setattr(fused, "_works", lambda *_: pytest.fail("the kernels were asked for"))
    layer, data, edges = case("odd")
    h, y, attr, index = data.x, data.y, edges.edge_attr, edges.edge_index
    if why == "unsorted":
        index = index.as_tensor()
    if why == "double":
        layer, h, y, attr = layer.double(), h.double(), y.double(), attr.double()
    if why == "dropout":
        layer.dropout = 0.5
    if why == "hook":
        layer.register_message_and_aggregate_forward_hook(lambda *_: None)
    if why == "kind":
        layer = FrameAveragedConv(12, 3, 3, 9)
    with kernels.using({"mode": "off", "device": "auto"}.get(why, "on")):
        assert layer(h, y, index, attr).shape == h.shape


def test_the_reference_runs_where_kernels_do_not_compile(monkeypatch, caplog):
    monkeypatch.setattr(kernels, "is_available", lambda: True)
    monkeypatch.setattr(fused, "launch_forward", lambda *_: 1 / 0)
    fused._works.cache_clear()
    layer, data, edges = case("odd")
    with caplog.at_level(logging.WARNING, fused.__name__):
        one, again, other = (_with(mode, layer, data, *edges) for mode in ("on", "on", "off"))
    fused._works.cache_clear()
    assert torch.equal(one, other)
    assert torch.equal(again, other)
    assert len(caplog.records) == 1


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="unknown mode 'fast'; one of auto, off, on"):
        kernels.using("fast").__enter__()


@pytest.mark.skipif(not TRITON or INTERPRETED, reason="Triton is not installed, or interprets")
def test_under_the_interpreter():
    """Run in a process of its own: Triton reads the variable when it is imported."""
    root = Path(__file__).parents[3]
    files = [__file__, str(root / "tests" / "graph" / "test_neighbor_sum.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu", *files]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
