from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest, nbinom, norm

from stflow_graph.flow.marginals import Marginals

SCORES = torch.linspace(-3, 3, 61)


def counts(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Expected and drawn log1p counts of two genes: one rare, one not; NB of size 2."""
    mean = np.column_stack([rng.gamma(2, 0.3, n), rng.gamma(4, 3, n)])
    truth = np.log1p(rng.negative_binomial(2, 2 / (2 + mean)))
    grid = np.arange(500)
    expected = [
        (nbinom.pmf(grid, 2, 2 / (2 + m))[:, None] * np.log1p(grid)[:, None]).sum()
        for m in mean.ravel()
    ]
    return np.reshape(expected, mean.shape), truth


@pytest.fixture(scope="module")
def fitted() -> Marginals:
    return Marginals.fit(*counts(np.random.default_rng(0), 4000))


def draws(fitted: Marginals, mean: np.ndarray, n: int = 400) -> np.ndarray:
    z = torch.randn(n, *mean.shape, generator=torch.Generator().manual_seed(0))
    return fitted.expression(torch.from_numpy(mean).float(), z).numpy()


def test_draws_have_the_expected_mean_and_the_distribution_of_new_data(fitted):
    mean, truth = counts(np.random.default_rng(1), 400)
    drawn = draws(fitted, mean)
    assert drawn.min() >= 0
    np.testing.assert_allclose(drawn.mean((0, 1)), mean.mean(0), rtol=0.03)
    # spot by spot: whatever is expected is what draws vary about
    assert np.corrcoef(drawn.mean(0).ravel(), mean.ravel())[0, 1] > 0.99
    for g in range(2):
        assert (drawn[..., g] < 0.1).mean() == pytest.approx((truth[:, g] == 0).mean(), abs=0.05)
        pooled, ends = drawn[..., g].ravel(), [0.5, 0.8, 0.95]
        np.testing.assert_allclose(
            np.quantile(pooled, ends), np.quantile(truth[:, g], ends), atol=0.25
        )


def test_spread_depends_on_what_is_expected(fitted):
    few, many = np.full((1, 2), 0.3), np.full((1, 2), 2.0)
    zeros = [(draws(fitted, mean)[..., 0] < 0.05).mean() for mean in (few, many)]
    assert zeros[0] > 0.5
    assert zeros[1] < zeros[0] - 0.2


def test_more_is_more(fitted):
    mean = torch.linspace(0, 4, 30)[:, None].expand(30, 2)
    values = fitted.expression(mean, SCORES[:, None, None].expand(61, 30, 2))
    assert (values.diff(dim=0) >= 0).all()
    assert torch.isfinite(values).all()


def test_scores_of_data_are_standard_normal(fitted):
    mean, truth = counts(np.random.default_rng(2), 3000)
    uniform = torch.rand(mean.shape, generator=torch.Generator().manual_seed(0))
    as_tensors = (torch.from_numpy(values).float() for values in (mean, truth))
    z = fitted.scores(*as_tensors, uniform).numpy()
    assert kstest(z[:, 0], norm.cdf).statistic < 0.08  # mostly zeros, so mostly drawn
    assert z.std(0) == pytest.approx(1, abs=0.08)
    assert np.abs(z.mean(0)).max() < 0.08


def test_scores_give_the_expression_back(fitted):
    mean, truth = (torch.from_numpy(v).float() for v in counts(np.random.default_rng(3), 500))
    z = fitted.scores(mean, truth, torch.rand(mean.shape))
    within = z.abs() < 3.1  # beyond it the table ends
    error = (fitted.expression(mean, z) - truth).abs()
    assert within.float().mean() > 0.98
    assert error[within].max() < 0.05


def test_a_value_that_many_scores_share_gets_one_of_them_at_random(fitted):
    mean = torch.full((4000, 2), 0.2)
    uniform = torch.linspace(1e-4, 1 - 1e-4, 4000)[:, None].expand(4000, 2)
    z = fitted.scores(mean, torch.zeros_like(mean), uniform)[:, 0]
    assert (z.diff() >= 0).all()
    assert z[-1] - z[0] > 2
    assert fitted.expression(mean, z[:, None].expand(4000, 2))[:, 0].max() < 0.02


def test_the_level_is_the_predictions_whatever_the_pairs_say(fitted):
    mean, truth = counts(np.random.default_rng(0), 4000)
    twice = Marginals.fit(mean, 2 * truth)
    np.testing.assert_allclose(twice.ratios, fitted.ratios, atol=1e-4)


@pytest.mark.parametrize("n", [3, 29, 200])
def test_few_pairs_and_constant_genes_have_finite_tables(n):
    rng = np.random.default_rng(0)
    mean = np.column_stack([rng.random(n), np.zeros(n), np.ones(n), -rng.random(n)])
    truth = np.column_stack([rng.random(n), np.zeros(n), np.ones(n), np.zeros(n)])
    fitted = Marginals.fit(mean, truth)
    z = torch.randn(5, n, 4)
    values = fitted.expression(torch.from_numpy(mean).float(), z)
    assert torch.isfinite(values).all()
    assert (values[..., 1] == 0).all()
    np.testing.assert_allclose(values[..., 2], 1, atol=1e-5)
    back = fitted.scores(*(torch.from_numpy(v).float() for v in (mean, truth)), torch.rand(n, 4))
    assert torch.isfinite(back).all()


def test_tables_without_spread_return_the_mean():
    mean = torch.rand(7, 3) + 0.1
    torch.testing.assert_close(Marginals.empty(3).expression(mean, torch.randn(7, 3)), mean)


@pytest.mark.parametrize("variance", [0.3, 1.0, 1.8])
def test_scores_of_another_variance_have_the_expected_mean_once_centred(fitted, variance):
    mean, _ = counts(np.random.default_rng(3), 200)
    expected = torch.from_numpy(mean).float()
    z = torch.randn(2000, *mean.shape, generator=torch.Generator().manual_seed(1))
    tables = fitted.centred(torch.full((2,), variance))
    drawn = tables.expression(expected, variance**0.5 * z).mean(0)
    # where a mean of ratios is next to 0 it is not scaled up all the way
    np.testing.assert_allclose(drawn.mean(0), mean.mean(0), rtol=0.1 if variance == 0.3 else 0.02)
    assert tables.ratios.max() <= 2 * fitted.ratios.max()
    if variance == 0.3:  # the rare gene's distribution is skewed: without it its mean is lower
        drawn = fitted.expression(expected, variance**0.5 * z).mean((0, 1))
        assert drawn[0].item() < 0.9 * mean[:, 0].mean()
