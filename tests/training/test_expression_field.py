"""The field is fitted to slides drawn from a known one, and finds it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from stflow_graph.data.normalise import Normalisation
from stflow_graph.data.slide import Slide
from stflow_graph.flow.field import SlideNoise, SmoothField, SpotNoise
from stflow_graph.flow.noise import spot_keys
from stflow_graph.graph import SpatialGraph
from stflow_graph.graph.whole import WholeGraph
from stflow_graph.inference.inputs import SlideInputs
from stflow_graph.nn.expression_field import RANK, ExpressionField
from stflow_graph.stats.calibration import HeldOut
from stflow_graph.stats.scales import coverage_by_scale
from stflow_graph.training.expression_field import fit_expression_field

GENES, SIDE, CHANNELS = 20, 20, 3
LEVEL, DEVIATION = 3.0, 0.6
SCALING = Normalisation("center", True, np.zeros(CHANNELS), np.ones(CHANNELS), np.zeros(GENES))
Part = tuple[SlideInputs, HeldOut]


def true_field(smooth: float, level: float = 0.02) -> tuple[SmoothField, SpotNoise]:
    """Of the variance that all genes share, a fraction is smooth; the rest is a spot's own."""
    loadings = torch.full((GENES, 1), GENES**-0.5)
    shared, own = 0.4 * GENES, torch.full((GENES,), 0.6)
    variances = [[0.2 * smooth * shared, 0.8 * smooth * shared, 0.0, level * GENES]]
    field = SmoothField(loadings, torch.tensor(variances), torch.zeros(GENES))
    return field, SpotNoise(loadings, torch.tensor([(1 - smooth) * shared]), own)


def inputs_of(name: str, side: int = SIDE, place: float = 0.0) -> SlideInputs:
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
    coords = 100.0 * grid + np.random.default_rng(0).uniform(-9, 9, (side**2, 2))
    x = np.full((side**2, CHANNELS), place, dtype=np.float32)
    slide = Slide(name, x, coords, [f"{name}-{i}" for i in range(side**2)], encoder="toy")
    data = SpatialGraph(8)(Data(x=torch.from_numpy(x), pos=torch.from_numpy(coords)))
    return SlideInputs(slide, data, WholeGraph.of(data))


def part_of(
    name: str, truth: tuple[SmoothField, SpotNoise], *, cut: float = -np.inf, **options: float
) -> Part:
    """A slide whose truth is the mean and a draw, values below ``cut`` set to it."""
    inputs = inputs_of(name, **options)
    keys = spot_keys(name, inputs.slide.barcodes)
    noise = SlideNoise(keys, name, inputs.graph.average, seed=99)
    field, spots = truth
    error = field.values(field.factors(noise, 0), noise, 0) + spots.scores(noise, 0, slice(None))
    mean = LEVEL + 0.3 * np.random.default_rng(len(name)).normal(size=error.shape)
    y = np.maximum(mean + DEVIATION * error.numpy(), cut)
    return inputs, HeldOut(mean.astype(np.float32), None, y.astype(np.float32))


def fitted(parts: list[Part]) -> ExpressionField:
    return fit_expression_field(parts, SCALING, stream=0)


def smooth_variance(field: ExpressionField) -> np.ndarray:
    """Return each field's smooth variance of the first direction, as ``true_field`` has it."""
    scale = float(field.scale.square().mean()) / DEVIATION**2
    return scale * field.smooth_variances[:, 0, :-1].sum(-1).numpy() / (0.4 * GENES)


SLIDES = "ABCD"


@pytest.fixture(scope="module")
def smooth() -> tuple[list[Part], ExpressionField]:
    parts = [part_of(name, true_field(0.5)) for name in SLIDES]
    return parts, fitted(parts)


def test_the_direction_that_genes_share_is_found(smooth):
    _, field = smooth
    for name in ("smooth_loadings", "noise_loadings"):
        loadings = getattr(field, name)
        assert loadings.shape == (GENES, RANK)
        assert abs(float(loadings[:, 0].sum())) > 0.97 * GENES**0.5


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_what_neighbours_have_in_common_is_found(share):
    field = fitted([part_of(name, true_field(share)) for name in "ABCDEFGH"])
    # eight draws of it differ by half from what they are drawn of
    assert smooth_variance(field)[:-1].mean() == pytest.approx(share, abs=0.05 + 0.4 * share)
    # the noise of spots has the rest of what genes share
    rest = (field.noise_variances[0, 0] / (field.noise_variances[0, 0] + 12)).item()
    left = (1 - share) * 0.4 * GENES + 0.6
    assert rest == pytest.approx(left / (left + 12), abs=0.12)


def test_zeros_do_not_hide_what_neighbours_have_in_common():
    field = fitted([part_of(name, true_field(0.5), cut=LEVEL) for name in SLIDES])
    cut = 0.34  # variance of a normal distribution of which a half is one value
    assert smooth_variance(field)[:-1].mean() == pytest.approx(0.5 * cut, rel=0.4)


