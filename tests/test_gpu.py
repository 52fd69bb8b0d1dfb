"""A GPU computes what the CPU does: 1e-4 in float32."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from linear import CHANNELS as WIDTH
from linear import checkpoint_of, configured, field_of, linear_slide, new_network, scaling_of
from networks import LAYERS, NETWORKS, F, G, graph, network
from slides import array, change, in_single, noise, scattered, slide
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn.attention import PerformerAttention, PolynormerAttention
from toy import Cohort

from stflow_graph.config import load_config
from stflow_graph.data.observed import Observed
from stflow_graph.flow.field import SlideNoise
from stflow_graph.flow.noise import spot_keys
from stflow_graph.graph import SimilarityEdges, SpatialGraph, STFlowGraph, TiledGraph, WholeGraph
from stflow_graph.inference.inputs import slide_data, slide_inputs
from stflow_graph.inference.predictor import Predictor
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.io.predictions import read_prediction
from stflow_graph.models.build import build_context
from stflow_graph.nn.global_attention import LatentAttention, PyGAttention
from stflow_graph.nn.stflow.denoiser import TransformerDenoiser
from stflow_graph.stages.sample import sample
from stflow_graph.stages.train import train
from stflow_graph.training.loop import Fitted, fit

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
TOLERANCE = 1e-4
ARRAYS = ("jittered", "duplicates", "isolated")  # where no frame is arbitrary


@pytest.fixture(autouse=True)
def _computes_in_full_precision_on_the_gpu() -> Iterator[None]:
    """Turn TF32 off, and see to it that a test has used the GPU."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    before = allocations()
    yield
    torch.set_float32_matmul_precision(precision)
    assert allocations() > before


def allocations() -> int:
    """Return the number of allocations on the GPU so far."""
    return torch.cuda.memory_stats(DEVICE).get("allocation.all.allocated", 0)


