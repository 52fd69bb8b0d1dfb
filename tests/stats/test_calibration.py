from __future__ import annotations

import numpy as np
import pytest

from stflow_graph.stats.calibration import Calibration, HeldOut
from stflow_graph.stats.ensembles import coverage


def part(seed: int, *, spread: np.ndarray, n: int = 800, level: float = 10.0) -> HeldOut:
    """Return a prediction whose samples are too narrow by the factor ``spread`` of each gene."""
    rng = np.random.default_rng(seed)
    g = len(spread)
    mean = level + rng.normal(size=(n, g))
    truth = mean + rng.normal(size=(n, g))
    samples = mean + rng.normal(size=(19, n, g)) / spread
    return HeldOut(mean, samples, truth)


def test_samples_that_are_too_narrow_or_too_wide_are_corrected():
    spread = np.array([3.0, 1.0, 0.5, 6.0])
    calibration = Calibration.fit([part(0, spread=spread), part(1, spread=spread)])
    np.testing.assert_allclose(calibration.spread, spread, rtol=0.15)
    fresh = part(2, spread=spread)
    for result in coverage(calibration.apply(fresh.mean, fresh.samples), fresh.truth):
        assert result.covered == pytest.approx(result.level, abs=0.03)
        np.testing.assert_allclose(result.covered_per_gene, result.level, atol=0.06)


def test_samples_are_spread_about_the_mean_and_clipped_at_zero():
    prediction = part(0, spread=np.array([2.0]), level=0.5)
    calibration = Calibration.fit([prediction])
    spread = calibration.apply(prediction.mean, prediction.samples)
    expected = prediction.mean + calibration.spread * (prediction.samples - prediction.mean)
    np.testing.assert_allclose(spread, np.maximum(expected, 0))
    assert spread.min() == 0
    assert spread.dtype == prediction.samples.dtype


def test_expected_accuracy_is_the_mean_correlation_over_held_out_slides():
    parts = [part(seed, spread=np.ones(3)) for seed in (0, 1)]
    for slide in parts:
        slide.truth[:, 1] = 4.0  # constant everywhere
    parts[0].truth[:, 2] = 4.0  # constant in one of two slides
    calibration = Calibration.fit(parts)
    r = [np.corrcoef(p.mean[:, 0], p.truth[:, 0])[0, 1] for p in parts]
    assert calibration.pearson[0] == pytest.approx(np.mean(r))
    assert calibration.pearson_sd[0] == pytest.approx(np.std(r, ddof=1))
    assert np.isnan(calibration.pearson).tolist() == [False, True, False]
    assert np.isnan(calibration.pearson_sd).tolist() == [False, True, True]


def test_samples_that_were_not_calibrated_are_left():
    prediction = part(0, spread=np.ones(2), level=0.0)
    calibration = Calibration.fit([HeldOut(prediction.mean, None, prediction.truth)])
    assert np.isnan(calibration.spread).all()
    assert calibration.apply(prediction.mean, prediction.samples) is prediction.samples
