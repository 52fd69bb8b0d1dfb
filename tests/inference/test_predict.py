from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from linear import N_GENES, configured, linear_slide, lively, new_network, prepared, scaling_of

from stflow_graph.config import Config
from stflow_graph.data.normalise import Normalisation
from stflow_graph.data.slide import Slide
from stflow_graph.errors import BadConfig
from stflow_graph.flow import prior as priors
from stflow_graph.flow import sampler as samplers
from stflow_graph.flow.noise import spot_keys, spot_uniform
from stflow_graph.inference.predict import Predicted, as_expression, draw_samples, predict
from stflow_graph.nn.ensemble import DenoiserEnsemble

SLIDE = linear_slide("S", 25)
KEYS = spot_keys("S", SLIDE.barcodes)


def predicted(kind: str, slide: Slide = SLIDE, **options: Any) -> Predicted:
    config = configured(kind)
    network, scaling = lively(new_network(config)), scaling_of([SLIDE], config)
    return predict(network, prepared(slide, config, scaling), config.flow, scaling, **options)


def scaled(config: Config) -> Normalisation:
    return scaling_of([SLIDE], config)


@pytest.mark.parametrize("kind", ["two-stage", "regression"])
def test_the_mean_of_a_two_stage_denoiser_is_its_encoders(kind):
    config = configured(kind)
    network, scaling = lively(new_network(config)), scaled(config)
    inputs = prepared(SLIDE, config, scaling)
    found = predict(network, inputs, config.flow, scaling)
    expected = network.encoder(inputs.data).mean.detach().numpy() + scaling.y_mean
    np.testing.assert_allclose(found.mean, expected, rtol=1e-5)
    assert found.mean.dtype == np.float32
    assert found.samples is None


def test_samples_follow_the_flow_from_the_noise_of_their_spots():
    config = configured()
    network, scaling = lively(new_network(config)), scaled(config)
    inputs = prepared(SLIDE, config, scaling)
    found = predict(network, inputs, config.flow, scaling, n_samples=3, seed=7)
    alone = predict(network, inputs, config.flow, scaling)
    np.testing.assert_array_equal(found.mean, alone.mean)
    encoding = network.encoder(inputs.data)
    for i, sample in enumerate(found.samples):
        y = priors.GaussianPrior()(spot_uniform(KEYS, N_GENES, seed=7, sample=i))
        for step in range(2):
            estimate = network.flow(y, torch.tensor([step / 2]), *encoding)
            y = y + (estimate - y) / (2 - step)
        np.testing.assert_allclose(sample, y.detach().numpy() + scaling.y_mean, rtol=1e-4)


@pytest.mark.parametrize("kind", ["graph", "transformer"])
def test_the_mean_of_other_denoisers_is_that_of_their_samples(kind):
    found = predicted(kind, n_samples=3)
    assert found.samples.shape == (3, 25, N_GENES)
    np.testing.assert_allclose(found.mean, found.samples.mean(axis=0), rtol=1e-5)
    assert found.mean.dtype == np.float32
    single = predicted(kind)
    np.testing.assert_array_equal(single.mean, found.samples[0])
    assert single.samples is None
    assert np.abs(found.samples[0] - found.samples[1]).max() > 1e-2


@pytest.mark.parametrize("kind", ["two-stage", "graph"])
def test_noise_depends_on_seed_slide_barcode_and_sample_alone(kind):
    found = predicted(kind, n_samples=3, seed=1)
    np.testing.assert_array_equal(predicted(kind, n_samples=2, seed=1).samples, found.samples[:2])
    order = np.random.default_rng(0).permutation(25)
    moved = predicted(kind, SLIDE.take(order), n_samples=3, seed=1)
    np.testing.assert_allclose(moved.samples, found.samples[:, order], rtol=1e-3, atol=1e-3)
    renamed = dataclasses.replace(SLIDE, name="T")
    for other in (predicted(kind, n_samples=3, seed=2), predicted(kind, renamed, n_samples=3)):
        assert np.abs(other.samples - found.samples).mean() > 1e-2


def test_the_estimates_of_an_ensemble_are_averaged_in_every_step():
    config = configured("graph")
    members = [lively(new_network(config), seed) for seed in range(2)]
    scaling = scaled(config)
    inputs = prepared(SLIDE, config, scaling)
    found = predict(DenoiserEnsemble(members), inputs, config.flow, scaling)
    models = [member.bind(inputs.data) for member in members]

    def mean(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (models[0](y, t) + models[1](y, t)) / 2

    with torch.no_grad():
        expected = draw_samples([mean], KEYS, config.flow, scaling, 1, 0)
    np.testing.assert_allclose(found.mean, expected[0], rtol=1e-4, atol=1e-4)


def test_a_regression_has_no_samples():
    with pytest.raises(BadConfig, match="n_samples: .* regression has no samples"):
        predicted("regression", n_samples=2)


@pytest.mark.parametrize(
    ("prior", "expected"),
    [
        ("gaussian", priors.GaussianPrior()),
        ("zinb", priors.ZINBPrior()),
        ("zero", priors.ZeroPrior()),
    ],
)
@pytest.mark.parametrize("n_models", [1, 2, 3])
def test_samples_are_drawn_from_the_models_in_turn(prior, expected, n_models):
    flow = configured(flow__prior=prior, flow__n_sample_steps=3).flow
    calls: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def model(i: int) -> samplers.Model:
        def estimate(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            calls.append((i, y, t))
            return torch.full_like(y, i)

        return estimate

    models = [model(i) for i in range(n_models)]
    scaling = scaled(configured())
    found = draw_samples(models, KEYS, flow, scaling, n_samples=5, seed=4)
    turns = [i % n_models for i in range(5)]
    for sample, turn in zip(found, turns, strict=True):
        level = np.broadcast_to(scaling.y_mean + turn, sample.shape)
        np.testing.assert_allclose(sample, level, rtol=1e-6)
    assert [i for i, _, _ in calls] == [turn for turn in turns for _ in range(3)]
    for i in range(5):
        _, y_0, t = calls[3 * i]
        noise = spot_uniform(KEYS, N_GENES, seed=4, sample=i)
        torch.testing.assert_close(y_0, expected(noise))
        assert t.tolist() == [0]


@pytest.mark.parametrize("name", samplers.__all__)
def test_the_sampler_is_the_configured_one(name):
    flow = configured(flow__sampler=name, flow__n_sample_steps=4).flow
    config = configured(data__center_targets=False)

    def model(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(3 * y) + t

    found = draw_samples([model], KEYS, flow, scaled(config), 1, 0)
    y_0 = priors.GaussianPrior()(spot_uniform(KEYS, N_GENES, seed=0))
    expected = getattr(samplers, name)(model, y_0, 4)
    np.testing.assert_allclose(found[0], expected.numpy(), rtol=1e-5, atol=1e-6)


def test_expression_is_float32_in_log1p_units():
    y = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.bfloat16)
    level = scaled(configured())
    found = as_expression(y, level)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], level.y_mean + [1, 2, 3, 4], rtol=1e-6)
    absolute = as_expression(y.double(), scaled(configured(data__center_targets=False)))
    assert absolute.dtype == np.float32
    assert absolute.tolist() == [[1, 2, 3, 4]]