def test_a_slide_with_more_in_common_keeps_its_own_field():
    shares = [0.1, 0.1, 0.7]
    parts = [part_of(n, true_field(s)) for n, s in zip("ABC", shares, strict=True)]
    found = smooth_variance(fitted(parts))
    assert found[2] > max(found[:2]) + 0.3


def test_levels_are_those_of_the_slides():
    apart = [part_of(name, true_field(0.2, level=0.5)) for name in "ABCDEF"]
    together = [part_of(name, true_field(0.2, level=0.0)) for name in "ABCDEF"]
    levels = [fitted(parts).smooth_variances[:-1, 0, -1].mean() for parts in (apart, together)]
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
    levels = field.smooth_variances[:, 0, -1]
    assert levels[-1] > 2 * levels[:-1].mean()
    found = smooth_variance(field)
    assert found[-1] > 1.4 * np.median(found[:-1])
    # of residuals as large as theirs
    assert field.noise_variances[-1, 0] < field.noise_variances[:-1, 0].min()
    assert (field.noise_own[-1] < field.noise_own[:-1].max(0).values).all()


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
    assert not torch.equal(other.noise_variances, field.noise_variances)


@pytest.mark.parametrize(("names", "side"), [("A", 12), ("AB", 5), ("ABC", 2)])
def test_few_and_small_slides_have_a_field(names, side):
    field = fitted([part_of(name, true_field(0.3), side=side) for name in names])
    assert all(torch.isfinite(buffer).all() for buffer in field.buffers())
    for name in ("smooth_variances", "smooth_own", "noise_variances", "noise_own"):
        assert (getattr(field, name) >= 0).all()


def test_constant_genes_have_a_field(smooth):
    parts = []
    for inputs, part in smooth[0]:
        truth = part.truth.copy()
        truth[:, :5] = 0
        parts.append((inputs, HeldOut(part.mean * (truth.max(0) > 0), None, truth)))
    assert all(torch.isfinite(buffer).all() for buffer in fitted(parts).buffers())


def test_many_genes_have_the_directions_of_few(monkeypatch, smooth):
    parts, field = smooth
    monkeypatch.setattr("stflow_graph.training.gene_directions.DENSE", 1)
    sparse = fitted(parts)
    alike = (sparse.smooth_loadings * field.smooth_loadings).sum(0).abs()[:3]
    np.testing.assert_allclose(alike, 1, atol=1e-3)


def lacking(part: Part, genes: slice) -> Part:
    truth = part[1].truth.copy()
    truth[:, genes] = np.nan
    return part[0], HeldOut(part[1].mean, None, truth)


FIRST, SECOND = slice(0, 10), slice(10, 20)


def test_slides_of_other_panels_have_the_field_of_whole_ones(smooth):
    parts, field = smooth
    panels = fitted([parts[0], lacking(parts[1], FIRST), lacking(parts[2], SECOND), parts[3]])
    assert all(torch.isfinite(buffer).all() for buffer in panels.buffers())
    for name in ("smooth_loadings", "noise_loadings"):
        alike = (getattr(panels, name) * getattr(field, name)).sum(0)[0].abs()
        assert alike > 0.95, name
    np.testing.assert_allclose(panels.scale, field.scale, rtol=0.1)
    np.testing.assert_allclose(smooth_variance(panels), smooth_variance(field), rtol=0.5)
    shared = [f.noise_variances[:-1, 0] for f in (panels, field)]
    np.testing.assert_allclose(*shared, rtol=0.4)
    # a gene's own noise is that of the slides that measure it
    own = panels.noise_own[:-1]
    np.testing.assert_allclose(own[1, FIRST], own[[0, 2, 3], FIRST].mean(0), rtol=1e-5)


def test_genes_that_are_never_measured_together_have_no_correlation(smooth):
    parts, _ = smooth
    apart = [lacking(part, FIRST if i % 2 else SECOND) for i, part in enumerate(parts)]
    field = fitted(apart)
    assert all(torch.isfinite(buffer).all() for buffer in field.buffers())
    weights = np.stack([field.smooth_loadings[part].square().sum(0) for part in (FIRST, SECOND)])
    np.testing.assert_allclose(weights[:, :2].max(axis=0), 1, atol=1e-6)  # each of one panel


def test_many_genes_of_panels_have_the_directions_of_few(monkeypatch, smooth):
    parts = [lacking(part, FIRST if i == 1 else slice(0, 0)) for i, part in enumerate(smooth[0])]
    dense = fitted(parts)
    monkeypatch.setattr("stflow_graph.training.gene_directions.DENSE", 1)
    sparse = fitted(parts)
    alike = (sparse.smooth_loadings * dense.smooth_loadings).sum(0).abs()[:3]
    np.testing.assert_allclose(alike, 1, atol=1e-3)
    np.testing.assert_allclose(
        sparse.smooth_variances[:, 0], dense.smooth_variances[:, 0], rtol=0.01
    )
