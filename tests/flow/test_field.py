from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Data

from stflow_graph.flow.field import STEPS, Field, SlideNoise
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


def field_of(white=0.4, smooth=(0.2, 0.2, 0.2), level=0.0, own=0.5, own_level=0.0) -> Field:
    """Four genes, two directions of equal shares."""
    loadings = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0]
    variances = torch.tensor([[white, *smooth, level]] * 2)
    return Field(loadings[:, :2], variances, torch.tensor([[own, own_level]] * 4))


def draws(field: Field, noise: SlideNoise, n: int) -> torch.Tensor:
    """Return ``[n, N, G]``."""
    return torch.stack([field.scores(field.factors(noise, s), noise, s, ALL) for s in range(n)])


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
    field = field_of(level=0.5, own_level=0.3)
    z = draws(field, NOISE, 400)
    shared = (field.loadings.square() @ field.variances[:, :-1].sum(1)).double()
    complement = torch.eye(4) - field.loadings @ field.loadings.t()
    own = complement.square() @ field.own
    centred = z - z.mean(1, keepdim=True)
    # the slide's mean of smooth parts is a level too
    assert centred.var((0, 1)).numpy() == pytest.approx((shared + own[:, 0]).numpy(), rel=0.15)
    level = z.mean(1).var(0)
    expected = field.loadings.square() @ field.variances[:, -1] + own[:, 1]
    assert (level >= 0.8 * expected).all()
    assert (level <= 2 * expected).all()


def test_factors_are_what_genes_share_and_own_noise_is_apart_from_them():
    field = field_of()
    factors = field.factors(NOISE, 0)
    z = field.scores(factors, NOISE, 0, ALL)
    torch.testing.assert_close(z @ field.loadings, factors, atol=1e-5, rtol=1e-5)
    without = field.scores(torch.zeros_like(factors), NOISE, 0, ALL)
    assert (without @ field.loadings).abs().max() < 1e-5
    assert without.std() > 0.1


def test_neighbours_vary_together_only_where_there_are_smooth_parts():
    def alike(field):
        z = draws(field, NOISE, 8).view(8, SIDE, SIDE, 4)
        return torch.corrcoef(torch.stack([z[:, 1:].flatten(), z[:, :-1].flatten()]))[0, 1]

    assert alike(field_of(white=1.0, smooth=(0, 0, 0))).abs() < 0.03
    assert alike(field_of(own=0.0)) > 0.4


def test_noise_is_the_spots_whatever_the_order_and_the_part_asked_for():
    field = field_of(level=0.5, own_level=0.5)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    z, permuted = draws(field, NOISE, 2), draws(field, noise_of(order), 2)
    torch.testing.assert_close(permuted, z[:, order], atol=1e-5, rtol=1e-5)
    rows = slice(100, 137)
    part = field.scores(field.factors(NOISE, 1)[rows], NOISE, 1, rows)
    torch.testing.assert_close(part, z[1, rows])


@pytest.mark.parametrize("other", [{"seed": 1}, {"slide": "T"}])
def test_seed_slide_and_sample_make_other_noise(other):
    field = field_of(white=0.0, smooth=(0, 0, 0), level=1.0, own=0.0, own_level=1.0)
    levels, others = draws(field, NOISE, 2)[:, 0], draws(field, noise_of(**other), 2)[:, 0]
    assert (levels[0] - levels[1]).abs().min() > 1e-3
    assert (levels - others).abs().min() > 1e-3
    again = draws(field, noise_of(), 2)[:, 0]
    assert torch.equal(levels, again)


def test_the_first_draws_do_not_depend_on_how_many_follow():
    field = field_of()
    assert torch.equal(draws(field, noise_of(), 3)[:1], draws(field, noise_of(), 1))
