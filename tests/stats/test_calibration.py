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


def test_samples_that_are_too_narrow_or_too_wide_are_mended():
    spread = np.array([3.0, 1.0, 0.5, 6.0])
    calibration = Calibration.fit([part(0, spread=spread), part(1, spread=spread)])
    np.testing.assert_allclose(calibration.spread, spread, rtol=0.15)
    fresh = part(2, spread=spread)
    mended = calibration.apply(fresh.mean, fresh.samples)
    for each in coverage(mended, fresh.truth):
        assert each.covered == pytest.approx(each.level, abs=0.03)
        np.testing.assert_allclose(each.covered_per_gene, each.level, atol=0.06)


def test_no_sample_is_negative_and_the_mean_does_not_move():
    given = part(0, spread=np.array([2.0]), level=0.5)
    calibration = Calibration.fit([given])
    mended = calibration.apply(given.mean, given.samples)
    assert mended.min() == 0
    assert mended.dtype == given.samples.dtype
    above = mended[:, given.mean[:, 0] > 5]
    assert above.shape[0] == 19


def test_trust_is_the_mean_correlation_over_held_out_slides():
    parts = [part(seed, spread=np.ones(3)) for seed in (0, 1)]
    for each in parts:
        each.truth[:, 1] = 4.0  # constant everywhere
    parts[0].truth[:, 2] = 4.0  # constant in one of two slides
    calibration = Calibration.fit(parts)
    r = [np.corrcoef(p.mean[:, 0], p.truth[:, 0])[0, 1] for p in parts]
    assert calibration.pearson[0] == pytest.approx(np.mean(r))
    assert calibration.pearson_sd[0] == pytest.approx(np.std(r, ddof=1))
    assert np.isnan(calibration.pearson[1])
    assert np.isfinite(calibration.pearson[2])
    assert np.isnan(calibration.pearson_sd[2])


def test_samples_that_were_not_calibrated_are_left():
    given = part(0, spread=np.ones(2), level=0.0)
    calibration = Calibration.fit([HeldOut(given.mean, None, given.truth)])
    assert np.isnan(calibration.spread).all()
    assert calibration.apply(given.mean, given.samples) is given.samples
