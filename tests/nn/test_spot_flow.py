import math

import pytest
import torch
from slides import noise

from stflow_graph.flow.sampler import euler
from stflow_graph.nn.spot_flow import SpotFlow

N, C, G = 400, 8, 3
MEAN, STATES, Y = noise(N, G), noise(N, C, seed=1), noise(N, G, seed=2)
T = torch.tensor([0.6])


@pytest.fixture
def flow() -> SpotFlow:
    """A flow whose weights all take part."""
    torch.manual_seed(0)
    flow = SpotFlow(C, G)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return flow.eval()


def test_it_is_its_formula(flow):
    s_2 = flow.log_variance(STATES).exp()
    residual = Y - T * MEAN
    hidden = flow.from_state(STATES) + residual @ flow.from_residual.weight.T + flow.from_time(T)
    hidden = hidden / (1 + (-hidden).exp())
    gain = T * s_2 / (T**2 * s_2 + (1 - T) ** 2)
    correction = hidden @ flow.mlp[2].weight.T + flow.mlp[2].bias
    expected = MEAN + gain * residual + T * correction
    torch.testing.assert_close(flow(Y, T, MEAN, STATES), expected)


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_at_time_0_the_estimate_is_the_mean_for_any_noise(flow, scale):
    torch.testing.assert_close(flow(scale * Y, 0 * T, MEAN, STATES), MEAN)


def test_normal_residuals_are_sampled_exactly():
    # y ~ N(mean, s²): the first two terms are the exact denoiser, the MLP is still 0
    n, flow = 20_000, SpotFlow(C, 1).eval()
    with torch.no_grad():
        flow.log_variance.bias.fill_(2 * math.log(0.4))
        mean, states = torch.full((n, 1), 1.5), torch.zeros(n, C)
        y = euler(lambda y, t: flow(y, t, mean, states), noise(n, 1), 100)
    assert y.mean().item() == pytest.approx(1.5, abs=0.01)
    assert y.std().item() == pytest.approx(0.4, abs=0.02)


def test_spots_do_not_see_each_other_and_may_have_times_of_their_own(flow):
    t = torch.linspace(0.1, 0.9, N)
    whole, rows = flow(Y, t, MEAN, STATES), torch.tensor([9, 2])
    torch.testing.assert_close(flow(Y[rows], t[rows], MEAN[rows], STATES[rows]), whole[rows])
    torch.testing.assert_close(flow(Y[:1], t[:1], MEAN[:1], STATES[:1]), whole[:1])


def test_states_beyond_those_of_training_are_clamped_to_their_range(flow):
    free = flow(Y, T, MEAN, STATES)
    flow.set_range(STATES)
    ordered = STATES.sort(dim=0).values  # 1% of 400 spots lie below, 1% above
    torch.testing.assert_close(flow.lowest, ordered[4])
    torch.testing.assert_close(flow.highest, ordered[-5])
    inside = ((STATES >= ordered[4]) & (STATES <= ordered[-5])).all(1)
    assert 250 < inside.sum() < N
    torch.testing.assert_close(flow(Y, T, MEAN, STATES)[inside], free[inside])
    ends = torch.where(STATES > 0, ordered[-5], ordered[4])
    clamped = flow(Y, T, MEAN, STATES.sign() * 1e6)
    torch.testing.assert_close(clamped, flow(Y, T, MEAN, ends))
    flow.set_range(STATES[:1])
    torch.testing.assert_close(flow.lowest, STATES[0])
    flow.reset_parameters()
    assert (flow.lowest < -1e30).all()
    assert (flow.highest > 1e30).all()


def test_training_begins_with_unit_variance_and_no_correction(flow):
    flow.reset_parameters()
    expected = MEAN + T / (T**2 + (1 - T) ** 2) * (Y - T * MEAN)
    torch.testing.assert_close(flow(Y, T, MEAN, STATES), expected)


@pytest.mark.parametrize("sign", [-1, 1])
def test_variances_are_bounded(flow, sign):
    flow.reset_parameters()
    torch.nn.init.constant_(flow.log_variance.bias, 100.0 * sign)
    s_2 = math.exp(10 * sign)
    expected = MEAN + T * s_2 / (T**2 * s_2 + (1 - T) ** 2) * (Y - T * MEAN)
    torch.testing.assert_close(flow(Y, T, MEAN, STATES), expected)


def test_dropout_acts_in_training_alone(flow):
    assert torch.equal(*(flow(Y, T, MEAN, STATES) for _ in "ab"))
    flow.train()
    assert not torch.equal(*(flow(Y, T, MEAN, STATES) for _ in "ab"))


def test_expression_of_another_shape_is_refused(flow):
    with pytest.raises(ValueError, match=r"y_t must be \[400, 3\], got \[400, 2\]"):
        flow(Y[:, :2], T, MEAN, STATES)
