import math

import numpy as np
import pytest
import torch
from slides import noise

from stflow_graph.flow import sampler as samplers
from stflow_graph.flow.sampler import estflow, euler, heun, stflow

Y_0 = noise(5, 4).double()
MEAN, SD = 1.5, 0.4


class Recorder:
    """Wraps a function of (y, t) as a model and keeps its calls and answers."""

    def __init__(self, function):
        self.function, self.times, self.answers = function, [], []

    def __call__(self, y_t, t):
        assert tuple(t.shape) == (1,)
        assert t.dtype == y_t.dtype
        self.times.append(t.item())
        self.answers.append(self.function(y_t, t))
        return self.answers[-1]


def posterior_mean(y, t):
    """E[y_1 | y_t] for y_0 ~ N(0, 1) and y_1 ~ N(MEAN, SD²), independent."""
    return MEAN + t * SD**2 / ((1 - t) ** 2 + t**2 * SD**2) * (y - t * MEAN)


def gaussian_flow(y, start):
    """The flow of that model carries the state's standard score along."""
    spread = math.sqrt((1 - start) ** 2 + start**2 * SD**2)
    return MEAN + SD * (y - start * MEAN) / spread


def decay(y, t):
    """The prediction of y_1 whose flow is dy/dt = -y."""
    return t * y


def order(sampler, model, exact, steps) -> float:
    errors = [(sampler(Recorder(model), Y_0, n) - exact).abs().max().item() for n in steps]
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


@pytest.mark.parametrize(
    ("sampler", "start", "expected", "steps"),
    [
        (euler, 0.0, 1, (64, 128, 256, 512)),
        (stflow, 0.01, 1, (64, 128, 256, 512)),
        (heun, 0.0, 2, (65, 129, 257, 513)),
        (heun, 0.0, 2, (64, 128, 256, 512)),
    ],
)
def test_order_of_convergence(sampler, start, expected, steps):
    flows = [(posterior_mean, gaussian_flow(Y_0, start)), (decay, Y_0 * math.exp(start - 1))]
    for model, exact in flows:
        assert order(sampler, model, exact, steps) == pytest.approx(expected, abs=0.1)


def test_the_gaussian_prior_is_carried_to_the_gaussian_target():
    y_0 = noise(20_000, 1, seed=1).double()
    y_1 = heun(posterior_mean, y_0, 41)
    assert y_1.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert y_1.std().item() == pytest.approx(SD, rel=0.02)


@pytest.fixture(params=samplers.__all__)
def sampler(request):
    return getattr(samplers, request.param)


@pytest.mark.parametrize("n_steps", [1, 2, 3, 4, 5, 20, 21])
def test_n_steps_calls_in_order_of_time_end_on_the_last_prediction(sampler, n_steps):
    model = Recorder(posterior_mean)
    y_1 = sampler(model, Y_0, n_steps)
    assert len(model.times) == n_steps
    assert 0 <= model.times[0] <= 0.01
    assert model.times[-1] < 1
    assert model.times == sorted(model.times)
    assert torch.equal(y_1, model.answers[-1])


@pytest.mark.parametrize("points", [2, 5, 11])
def test_stflow_is_the_published_recipe(points):
    t, y = torch.linspace(0.01, 1, points).double(), Y_0
    for t_1, t_2 in zip(t[:-1], t[1:], strict=True):
        prediction = posterior_mean(y, t_1)
        y = y + (t_2 - t_1) * (prediction - y) / (1 - t_1)
    actual = stflow(Recorder(posterior_mean), Y_0, points - 1)
    assert torch.allclose(actual, prediction, atol=1e-6)


@pytest.mark.parametrize("steps", [2, 5, 11])
def test_estflow_is_the_recipe_of_the_fork(steps):
    y = Y_0
    for s in range(steps - 1):
        prediction = posterior_mean(y, s / steps)
        y = y + (prediction - y) / steps
    assert torch.allclose(estflow(Recorder(posterior_mean), Y_0, steps - 1), prediction)


def test_heun_is_exact_where_the_velocity_is_linear_in_time():
    # y(t) = y_0 + a t + b t², seen by a model that knows where it is
    a, b = 0.7, -1.3
    model = Recorder(lambda y, t: y + (1 - t) * (a + 2 * b * t))
    last = 1 / 4  # the last of 4 parts is an Euler step, which errs by b / 16
    assert torch.allclose(heun(model, Y_0, 7), Y_0 + a + b - b * last**2)


def test_no_steps_are_refused(sampler):
    with pytest.raises(ValueError, match="n_steps must be >= 1, got 0"):
        sampler(Recorder(decay), Y_0, 0)