def there(value: Any) -> Any:
    """Return a network or data on the GPU; the original stays."""
    return copy.deepcopy(value).to(DEVICE)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Compare a result of the GPU with that of the CPU, which must not be a constant."""
    assert actual.device.type == DEVICE
    assert_near(actual.cpu().numpy(), expected.numpy())


def assert_near(
    actual: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE, unit: float = 1.0
) -> None:
    """Compare values that were computed from numbers of about ``unit``."""
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * unit)


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_the_graph_of_a_slide(kind, backend):
    data = slide(array(kind), F)
    both = data, there(data)
    here, far = (SimilarityEdges(3)(SpatialGraph(6, backend=backend)(each)) for each in both)
    assert torch.equal(far.edge_index.cpu(), here.edge_index)
    assert_same(far.edge_attr, here.edge_attr)
    assert_same(far.edge_weight, here.edge_weight)


def test_the_published_graph_up_to_the_signs_of_its_axes():
    data = slide(array("jittered"), F)
    here, far = (STFlowGraph(6)(each) for each in (data, there(data)))
    assert torch.equal(far.edge_index.cpu(), here.edge_index)
    assert_same(far.edge_attr.square(), here.edge_attr.square())


def test_the_published_graph_of_a_large_slide():
    """CuSOLVER refuses to decompose so many matrices at once."""
    data = slide(10_000 * scattered(40_000), 1)
    here, far = (STFlowGraph(6)(each) for each in (data, there(data)))
    assert_same(far.edge_attr.square(), here.edge_attr.square())


def test_tiles():
    data = graph(slide(array("jittered"), F))
    here, far = (TiledGraph.of(each, 11) for each in (data, there(data)))
    for one, other in zip(here.tiles, far.tiles, strict=True):
        assert torch.equal(other.nodes.cpu(), one.nodes)
        assert torch.equal(
            other.edges.edge_index.as_tensor().cpu(), one.edges.edge_index.as_tensor()
        )
    x = noise(len(data.x), 4).double()
    assert_same(far.average(there(x)), here.average(x))


def _case(layers: str) -> tuple[Tensor, Tensor, Data]:
    """Return y_t, t and a slide for networks of these layers, in float32."""
    data = in_single(graph(slide(array("jittered"), F, G), layers))
    return noise(len(data.x), G, seed=5), torch.full((1,), 0.3), data


@pytest.mark.parametrize(("kind", "layers"), NETWORKS)
@torch.no_grad()
def test_every_network_whole_and_by_tiles(kind, layers):
    (y_t, t, data), model = _case(layers), network(kind, layers).float()
    expected, far, model = model(y_t, t, data), there(data), there(model)
    y_t, t = there(y_t), there(t)
    assert_same(model(y_t, t, far), expected)
    assert_same(model.bind(far)(y_t, t), expected)
    assert_same(model.bind(far, TiledGraph.of(far, 11))(y_t, t), expected)


@pytest.mark.parametrize("own_graph", [True, False])
@torch.no_grad()
def test_the_transformer(own_graph):
    y_t, t, data = _case("published")
    if own_graph:
        data = Data(x=data.x, pos=data.pos)
    torch.manual_seed(0)
    model = TransformerDenoiser(F, G, hidden_channels=16, edge_channels=8, n_layers=2).eval()
    expected = model(y_t, t, data)
    assert_same(there(model)(there(y_t), there(t), there(data)), expected)


@pytest.mark.parametrize(
    "make",
    [
        LatentAttention,
        partial(PyGAttention, PerformerAttention),
        partial(PyGAttention, PolynormerAttention),
    ],
)
@torch.no_grad()
def test_global_attention_within_two_slides(make):
    torch.manual_seed(0)
    layer = make(16).eval()
    x, batch = noise(50, 16), torch.arange(50).ge(20).long()
    assert_same(there(layer)(there(x), there(batch), 2), layer(x, batch, 2))


def _gradients(model: nn.Module, y_t: Tensor, t: Tensor, data: Data) -> dict[str, Tensor]:
    (model(y_t, t, data) - data.y).square().mean().backward()
    return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("sorted_edges", [True, False])
@pytest.mark.parametrize("layers", LAYERS)
def test_gradients(layers, sorted_edges):
    y_t, t, data = _case(layers)
    slides = [data, data.clone()]
    if not sorted_edges:
        order = torch.randperm(data.edge_index.size(1), generator=torch.Generator().manual_seed(0))
        for each in slides:
            for key in ("edge_index", "edge_attr", "edge_weight"):
                if key in each:
                    each[key] = each[key][..., order] if key == "edge_index" else each[key][order]
    batch = Batch.from_data_list(slides)
    y_t, t = torch.cat([y_t, -y_t]), torch.tensor([0.3, 0.8])
    model = network("every step", layers).float()
    far = there(model)
    expected = _gradients(model, y_t, t, batch)
    actual = _gradients(far, there(y_t), there(t), there(batch))
    assert actual.keys() == expected.keys()
    scale = max(value.norm() for value in expected.values())
    for name, value in expected.items():
        assert actual[name].device.type == DEVICE
        difference = (actual[name].cpu() - value).norm()
        assert difference <= TOLERANCE * max(value.norm(), 0.01 * scale), name


def _fitted(
    kind: str, device: str, folder: Path, epochs: int = 3, precision: str = "float32"
) -> Fitted:
    """Return what some steps without dropout give, on regions with halos."""
    drop = {"denoiser__dropout": 0.0}
    drop["denoiser__attn_dropout" if kind == "transformer" else "denoiser__input_dropout"] = 0.0
    options = {"train__epochs": epochs, "train__max_spots_per_batch": 20, "train__lr": 1e-3}
    options["train__precision"] = precision
    config = configured(kind, **drop, **options)
    slides = [linear_slide(name, n) for name, n in (("A", 40), ("B", 30))]
    scaling = scaling_of(slides, config)
    context = build_context(config)
    learn = [context(slide_data(each, config, scaling)) for each in slides]
    held_out = linear_slide("C", 25)
    validate = slide_inputs(
        held_out, slide_data(held_out, config, scaling), torch.device(device), above=25
    )
    model = new_network(config).to(device)
    folder.mkdir(exist_ok=True)
    return fit(model, learn, [validate], config, scaling, stream=3, state_file=folder / "state")


@pytest.mark.parametrize("kind", ["regression", "graph", "transformer"])
def test_training_takes_the_same_steps(kind, tmp_path):
    here, far = (_fitted(kind, device, tmp_path / f"on-{device}") for device in ("cpu", DEVICE))
    assert next(iter(far.weights.values())).device.type == DEVICE
    for one, other in zip(here.history, far.history, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-3)
        assert other.validation_mse == pytest.approx(one.validation_mse, rel=1e-3)
    moved = new_network(configured(kind)).state_dict()
    name = next(key for key, value in here.weights.items() if value.dim() == 2)
    learned = far.weights[name].cpu()
    assert change(learned, here.weights[name]) < 1e-2 * change(moved[name], here.weights[name])


def test_training_resumes_on_the_gpu(tmp_path):
    whole = _fitted("regression", DEVICE, tmp_path / "whole")
    _fitted("regression", DEVICE, tmp_path / "parts", epochs=1)
    parts = _fitted("regression", DEVICE, tmp_path / "parts")
    assert len(parts.history) == 3
    for one, other in zip(whole.history, parts.history, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-3)


@pytest.mark.parametrize("tile_size", [None, 7])
@pytest.mark.parametrize("kind", ["field", "two-stage", "graph", "transformer"])
def test_mean_and_samples_of_a_slide(kind, tile_size):
    checkpoint, of_slide = checkpoint_of(kind), linear_slide("S", 40)
    settings = SampleSettings(n_samples=3, seed=1, tile_size=tile_size)
    here, far = (
        list(Predictor(checkpoint, device).blocks(of_slide, settings)) for device in ("cpu", DEVICE)
    )
    for one, other in zip(here, far, strict=True):
        assert other.rows == one.rows
        for far_values, values in ((other.mean, one.mean), (other.samples, one.samples)):
            assert_near(far_values, values, unit=max(1.0, float(np.abs(values).max())))
        assert np.ptp(one.samples, axis=0).max() > 1e-3


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("kind", ["field", "two-stage", "graph", "transformer"])
def test_lower_precision(kind, precision):
    checkpoint, of_slide = checkpoint_of(kind), linear_slide("S", 40)
    settings = SampleSettings(n_samples=3, seed=1)
    low = SampleSettings(n_samples=3, seed=1, precision=precision)
    predictor = Predictor(checkpoint, DEVICE)
    full, rounded = (next(iter(predictor.blocks(of_slide, each))) for each in (settings, low))
    for one, other in ((full.mean, rounded.mean), (full.samples, rounded.samples)):
        assert other.dtype == np.float32
        distance = np.linalg.norm(other - one) / np.linalg.norm(one - one.mean(-2, keepdims=True))
        assert distance < {"bf16": 0.05, "tf32": 0.01}[precision]
        assert distance > 0 or precision == "tf32"


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("kind", ["regression", "graph", "transformer"])
def test_training_in_lower_precision(kind, precision, tmp_path):
    full = _fitted(kind, DEVICE, tmp_path / "float32")
    low = _fitted(kind, DEVICE, tmp_path / precision, precision=precision)
    assert {value.dtype for value in low.weights.values()} <= {torch.float32, torch.int64}
    for one, other in zip(full.history, low.history, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=0.05)


def test_a_fields_draws():
    data = graph(slide(array("jittered"), F))
    keys, field = spot_keys("S", [str(i) for i in range(len(data.x))]), field_of(0.0, 0.1, 1.0)
    mean, drawn = 10 + noise(len(keys), field.scale.size(0)), []
    for device in ("cpu", DEVICE):
        average = WholeGraph.of(copy.copy(data).to(device)).average
        slide_noise = SlideNoise(keys.to(device), "S", average, seed=2)
        draws = (
            copy.deepcopy(field)
            .to(device)
            .draw(slide_noise, torch.full((WIDTH,), 0.05, device=device), 6)
        )
        drawn.append(torch.stack(list(draws.expression(mean.to(device), slice(None)))))
    assert_same(drawn[1], drawn[0])


@pytest.mark.parametrize("n_genes", [2, 4])
def test_measured_spots_inform_the_others(n_genes):
    checkpoint, of_slide = checkpoint_of("field"), linear_slide("S", 90)
    rows, genes = np.arange(0, 90, 4), np.arange(n_genes)
    observed = Observed(rows, genes, of_slide.truth[np.ix_(rows, genes)])
    settings = SampleSettings(n_samples=3, seed=1)
    here, far = (
        list(Predictor(checkpoint, device).blocks(of_slide, settings, observed))
        for device in ("cpu", DEVICE)
    )
    for one, other in zip(here, far, strict=True):
        for expected, actual in ((one.mean, other.mean), (one.samples, other.samples)):
            assert np.ptp(expected) > 1e-3
            within = 1e-3 * max(1.0, float(np.abs(expected).max()))
            np.testing.assert_allclose(actual, expected, rtol=0, atol=within)


@pytest.fixture(scope="module", params=["field", "spot", "graph"])
def runs(request: Any, cohort_files: Path, tmp_path_factory: Any) -> tuple[Cohort, dict[str, Path]]:
    """The toy cohort and the run of a kind of model by device."""
    cohort, folder = Cohort.of(cohort_files), tmp_path_factory.mktemp("runs")
    settings = {
        **cohort.settings,
        "flow.kind": request.param,
        "denoiser.dropout": 0.0,
        "denoiser.input_dropout": 0.0,
        "train.lr": 1e-3,
        "train.members": 2,
    }
    found = {}
    for name, device in (("cpu", "cpu"), ("gpu", DEVICE)):
        train(load_config(None, {**settings, "train.device": device}), folder / name)
        found[name] = folder / name
    return cohort, found


def _sampled(run: Path, cohort: Cohort, out: Path, device: str) -> Any:
    settings = SampleSettings(n_samples=3, device=device)
    (done,) = sample(run, [cohort.embedding("A")], out, settings)
    return read_prediction(done.path)


def test_a_run_samples_alike_on_both_devices(runs, tmp_path):
    cohort, folders = runs
    for name, run in folders.items():
        here, far = (
            _sampled(run, cohort, tmp_path / f"{name}-{i}", device)
            for i, device in enumerate(("cpu", DEVICE))
        )
        assert_near(far.mean, here.mean)
        assert_near(far.samples, here.samples)
        provenance = json.loads((run / "fold0" / "provenance.json").read_text())
        assert provenance["device"].startswith("cpu" if name == "cpu" else DEVICE)


def test_runs_of_both_devices_agree(runs, tmp_path):
    cohort, folders = runs
    devices = {"cpu": "cpu", "gpu": DEVICE}
    here, far = (
        _sampled(folders[name], cohort, tmp_path / name, device) for name, device in devices.items()
    )
    assert_near(far.mean, here.mean, tolerance=1e-2)
