from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from stflow_graph.flow.field import SlideNoise, SmoothField
from stflow_graph.flow.noise import spot_keys
from stflow_graph.graph import SpatialGraph
from stflow_graph.graph.whole import WholeGraph
from stflow_graph.nn.evidence import InformedDraws, Measured
from stflow_graph.nn.expression_field import ExpressionField
from stflow_graph.nn.measured_genes import MeasuredGenes

SIDE, GENES, RANK = 14, 20, 16
N = SIDE**2
POS = torch.stack(torch.meshgrid(*[torch.arange(SIDE).double()] * 2, indexing="ij"), -1).view(-1, 2)
ALL = torch.arange(GENES)
MEAN = 3 + torch.rand(N, GENES, generator=torch.Generator().manual_seed(0))


def noise_of(seed: int = 0, order: torch.Tensor | None = None) -> SlideNoise:
    order = torch.arange(N) if order is None else order
    graph = WholeGraph.of(SpatialGraph(8)(Data(pos=POS[order], num_nodes=N)))
    return SlideNoise(spot_keys("S", [str(int(i)) for i in order]), "S", graph.average, seed)


def field_of(smooth: float = 0.4, noise: float = 1.0, shared: float = 0.0) -> ExpressionField:
    """Residuals of deviation .3; scores have the given variances and covariances."""
    field = ExpressionField(GENES, 3, 3)
    generator = torch.Generator().manual_seed(1)
    directions = torch.linalg.qr(torch.randn(GENES, RANK, generator=generator))[0]
    field.smooth_loadings.copy_(directions)
    field.noise_loadings.copy_(directions)
    field.noise_own.fill_(noise - shared)
    field.noise_variances.fill_(shared)
    field.scale.fill_(0.3)
    field.process_smooth.fill_(smooth / 3)
    field.process_smooth[-1] /= 100
    field.own_scale.copy_((1 - directions.square().sum(1)).sqrt())
    field.process_noise.fill_(noise)
    field.process_level.fill_(0.5)
    # y = mu + .3 z where mu is 3.5
    scores = torch.linspace(-3.2, 3.2, field.ratios.size(2))
    field.ratios.copy_((1 + 0.3 / 3.5 * scores).expand_as(field.ratios))
    field.knots.copy_(torch.linspace(1, 8, field.knots.size(1)).expand_as(field.knots))
    return field


def truth_of(field: ExpressionField, seed: int = 5) -> torch.Tensor:
    """Expression that the field's processes would give on a slide."""
    noise = noise_of(seed)
    processes = field.processes
    tables = (processes.smooth[:RANK], processes.level[:RANK, None])
    variances = torch.from_numpy(np.concatenate(tables, axis=1)).float()
    prior = SmoothField(field.smooth_loadings, variances, torch.zeros(GENES))
    error = prior.factors(noise, 0) @ field.smooth_loadings.t()
    scores = field.noise(0).scores(noise, 0, slice(None))
    return field.marginals.expression((MEAN + field.scale * error).clamp(min=0), scores)


def measured(
    truth: torch.Tensor, rows: torch.Tensor, genes: torch.Tensor = ALL, mean: torch.Tensor = MEAN
) -> Measured:
    return Measured(rows, genes, truth[rows][:, genes], mean[rows])


def some(n: int, seed: int = 0) -> torch.Tensor:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    return order[:n].sort().values


def informed(
    field: ExpressionField, found: Measured, n_samples: int = 0, **options
) -> InformedDraws:
    return InformedDraws(field, noise_of(), POS.numpy(), found, n_samples, **options)


def samples_of(draws: InformedDraws, rows: slice = slice(None)) -> torch.Tensor:
    return torch.stack(list(draws.expression(MEAN[rows], rows)))


def others(rows: torch.Tensor) -> torch.Tensor:
    left = torch.ones(N, dtype=torch.bool)
    left[rows] = False
    return left


def test_measured_values_come_back_as_they_are_unless_denoised():
    field, rows, genes = field_of(), some(60), torch.tensor([0, 3, 4, 11])
    truth = truth_of(field)
    found = measured(truth, rows, genes)
    draws = informed(field, found, 3)
    for values in (draws.expected(MEAN, slice(None)), *samples_of(draws)):
        assert torch.equal(values[rows][:, genes], found.values)
        assert not torch.isclose(values[rows][:, 5], truth[rows][:, 5]).any()
    draws = informed(field, found, 3, as_measured=False)
    expected = draws.expected(MEAN, slice(None))[rows][:, genes]
    before, after = MEAN[rows][:, genes] - found.values, expected - found.values
    assert 0 < after.square().mean() < 0.95 * before.square().mean()
    assert not torch.equal(samples_of(draws)[0][rows][:, genes], found.values)


