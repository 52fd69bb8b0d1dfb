from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from linear import (
    CHANNELS,
    LEVEL,
    N_GENES,
    WEIGHTS,
    configured,
    linear_slide,
    new_network,
    optimiser_steps,
    prepared,
    same_weights,
    scaling_of,
)
from scipy.stats import kstest

from stflow_graph.errors import Diverged
from stflow_graph.inference.inputs import SlideInputs
from stflow_graph.inference.predict import predict
from stflow_graph.stats.ensembles import intervals
from stflow_graph.training.spot_flow import fit_spot_flow

# genes of other variances, the first two of which vary together
FACTOR = np.array([[0.8, 0, 0, 0], [0.8, 0.3, 0, 0], [0, 0, 0.3, 0], [0, 0, 0, 1.2]])
COVARIANCE = FACTOR @ FACTOR.T


class Stage:
    """A network whose encoder knows the linear truth, and slides to fit its flow to."""

    def __init__(self, n: int = 49, **changes: Any) -> None:
        unscaled = {"data__standardize": "none", "data__center_targets": False}
        self.config = configured(**unscaled, **changes)
        self.learn, self.validate = (
            [self.prepared(name, n) for name in names] for names in ("ABC", "DE")
        )
        self.network: Any = new_network(self.config)
        weights = torch.zeros(2 * CHANNELS, N_GENES, dtype=torch.double)
        weights[:CHANNELS] = torch.from_numpy(WEIGHTS)
        self.network.encoder.ridge_head.set_weights(
            weights, torch.from_numpy(LEVEL), torch.eye(2 * CHANNELS).double() @ weights, 1.0
        )
        self.network.train()  # the encoder is evaluated as it will predict, whatever its mode

    def prepared(self, name: str, n: int) -> SlideInputs:
        slide = linear_slide(name, n, noise=FACTOR)
        self.scaling = scaling_of([slide], self.config)
        return prepared(slide, self.config, self.scaling)

    def fit(self, stream: int = 5) -> float:
        return fit_spot_flow(self.network, self.learn, self.validate, self.config, stream=stream)

    @torch.no_grad()
    def loss(self, slides: list[SlideInputs], n_draws: int = 200) -> float:
        """Return the flow-matching loss of the network in eval mode, by its definition."""
        self.network.eval()
        generator = torch.Generator().manual_seed(0)
        losses = []
        for inputs in slides:
            y = inputs.data.y.repeat(n_draws, 1)
            encoding = [part.repeat(n_draws, 1) for part in self.network.encoder(inputs.data)]
            t = torch.rand(len(y), generator=generator)
            y_0 = torch.randn(y.shape, generator=generator)
            y_t = (1 - t[:, None]) * y_0 + t[:, None] * y
            losses.append(F.mse_loss(self.network.flow(y_t, t, *encoding), y).item())
        return float(np.mean(losses))


def calls_of(flow: torch.nn.Module) -> list[dict[str, Any]]:
    """Return the list to which every call of the flow is added."""
    calls: list[dict[str, Any]] = []

    def record(module: Any, arguments: tuple[Any, ...]) -> None:
        weights = {key: value.clone() for key, value in module.state_dict().items()}
        values = dict(zip(("y_t", "t", "mean", "states"), arguments, strict=True))
        calls.append(
            {**values, "weights": weights, "training": module.training}
            | {"learns": torch.is_grad_enabled()}
        )

    flow.register_forward_pre_hook(record)
    return calls


def test_on_linear_slides_the_loss_falls_and_intervals_hold():
    # in a few Euler steps samples spread too little, which calibration makes good
    settings = {"train__flow_steps": 100, "train__flow_lr": 1e-2, "flow__n_sample_steps": 25}
    stage = Stage(n=225, **settings)
    encoder = stage.network.eval().encoder
    errors = [F.mse_loss(encoder(s.data).mean, s.data.y).item() for s in stage.validate]
    mean_alone = np.mean(errors)
    assert mean_alone == pytest.approx(np.diag(COVARIANCE).mean(), rel=0.2)  # the encoder is true
    best_loss = stage.fit()
    assert best_loss == pytest.approx(stage.loss(stage.validate, 50), rel=0.08)
    assert best_loss < 0.6 * mean_alone
    covered, residuals = [], []
    for inputs in stage.validate:
        network, (flow, scaling) = stage.network.eval(), (stage.config.flow, stage.scaling)
        predicted = predict(network, inputs, flow, scaling, n_samples=19, seed=1)
        low, high = intervals(predicted.samples, 0.8)
        covered.append(((low <= inputs.slide.truth) & (inputs.slide.truth <= high)).mean(axis=0))
        residuals.append((predicted.samples - predicted.mean).reshape(-1, N_GENES))
    coverage = np.mean(covered, axis=0)
    assert ((coverage > 0.7) & (coverage < 0.9)).all(), coverage
    # genes that vary together do so in the samples
    correlation = np.corrcoef(np.concatenate(residuals).T)
    assert correlation[0, 1] > 0.8
    assert abs(correlation[0, 2:]).max() < 0.5


def test_the_weights_with_the_lowest_validation_loss_are_kept():
    # steps so large that the first weights, set from the residuals' variance, are the best
    stage = Stage(train__flow_steps=60, train__flow_lr=0.3)
    calls = calls_of(stage.network.flow)
    best_loss = stage.fit()
    kept = {key: value.clone() for key, value in stage.network.flow.state_dict().items()}
    checks = [call["weights"] for call in calls if not call["learns"]]
    losses = []
    for weights in checks:
        stage.network.flow.load_state_dict(weights)
        losses.append(stage.loss(stage.validate, 20))
    assert len(losses) == 4  # before the first step and after each twentieth
    assert max(losses) > 1.5 * min(losses)
    assert same_weights(kept, checks[int(np.argmin(losses))])
    assert best_loss == pytest.approx(min(losses), rel=0.1)


