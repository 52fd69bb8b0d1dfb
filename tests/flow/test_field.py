from __future__ import annotations

import math

import pytest
import torch
from torch_geometric.data import Data

from stflow_graph.flow.field import STEPS, SlideNoise, SmoothField, SpotNoise, squared_ranges
from stflow_graph.flow.noise import spot_keys
from stflow_graph.graph import SpatialGraph
from stflow_graph.graph.whole import WholeGraph

SIDE = 24
N = SIDE**2
BARCODES = [str(i) for i in range(N)]
POS = torch.stack(torch.meshgrid(*[torch.arange(SIDE).double()] * 2, indexing="ij"), -1).view(-1, 2)
ALL = slice(0, N)


def noise_of(order: torch.Tensor | None = None, seed: int = 0, slide: str = "S") -> SlideNoise:
    order = torch.arange(N) if order is None else order
    graph = WholeGraph.of(SpatialGraph(8)(Data(pos=POS[order], num_nodes=N)))
    keys = spot_keys(slide, [BARCODES[i] for i in order])
    return SlideNoise(keys, slide, graph.average, seed)


def loadings() -> torch.Tensor:
    return torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0][:, :2]


def smooth_field(smooth=(0.2, 0.2, 0.2), level=0.0, own=0.0) -> SmoothField:
    """Four genes, two directions of equal shares."""
    return SmoothField(loadings(), torch.tensor([[*smooth, level]] * 2), torch.full((4,), own))


def drawn(field: SmoothField, noise: SlideNoise, n: int) -> torch.Tensor:
    """Return ``[n, N, G]``."""
    return torch.stack([field.values(field.factors(noise, s), noise, s) for s in range(n)])


NOISE = noise_of()


@pytest.mark.parametrize("step", range(len(STEPS)))
def test_averaged_noise_has_unit_variance_in_every_place(step):
    white = NOISE.spots(2000, sample=3)
    smooth = NOISE.smoothing([white] * len(STEPS))[step]
    variance = smooth.var(1)
    assert variance.mean() == pytest.approx(1, abs=0.08)
    assert variance.std() < 0.25
    border = (POS == 0).any(1)
    assert variance[border].mean() == pytest.approx(variance[~border].mean().item(), rel=0.15)


def test_more_steps_reach_further():
    parts = NOISE.smoothing([NOISE.spots(2000, sample=1)] * len(STEPS))
    middle = SIDE // 2 * SIDE + SIDE // 2
    for distance in (2, 4):
        alike = [torch.corrcoef(z[[middle, middle + distance]])[0, 1].item() for z in parts]
        assert alike == sorted(alike)
        assert alike[2] - alike[0] > 0.2


def test_variances_are_those_of_the_field():
    field = smooth_field(level=0.5, own=0.3)
    f = drawn(field, NOISE, 400)
    expected = field.loadings.square() @ field.variances.sum(1) + field.own
    assert f.var((0, 1)).numpy() == pytest.approx(expected.numpy(), rel=0.15)
    # the slide's mean of what changes slowly is a level too
    level = f.mean(1).var(0)
    stated = field.loadings.square() @ field.variances[:, -1] + field.own
    assert (level >= 0.8 * stated).all()
    assert (level <= 2 * stated).all()


def test_genes_vary_together_along_the_directions():
    field = smooth_field()
    factors = field.factors(NOISE, 0)
    values = field.values(factors, NOISE, 0)
    torch.testing.assert_close(values @ field.loadings, factors, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values[5:9], field.values(factors[5:9], NOISE, 0))


def test_neighbours_vary_together_in_the_field_and_not_in_the_noise():
    def alike(z):
        z = z.view(-1, SIDE, SIDE, 4)
        return torch.corrcoef(torch.stack([z[:, 1:].flatten(), z[:, :-1].flatten()]))[0, 1]

    noise = SpotNoise(loadings(), torch.tensor([1.0, 0.5]), torch.full((4,), 0.5))
    z = torch.stack([noise.scores(NOISE, s, ALL) for s in range(8)])
    assert alike(z).abs() < 0.03
    assert alike(drawn(smooth_field(), NOISE, 8)) > 0.7


