from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from scipy.integrate import trapezoid

from stflow_graph.stats.ensembles import (
    coverage,
    crps_per_gene,
    energy_distance_per_gene,
    energy_score,
)


def test_crps_equals_the_integral_that_defines_it():
    rng = np.random.default_rng(0)
    samples, truth = rng.normal(size=(5, 3, 2)), rng.normal(size=(3, 2))
    z = np.linspace(-6, 6, 48_001)[:, None, None]
    below = np.mean([one <= z for one in samples], axis=0)
    integral = trapezoid((below - (truth <= z)) ** 2, z[:, 0, 0], axis=0)
    np.testing.assert_allclose(crps_per_gene(samples, truth), integral.mean(0), atol=5e-4)
    np.testing.assert_allclose(
        crps_per_gene(samples[:1], truth), np.abs(samples[0] - truth).mean(0)
    )


def test_crps_of_many_normal_samples_is_the_known_one():
    rng = np.random.default_rng(0)
    truth = np.array([[0.0, 1.3]])
    result = crps_per_gene(rng.normal(size=(200_000, 1, 2)), truth)
    y = truth[0]
    normal = scipy.stats.norm
    expected = y * (2 * normal.cdf(y) - 1) + 2 * normal.pdf(y) - 1 / np.sqrt(np.pi)
    np.testing.assert_allclose(result, expected, atol=5e-3)


def test_energy_score_of_one_gene_is_crps_and_grows_with_correlation_that_is_wrong():
    rng = np.random.default_rng(0)
    samples, truth = rng.normal(size=(6, 20, 1)), rng.normal(size=(20, 1))
    assert energy_score(samples, truth) == pytest.approx(crps_per_gene(samples, truth)[0])
    one = rng.normal(size=(400, 1))
    x = rng.normal(size=(100, 400, 1))
    together, opposed = np.concatenate([x, x], axis=2), np.concatenate([x, -x], axis=2)
    truth = np.hstack([one, one])
    assert energy_score(together, truth) < energy_score(opposed, truth) - 0.05
    np.testing.assert_allclose(
        crps_per_gene(together, truth), crps_per_gene(opposed, truth), atol=0.05
    )


def test_few_fair_samples_score_best_with_the_spread_of_the_truth():
    rng = np.random.default_rng(0)
    truth, samples = rng.normal(size=(20_000, 1)), rng.normal(size=(5, 20_000, 1))
    spreads = [0.6, 0.8, 1.0, 1.25, 1.6]
    fair = [crps_per_gene(s * samples, truth, fair=True)[0] for s in spreads]
    plain = [crps_per_gene(s * samples, truth)[0] for s in spreads]
    assert np.argmin(fair) == 2
    assert np.argmin(plain) < 2


def test_energy_distance_is_0_for_the_same_values_wherever_they_lie(pair):
    p, t = pair
    shuffled = np.random.default_rng(0).permuted(t, axis=0)
    np.testing.assert_allclose(energy_distance_per_gene(np.stack([shuffled, t]), t), 0, atol=1e-7)
    assert (energy_distance_per_gene(p[None], t) > 0.1).all()


@pytest.mark.parametrize("n_samples", [2, 8, 25])
def test_coverage_of_a_calibrated_ensemble_is_what_it_says(n_samples):
    rng = np.random.default_rng(0)
    draws = rng.gamma(2.0, size=(n_samples + 1, 20_000, 2))
    for part in coverage(draws[1:], draws[0]):
        assert part.calibrated == pytest.approx(min(part.level, (n_samples - 1) / (n_samples + 1)))
        assert part.covered == pytest.approx(part.calibrated, abs=0.02)
    narrow = coverage(draws[1:] * 0.1, draws[0])
    for wide, tenth in zip(coverage(draws[1:], draws[0]), narrow, strict=True):
        assert tenth.width == pytest.approx(wide.width / 10)
    assert all(part.covered < part.calibrated for part in narrow)


@pytest.mark.parametrize("n_samples", [9, 16, 19])
def test_coverage_of_values_that_many_samples_share_is_what_it_says(n_samples):
    rng = np.random.default_rng(0)
    draws = np.maximum(rng.normal(size=(20, 20_000, 2)), 0)  # half of all are 0
    for part in coverage(draws[1 : 1 + n_samples], draws[0]):
        assert part.covered == pytest.approx(part.calibrated, abs=0.01)
    # where all values are one, every rank is as likely
    (half,) = coverage(np.zeros((n_samples, 5, 1)), np.zeros((5, 1)), [0.5])
    assert half.covered == pytest.approx(0.5)


def test_a_value_between_two_samples_is_inside_with_the_share_of_its_ranks():
    samples = np.arange(1.0, 10.0)[:, None, None]  # 9 samples: ends of 50% at ranks 2.5 and 7.5
    expected = {0.5: 0, 1.5: 0, 2.5: 0.5, 3.5: 1, 7.5: 0.5, 8.5: 0, 9.5: 0, 2.0: 0.25, 5.0: 1}
    for truth, inside in expected.items():
        (part,) = coverage(samples, np.array([[truth]]), [0.5])
        assert part.covered == pytest.approx(inside), truth