@pytest.mark.parametrize("n_rows", [40, 150])
def test_the_others_are_nearer_to_the_truth(n_rows):
    field, rows = field_of(smooth=1.5), some(n_rows)
    truth, left = truth_of(field), others(rows)
    expected = informed(field, measured(truth, rows)).expected(MEAN, slice(None))
    before, after = ((x - truth)[left].square().mean() for x in (MEAN, expected))
    assert after < (0.85 if n_rows == 40 else 0.7) * before


def test_noise_of_single_spots_says_nothing_of_others():
    field, rows = field_of(smooth=1e-4), some(100)
    field.process_level.fill_(1e-4)
    truth = field.marginals.expression(MEAN, field.noise(0).scores(noise_of(3), 0, slice(None)))
    expected = informed(field, measured(truth, rows)).expected(MEAN, slice(None))
    # a hundred spots tell each gene's level to a tenth of the deviation of one
    error = (expected - MEAN)[others(rows)].mean(0)
    assert error.square().mean().sqrt() < 1.3 * 0.1 * 0.3
    torch.testing.assert_close(
        expected[others(rows)] - MEAN[others(rows)], error.expand(N - 100, -1), rtol=0, atol=0.02
    )


def test_a_level_is_carried_to_every_spot():
    field, rows = field_of(), some(80)
    truth = MEAN + 0.4
    expected = informed(field, measured(truth, rows)).expected(MEAN, slice(None))
    torch.testing.assert_close((expected - MEAN).mean(), torch.tensor(0.4), rtol=0.1, atol=0)


def test_other_genes_take_the_level_that_measured_ones_share_and_no_other():
    field, rows, genes = field_of(), some(80), torch.arange(0, GENES, 2)
    # genes alike in none of the directions
    field.smooth_loadings.copy_(torch.eye(GENES, RANK))
    for signs, wanted in ((torch.ones(GENES), 0.4), ((-1.0) ** torch.arange(GENES).div(2), 0.0)):
        truth = MEAN + 0.4 * signs
        found = informed(field, measured(truth, rows, genes))
        change = (found.expected(MEAN, slice(None)) - MEAN)[others(rows)]
        torch.testing.assert_close(
            change[:, ::2], 0.4 * signs[::2].expand(N - 80, -1), rtol=0, atol=0.1
        )
        torch.testing.assert_close(change[:, 1::2].mean(), torch.tensor(wanted), rtol=0, atol=0.08)


def test_genes_that_are_not_measured_have_the_pattern_that_they_share():
    field, rows, genes = field_of(smooth=2.0, noise=0.3), torch.arange(N), torch.arange(12)
    truth = truth_of(field) + 0.5
    draws = informed(field, measured(truth, rows, genes), 32)
    change = (draws.expected(MEAN, slice(None)) - MEAN)[:, 12:]
    wanted = (truth - MEAN)[:, 12:]
    alike = [
        torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(change.t(), wanted.t(), strict=True)
    ]
    assert torch.stack(alike).mean() > 0.4
    # of their own level nothing is known
    assert change.mean(0).std() < 0.05
    levels = samples_of(draws)[..., 12:].mean(1).std(0).mean()
    assert levels > 2 * samples_of(draws)[..., :12].mean(1).std(0).mean()


@pytest.mark.parametrize("n_rows", [30, 98])
def test_intervals_hold_what_the_model_would_give(n_rows):
    field, rows = field_of(smooth=0.8), some(n_rows)
    inside, regions = [], []
    for seed in range(3):
        truth = truth_of(field, seed=20 + seed)
        draws = samples_of(informed(field, measured(truth, rows), 40))
        left = others(rows)
        for of, values, true in (
            (inside, draws[:, left], truth[left]),
            (regions, draws[:, left].mean(1), truth[left].mean(0)),
        ):
            low, high = (torch.quantile(values, q, dim=0) for q in (0.09, 0.91))
            of.append(((low <= true) & (true <= high)).float().mean().item())
    assert np.mean(inside) == pytest.approx(0.8, abs=0.04)
    assert 0.6 < np.mean(regions) < 0.97


