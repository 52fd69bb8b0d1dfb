"""The field is fitted to slides drawn from a known one, and finds it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from stflow_graph.data.normalise import Normalisation
from stflow_graph.data.slide import Slide
from stflow_graph.flow.field import Field, SlideNoise
from stflow_graph.flow.noise import spot_keys
from stflow_graph.graph import SpatialGraph
from stflow_graph.graph.whole import WholeGraph
from stflow_graph.inference.inputs import SlideInputs
from stflow_graph.nn.expression_field import RANK, ExpressionField
from stflow_graph.stats.calibration import HeldOut
from stflow_graph.stats.scales import coverage_by_scale
from stflow_graph.training.expression_field import fit_expression_field

GENES, SIDE, CHANNELS = 20, 20, 3
LEVEL = 3.0
SCALING = Normalisation("center", True, np.zeros(CHANNELS), np.ones(CHANNELS), np.zeros(GENES))
Part = tuple[SlideInputs, HeldOut]


def true_field(smooth: float, level: float = 0.05) -> Field:
    """A direction that all genes share, of which a fraction is smooth, and own noise."""
    loadings = torch.full((GENES, 1), GENES**-0.5)
    total = 0.4 * GENES
    white = (1 - smooth) * total
    variances = [[white, 0.2 * smooth * total, 0.8 * smooth * total, 0.0, level * GENES]]
    return Field(loadings, torch.tensor(variances), torch.tensor([[0.6, 0.0]] * GENES))


def inputs_of(name: str, side: int = SIDE, place: float = 0.0) -> SlideInputs:
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
    coords = 100.0 * grid + np.random.default_rng(0).uniform(-9, 9, (side**2, 2))
    x = np.full((side**2, CHANNELS), place, dtype=np.float32)
    slide = Slide(name, x, coords, [f"{name}-{i}" for i in range(side**2)], encoder="toy")
    data = SpatialGraph(8)(Data(x=torch.from_numpy(x), pos=torch.from_numpy(coords)))
    return SlideInputs(slide, data, WholeGraph.of(data))


def part_of(name: str, field: Field, *, cut: float = -np.inf, **options: float) -> Part:
    """A slide whose truth is the mean and a draw of the field, values below ``cut`` set to it."""
    inputs = inputs_of(name, **options)
    keys = spot_keys(name, inputs.slide.barcodes)
    noise = SlideNoise(keys, name, inputs.graph.average, seed=99)
    z = field.scores(field.factors(noise, 0), noise, 0, slice(0, len(keys))).numpy()
    mean = LEVEL + 0.3 * np.random.default_rng(len(name)).normal(size=z.shape)
    truth = np.maximum(mean * (1 + 0.25 * z), cut)
    return inputs, HeldOut(mean.astype(np.float32), None, truth.astype(np.float32))


def fitted(parts: list[Part]) -> ExpressionField:
    return fit_expression_field(parts, SCALING, stream=0)


def smooth_share(field: Field) -> float:
    return float(field.variances[0, 1:-1].sum() / field.variances[0, :-1].sum())


SLIDES = "ABCD"


@pytest.fixture(scope="module")
def smooth() -> tuple[list[Part], ExpressionField]:
    parts = [part_of(name, true_field(0.5)) for name in SLIDES]
    return parts, fitted(parts)


def test_the_direction_that_genes_share_is_found(smooth):
    _, field = smooth
    assert field.loadings.shape == (GENES, RANK)
    assert abs(float(field.loadings[:, 0].sum())) > 0.97 * GENES**0.5
    first = field.variances[:-1, 0, :-1].sum(-1)
    assert first.mean() == pytest.approx(0.4 * GENES + 0.6, rel=0.25)  # own noise falls on it too


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_the_share_that_neighbours_have_in_common_is_found(share):
    field = fitted([part_of(name, true_field(share)) for name in SLIDES])
    found = [smooth_share(field.component(i)) for i in range(len(SLIDES))]
    assert np.mean(found) == pytest.approx(share * 0.93, abs=0.1)


def test_zeros_do_not_hide_what_neighbours_have_in_common():
    cut = LEVEL  # half of all values are one
    field = fitted([part_of(name, true_field(0.5), cut=cut) for name in SLIDES])
    found = [smooth_share(field.component(i)) for i in range(len(SLIDES))]
    assert np.mean(found) == pytest.approx(0.46, abs=0.12)


def test_a_slide_with_more_in_common_keeps_its_own_field():
    shares = [0.1, 0.1, 0.7]
    parts = [part_of(n, true_field(s)) for n, s in zip("ABC", shares, strict=True)]
    found = [smooth_share(fitted(parts).component(i)) for i in range(3)]
    assert found[2] > max(found[:2]) + 0.3


def test_levels_are_those_of_the_slides(smooth):
    apart = [part_of(name, true_field(0.2, level=0.5)) for name in "ABCDEF"]
    together = [part_of(name, true_field(0.2, level=0.0)) for name in "ABCDEF"]
    levels = [fitted(parts).variances[:-1, 0, -1].mean() for parts in (apart, together)]
    assert levels[0] == pytest.approx(0.5 * GENES, rel=0.8)
    assert levels[1] < levels[0] / 4


def test_draws_cover_a_new_slide_at_every_scale(smooth):
    _, field = smooth
    covered: dict[int, list[float]] = {}
    for name in "PQRST":
        inputs, part = part_of(name, true_field(0.5))
        keys = spot_keys(name, inputs.slide.barcodes)
        noise = SlideNoise(keys, name, inputs.graph.average, seed=0)
        draws = field.draw(noise, torch.zeros(CHANNELS), 19)
        mean = torch.from_numpy(part.mean)
        samples = np.stack([d.numpy() for d in draws.expression(mean, slice(0, len(mean)))])
        for scale in coverage_by_scale(samples, part.truth, inputs.slide.coords):
            if scale.centred and not scale.gene_mean:
                covered.setdefault(scale.spots, []).append(scale.centred[1].covered)
    assert covered.keys() == {1, 9, 25, 64}
    for spots, values in covered.items():
        assert np.mean(values) == pytest.approx(0.8, abs=0.08), spots


def test_the_unknown_patient_is_less_certain_than_the_slides(smooth):
    _, field = smooth
    known, unknown = field.component(0), field.component(len(SLIDES))
    assert unknown.variances[0, -1] > 1.5 * field.variances[:-1, 0, -1].mean()
    assert smooth_share(unknown) > smooth_share(known) + 0.2
    assert unknown.variances[:, :-1].sum() == pytest.approx(
        float(field.variances[:-1, :, :-1].sum(-1).median(0).values.sum()), rel=0.2
    )
    assert (unknown.own[:, 1] > known.own[:, 1]).all()


def test_places_are_the_slides_mean_embeddings():
    parts = [part_of(name, true_field(0.2), place=i) for i, name in enumerate("ABC")]
    places = fitted(parts).places
    np.testing.assert_allclose(places, np.arange(3)[:, None] * np.ones(CHANNELS))


def test_the_fit_follows_from_the_stream_alone(smooth):
    parts, field = smooth
    with torch.random.fork_rng():
        torch.manual_seed(5)
        again = fitted(parts)
    assert all(torch.equal(a, b) for a, b in zip(field.buffers(), again.buffers(), strict=True))
    other = fit_expression_field(parts, SCALING, stream=1)
    assert not torch.equal(other.variances, field.variances)


@pytest.mark.parametrize(("names", "side"), [("A", 12), ("AB", 5), ("ABC", 2)])
def test_few_and_small_slides_have_a_field(names, side):
    field = fitted([part_of(name, true_field(0.3), side=side) for name in names])
    assert all(torch.isfinite(buffer).all() for buffer in field.buffers())
    assert (field.variances >= 0).all()
    assert (field.own >= 0).all()


def test_constant_genes_have_a_field(smooth):
    parts = []
    for inputs, part in smooth[0]:
        truth = part.truth.copy()
        truth[:, :5] = 0
        parts.append((inputs, HeldOut(part.mean * (truth.max(0) > 0), None, truth)))
    assert all(torch.isfinite(buffer).all() for buffer in fitted(parts).buffers())


def test_many_genes_have_the_directions_of_few(monkeypatch, smooth):
    parts, field = smooth
    monkeypatch.setattr("stflow_graph.training.expression_field._DENSE", 1)
    sparse = fitted(parts)
    alike = (sparse.loadings * field.loadings).sum(0).abs()
    np.testing.assert_allclose(alike, 1, atol=1e-3)