def test_every_twentieth_step_and_the_last_are_validated():
    stage = Stage(n=16, train__flow_steps=27)
    calls = calls_of(stage.network.flow)
    stage.fit()
    expected = [False, *[True] * 20, False, *[True] * 7, False]
    assert [call["learns"] for call in calls] == expected


def test_steps_are_flow_matching_with_dropout_and_a_time_for_each_spot():
    stage = Stage(n=36, train__flow_steps=20, train__flow_spots=50, train__flow_lr=1e-4)
    calls = calls_of(stage.network.flow)
    with optimiser_steps() as taken:
        stage.fit()
    assert {(step["lr"], step["weight_decay"]) for step in taken} == {(1e-4, 1e-2)}
    norms = [step["norm"] for step in taken]
    assert max(norms) < 4 * min(norms)  # gradients do not pile up
    assert all(call["training"] == call["learns"] for call in calls)
    steps = [call for call in calls if call["learns"]]
    assert [len(call["y_t"]) for call in steps] == [50] * 20
    checks = [call for call in calls if not call["learns"]]
    assert len(checks[0]["y_t"]) == 8 * 2 * 36  # eight draws for each spot held out
    assert all(torch.equal(checks[0]["y_t"], call["y_t"]) for call in checks)  # the same noise
    truth = {
        tuple(mean.tolist()): y
        for s in stage.learn
        for mean, y in zip(stage.network.eval().encoder(s.data).mean, s.data.y, strict=True)
    }
    rows = [tuple(mean.tolist()) for call in steps for mean in call["mean"]]
    assert set(rows) == set(truth)  # all spots, drawn at random
    assert len(set(rows[:50])) > 30
    y = torch.stack([truth[row] for row in rows])
    t = torch.cat([call["t"] for call in steps])
    y_t = torch.cat([call["y_t"] for call in steps])
    assert len(t.unique()) > 990
    assert kstest(t.numpy(), "uniform").pvalue > 0.01
    early = t < 0.9
    y_0 = ((y_t - t[:, None] * y) / (1 - t[:, None]))[early].flatten()
    assert kstest(y_0.numpy(), "norm").pvalue > 0.01


def test_few_spots_are_all_a_step_has():
    stage = Stage(n=9, train__flow_steps=1)
    calls = calls_of(stage.network.flow)
    stage.fit()
    assert [len(call["y_t"]) for call in calls if call["learns"]] == [27]


def test_the_encoder_stays_and_the_flow_starts_from_its_residuals():
    stage = Stage(train__flow_steps=1, train__flow_lr=1e-30)
    before = {key: value.clone() for key, value in stage.network.encoder.state_dict().items()}
    stage.fit()
    assert same_weights(stage.network.encoder.state_dict(), before)
    flow = stage.network.flow
    y = torch.cat([s.data.y for s in stage.learn])
    encodings = [stage.network.eval().encoder(s.data) for s in stage.learn]
    variance = (y - torch.cat([e.mean for e in encodings])).var(0)
    torch.testing.assert_close(flow.log_variance.bias, variance.log())
    states = torch.cat([e.states for e in encodings])
    assert ((states >= flow.lowest) & (states <= flow.highest)).float().mean() > 0.97
    assert ((states < flow.lowest) | (states > flow.highest)).any(0).all()  # 1% at either end


def test_a_gene_without_residuals_has_a_finite_start():
    stage = Stage(n=16, train__flow_steps=1)
    for inputs in (*stage.learn, *stage.validate):
        inputs.data.y[:, 2] = stage.network.eval().encoder(inputs.data).mean[:, 2].detach()
    stage.fit()
    start = stage.network.flow.log_variance.bias[2].item()
    assert start == pytest.approx(np.log(1e-4), abs=0.1)


def test_random_numbers_follow_from_the_stream_alone():
    weights = []
    for seed, stream in ((0, 5), (1, 5), (0, 6)):
        stage = Stage(n=16, train__flow_steps=20)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        for parameter in stage.network.flow.parameters():
            parameter.data.fill_(seed)  # weights are drawn anew
        stage.fit(stream)
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(stage.network.flow.state_dict())
    assert same_weights(weights[0], weights[1])
    assert not same_weights(weights[0], weights[2])


def test_held_out_slides_choose_among_weights_that_do_not_depend_on_them():
    kept = []
    for shift in (0.0, 3.0):
        stage = Stage(n=25, train__flow_steps=40)
        for inputs in stage.validate:
            inputs.data.y.add_(shift * torch.randn(inputs.data.y.shape))
        calls = calls_of(stage.network.flow)
        stage.fit()
        checks = [call["weights"] for call in calls if not call["learns"]]
        assert sum(same_weights(stage.network.flow.state_dict(), w) for w in checks) == 1
        kept.append([call["weights"] for call in calls])
    assert all(same_weights(a, b) for a, b in zip(*kept, strict=True))


@pytest.mark.parametrize("side", ["learn", "validate"])
def test_a_loss_that_is_not_finite_is_an_error(side):
    stage = Stage(n=16, train__flow_steps=20)
    getattr(stage, side)[0].data.y[0, 0] = torch.inf
    with pytest.raises(Diverged, match=r"flow, step (0|20): loss (inf|nan)\. .*train\.flow_lr"):
        stage.fit()