def test_variances_of_the_noise_are_as_stated():
    noise = SpotNoise(loadings(), torch.tensor([2.0, 0.5]), torch.tensor([0.1, 0.2, 0.3, 0.4]))
    z = torch.cat([noise.scores(NOISE, s, ALL) for s in range(40)])
    covariance = loadings() @ torch.diag(noise.variances) @ loadings().t() + torch.diag(noise.own)
    torch.testing.assert_close(torch.cov(z.t()), covariance, atol=0.06, rtol=0.1)


def test_field_and_noise_are_independent():
    noise = SpotNoise(loadings(), torch.ones(2), torch.zeros(4))
    for sample in range(3):
        z = noise.scores(NOISE, sample, ALL).flatten()
        f = drawn(smooth_field(smooth=(1.0, 0, 0)), NOISE, sample + 1)[sample].flatten()
        assert torch.corrcoef(torch.stack([z, f]))[0, 1].abs() < 0.12


def test_noise_is_the_spots_whatever_the_order_and_the_part_asked_for():
    field = smooth_field(level=0.5, own=0.5)
    noise = SpotNoise(loadings(), torch.ones(2), torch.ones(4))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    permuted = noise_of(order)
    f, z = drawn(field, NOISE, 2), noise.scores(NOISE, 1, ALL)
    torch.testing.assert_close(drawn(field, permuted, 2), f[:, order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(noise.scores(permuted, 1, ALL), z[order])
    torch.testing.assert_close(noise.scores(NOISE, 1, slice(100, 137)), z[100:137])


@pytest.mark.parametrize("n_columns", [1, 5])
def test_columns_that_are_averaged_and_rows_that_are_drawn_at_a_time_do_not_count(
    n_columns, monkeypatch
):
    field = smooth_field(level=0.5, own=0.5)
    expected, white = drawn(field, noise_of(), 2), NOISE.spots(7, 1, first=3)
    monkeypatch.setattr("stflow_graph.flow.field._AVERAGED", n_columns * N)
    monkeypatch.setattr("stflow_graph.flow.field._DRAWN", 7 * 10)
    torch.testing.assert_close(drawn(field, noise_of(), 2), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(NOISE.spots(7, 1, first=3), white)


@pytest.mark.parametrize("other", [{"seed": 1}, {"slide": "T"}])
def test_seed_slide_and_sample_make_other_noise(other):
    field = smooth_field(smooth=(0, 0, 0), level=1.0, own=1.0)
    levels, others = drawn(field, NOISE, 2)[:, 0], drawn(field, noise_of(**other), 2)[:, 0]
    assert (levels[0] - levels[1]).abs().min() > 1e-3
    assert (levels - others).abs().min() > 1e-3
    assert torch.equal(levels, drawn(field, noise_of(), 2)[:, 0])


def test_the_first_draws_do_not_depend_on_how_many_follow():
    assert torch.equal(
        drawn(smooth_field(), noise_of(), 3)[:1], drawn(smooth_field(), noise_of(), 1)
    )


def test_ranges_are_those_of_averaged_noise():
    ranges = squared_ranges(NOISE.average, POS)
    parts = NOISE.smoothing([NOISE.spots(3000, sample=5)] * len(STEPS))
    inside = ((POS > 5) & (POS < SIDE - 6)).all(1)
    distances = torch.cdist(POS, POS)[inside]
    for reach, z in zip(ranges, parts, strict=True):
        covariance = (z @ z.t() / z.size(1))[inside]
        for distance in (1.0, 2.0, 3.0, 5.0):
            pairs = (covariance[distances == d].mean() for d in (distance, 0))
            at, alone = pairs
            found = (at / alone).item()
            assert found == pytest.approx(math.exp(-(distance**2) / reach), abs=0.08)
    scaled = squared_ranges(NOISE.average, 250 * POS + 1e6)
    torch.testing.assert_close(scaled, 250**2 * ranges, rtol=1e-4, atol=0)


def test_the_variance_of_a_genes_noise():
    noise = SpotNoise(loadings(), torch.tensor([0.5, 2.0]), torch.tensor([0.1, 0.2, 0.3, 0.4]))
    scores = torch.cat([noise.scores(NOISE, sample, ALL) for sample in range(30)])
    torch.testing.assert_close(scores.var(0), noise.variance(), rtol=0.05, atol=0)
