import math

import pytest
import torch
from scipy import stats

from stflow_graph.flow import prior as priors
from stflow_graph.flow import spot_uniform
from stflow_graph.flow.prior import GaussianPrior, ZeroPrior, ZINBPrior

# the midpoints of equal cells: averages over them are integrals over u
GRID = (torch.arange(2**20).double() + 0.5) / 2**20
CASES = [ZINBPrior(), ZINBPrior(2.5, 1.0, -1.5), ZINBPrior(0.3, 2.0, 0.7), ZINBPrior(1.0, -30.0)]


def pmf(prior: ZINBPrior, size: int = 20_000) -> torch.Tensor:
    """Return the counts' probabilities from torch's negative binomial."""
    counts = torch.arange(size).double()
    plain = torch.distributions.NegativeBinomial(
        torch.tensor(prior.total_count).double(), logits=torch.tensor(prior.logits).double()
    )
    extra = torch.sigmoid(torch.tensor(prior.zero_inflation_logit).double())
    probability = (1 - extra) * plain.log_prob(counts).exp()
    probability[0] += extra
    return probability


@pytest.mark.parametrize("prior", CASES, ids=str)
def test_zinb_moments_are_analytic(prior):
    counts = torch.expm1(prior(GRID))
    keep = torch.sigmoid(torch.tensor(-prior.zero_inflation_logit).double()).item()
    mean = prior.total_count * math.exp(prior.logits)
    second = mean * (1 + math.exp(prior.logits)) + mean**2
    assert counts.mean().item() == pytest.approx(keep * mean, rel=1e-3, abs=1e-9)
    variance = keep * second - (keep * mean) ** 2
    assert counts.var().item() == pytest.approx(variance, rel=1e-2, abs=1e-9)


@pytest.mark.parametrize("prior", CASES, ids=str)
def test_zinb_frequencies_are_its_probabilities(prior):
    frequency = torch.expm1(prior(GRID)).round().long().bincount(minlength=50).double() / len(GRID)
    expected = pmf(prior)
    n = min(len(frequency), len(expected))
    # a quantile function places each step within one cell of the grid
    assert (frequency.cumsum(0)[:n] - expected.cumsum(0)[:n]).abs().max() <= 1.01 / len(GRID)


def test_published_defaults_are_a_zero_inflated_geometric():
    u = torch.rand(100_000, generator=torch.Generator().manual_seed(0)).clamp(1e-6).double()
    p = 1 / (1 + math.exp(-0.1))
    geometric = torch.floor(torch.log1p(-((u - 0.5) / 0.5).clamp(min=0)) / math.log(p))
    assert torch.allclose(ZINBPrior()(u), geometric.log1p())


def test_moments_and_distribution_of_the_gaussian_and_of_zeros():
    y = GaussianPrior()(GRID)
    assert y.mean().item() == pytest.approx(0, abs=1e-9)
    assert y.var().item() == pytest.approx(1, rel=1e-4)
    assert (y**4).mean().item() == pytest.approx(3, rel=1e-3)
    assert not ZeroPrior()(GRID).any()
    sample = GaussianPrior()(spot_uniform(torch.arange(2000), 50, seed=0))
    assert stats.kstest(sample.flatten().numpy(), "norm").pvalue > 0.01


@pytest.fixture(params=priors.__all__)
def prior(request):
    return getattr(priors, request.param)()


def test_shape_dtype_and_order_follow_the_uniforms(prior):
    u = spot_uniform(torch.arange(50), 6, seed=0)
    y = prior(u)
    assert y.shape == u.shape
    assert y.dtype == u.dtype
    assert torch.equal(prior(u.T), y.T)  # no warning about strides
    assert torch.equal(prior(u[:7, 2:]), y[:7, 2:])
    ordered = prior(u.flatten().sort().values)
    assert (ordered.diff() >= 0).all()


def test_extreme_uniforms_give_finite_samples(prior):
    u = torch.tensor([2.0**-24, 1 - 2.0**-24, 1e-30])
    assert torch.isfinite(prior(u)).all()
    if isinstance(prior, ZINBPrior):
        assert (prior(u) >= 0).all()


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, math.nan])
def test_uniforms_outside_the_open_interval_are_refused(prior, value):
    with pytest.raises(ValueError, match=r"inside \(0, 1\).*\[2, 1\]"):
        prior(torch.tensor([[0.5], [value]]))


@pytest.mark.parametrize("logits", [60.0, 800.0])
def test_huge_rates_are_clamped(logits):
    y = ZINBPrior(logits=logits)(torch.tensor([0.4, 0.75, 1 - 2.0**-24]).double())
    assert torch.isfinite(y).all()
    assert y[0] == 0
    # the median of a geometric count of mean 1e6
    assert torch.expm1(y[1]).item() == pytest.approx(1e6 * math.log(2), rel=1e-3)
    assert torch.expm1(y[2]).item() == pytest.approx(1e6)


@pytest.mark.parametrize("arguments", [(0.0,), (-1.0,), (1.0, math.inf), (1.0, 0.0, math.nan)])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=r"finite and total_count > 0, got ZINBPrior\("):
        ZINBPrior(*arguments)


@pytest.mark.gpu
def test_is_the_same_on_a_gpu(prior):
    u = spot_uniform(torch.arange(1000), 50, seed=0)
    assert torch.allclose(prior(u.cuda()).cpu(), prior(u), rtol=0, atol=1e-6)