def test_draws_vary_less_where_more_is_known():
    field = field_of(smooth=2.0, noise=0.05)
    near = (POS[:, 0] < SIDE // 2).nonzero()[:, 0][::2]
    draws = samples_of(informed(field, measured(truth_of(field), near), 24))
    spread = draws.std(0).mean(1)
    between = others(near) & (POS[:, 0] < SIDE // 2 - 1)
    far = POS[:, 0] > SIDE - 3
    assert spread[between].mean() < 0.7 * spread[far].mean()


def test_draws_are_about_what_is_expected():
    field, rows = field_of(smooth=0.8), some(60)
    draws = informed(field, measured(truth_of(field), rows), 64)
    expected = draws.expected(MEAN, slice(None))
    error = samples_of(draws).mean(0) - expected
    assert error[others(rows)].abs().mean() < 0.05
    assert error[others(rows)].mean().abs() < 0.02


def test_other_genes_of_a_measured_spot_go_with_its_noise():
    field, rows = field_of(smooth=0.01, noise=1.0, shared=0.9), torch.arange(N)
    # all genes share one direction of noise
    loadings = torch.zeros(GENES, RANK)
    loadings[:, 0] = GENES**-0.5
    field.noise_loadings.copy_(loadings)
    field.noise_variances.zero_()
    field.noise_variances[:, 0] = 0.9 * GENES
    field.noise_own.fill_(0.1)
    field.smooth_loadings[:, :] = torch.eye(GENES, RANK)
    field.smooth_loadings[:, 0] = GENES**-0.5
    field.process_noise.fill_(0.1)
    field.process_noise[0] = 0.9 * GENES
    field.process_level.fill_(1e-3)
    field.own_scale.fill_(1.0)
    scores = field.noise(0).scores(noise_of(8), 0, slice(None))
    truth = field.marginals.expression(MEAN, scores)
    seen, rest = torch.arange(10), torch.arange(10, GENES)
    draws = informed(field, measured(truth, rows, seen), 8)
    expected = draws.expected(MEAN, slice(None))
    error, before = ((x - truth)[:, rest].square().mean() for x in (expected, MEAN))
    assert error < 0.35 * before
    drawn = samples_of(draws)[:, :, rest]
    spread = drawn.std(0).mean()
    assert spread < 0.8 * (truth - MEAN)[:, rest].std()
    assert (drawn.mean(0) - expected[:, rest]).abs().mean() < spread / 2


def test_rows_are_those_of_the_whole_and_neither_order_nor_number_matter():
    field, rows = field_of(), some(70)
    truth = truth_of(field)
    draws = informed(field, measured(truth, rows), 2)
    whole, expected = samples_of(draws), draws.expected(MEAN, slice(None))
    part = slice(31, 90)
    torch.testing.assert_close(samples_of(draws, part), whole[:, part], rtol=0, atol=1e-5)
    torch.testing.assert_close(draws.expected(MEAN[part], part), expected[part], rtol=0, atol=1e-5)
    more = informed(field, measured(truth, rows), 4)
    torch.testing.assert_close(samples_of(more)[:2], whole, rtol=0, atol=1e-5)

    order = torch.randperm(N, generator=torch.Generator().manual_seed(4))
    place = torch.empty_like(order)
    place[order] = torch.arange(N)
    found = measured(truth[order], place[rows], ALL, MEAN[order])
    moved = InformedDraws(field, noise_of(order=order), POS[order].numpy(), found, 2)
    shuffled = torch.stack(list(moved.expression(MEAN[order], slice(None))))
    torch.testing.assert_close(shuffled[:, place], whole, rtol=0, atol=1e-3)


def test_one_spot_and_one_gene_are_enough():
    field = field_of()
    found = measured(truth_of(field), torch.tensor([7]), torch.tensor([2]))
    draws = informed(field, found, 2)
    assert torch.isfinite(samples_of(draws)).all()
    change = (draws.expected(MEAN, slice(None)) - MEAN).abs()
    assert change[8, 2] > change[8, :2].mean()
    assert change.mean() < 0.2


@pytest.mark.parametrize("n_genes", [1, 4, 10, 17, GENES - 1])
def test_measured_genes_tell_of_the_factors_what_bayes_says(n_genes):
    """At one spot, by the posterior of a linear model."""
    field, genes = field_of(shared=0.3), torch.arange(n_genes)
    processes = field.processes
    panel = MeasuredGenes.of(field, genes)
    q = field.smooth_loadings[genes].double().numpy()
    own = field.own_scale[genes].double().numpy() ** 2
    own *= processes.noise[-1] + processes.smooth[-1].sum()
    noise = q @ np.diag(processes.noise[:-1]) @ q.T + np.diag(own)
    prior = np.diag(processes.smooth[:-1].sum(1) + processes.level[:-1])
    residuals = np.random.default_rng(0).normal(size=n_genes)
    expected = prior @ q.T @ np.linalg.solve(q @ prior @ q.T + noise, residuals)

    total = panel.processes.smooth.sum(1) + panel.processes.level
    np.testing.assert_allclose(total[:-1], 1, rtol=1e-5)
    told = panel.of_residuals.double().numpy() @ residuals
    shrunk = told / (1 + panel.processes.noise[:-1])
    found = panel.to_factors.double().numpy() @ shrunk
    np.testing.assert_allclose(found, expected, atol=1e-3)
    both = panel.of_factors @ panel.to_factors
    torch.testing.assert_close(both, torch.eye(len(both)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("times", [0.2, 1.0, 3.0])
def test_genes_vary_on_a_slide_as_its_measured_spots_say(times):
    field, rows, genes = field_of(), some(150), torch.arange(5)
    generator = torch.Generator().manual_seed(2)
    truth = MEAN + 0.4 + times * 0.3 * torch.randn(N, GENES, generator=generator)
    scale = informed(field, measured(truth, rows, genes))._scale
    expected = torch.tensor(0.3 * math.sqrt((150 * times**2 + 20) / 170))
    torch.testing.assert_close(scale, expected.expand(GENES), rtol=0.15, atol=0)
    # a single spot says nothing of it
    scale = informed(field, measured(truth, rows[:1], genes))._scale
    torch.testing.assert_close(scale, field.scale)


@pytest.mark.parametrize("times", [0.1, 1.0, 4.0])
def test_no_draw_is_enormous(times):
    """Of rare genes, whose ratios are mostly 0, on a slide of little noise or of much."""
    field, rows = field_of(smooth=0.1), some(40)
    ratios = torch.zeros_like(field.ratios)
    ratios[..., -8:] = torch.linspace(1, 40, 8)
    field.ratios.copy_(ratios)
    field.scale.fill_(0.3)
    mean = torch.full((N, GENES), 0.05)
    generator = torch.Generator().manual_seed(3)
    truth = (mean + times * 0.3 * torch.randn(N, GENES, generator=generator)).clamp(min=0)
    found = Measured(rows, ALL, truth[rows], mean[rows])
    draws = informed(field, found, 8)
    largest = max(drawn.max() for drawn in draws.expression(mean, slice(None)))
    about = draws.expected(mean, slice(None)).max()
    assert largest < 2 * 40 * (about + 4 * 0.3 * max(times, 1))


def test_a_gene_that_goes_with_no_other_says_of_them_only_the_level():
    field, rows, gene = field_of(), some(40), torch.tensor([3])
    field.smooth_loadings[3] *= 1e-4
    found = measured(truth_of(field), rows, gene)
    draws = informed(field, found, 2)
    change = draws.expected(MEAN, slice(None)) - MEAN
    assert change[:, :3].std(0).max() < 1e-3
    assert change[:, :3].abs().max() < 0.05
    assert torch.isfinite(samples_of(draws)).all()


def test_draws_of_other_genes_at_measured_spots_are_about_what_is_expected():
    field, rows, genes = field_of(smooth=0.3, shared=0.5), torch.arange(N), torch.arange(12)
    draws = informed(field, measured(truth_of(field), rows, genes), 80)
    error = (samples_of(draws).mean(0) - draws.expected(MEAN, slice(None)))[:, 12:]
    assert error.mean().abs() < 0.05


def test_one_gene_that_never_varied_does_not_set_the_scale():
    field, rows, genes = field_of(), some(60), torch.arange(5)
    field.scale[0] = 1e-6
    scale = informed(field, measured(truth_of(field), rows, genes))._scale
    assert scale[10] < 2 * field.scale[10]
