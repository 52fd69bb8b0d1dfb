from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from real import BENCH, needs_real_slides
from scipy.integrate import trapezoid
from sklearn.metrics import mean_squared_error, r2_score

from stflow_graph.data.genes import read_gene_list
from stflow_graph.data.normalise import to_target
from stflow_graph.io.expression import read_expression
from stflow_graph.stats import metrics


@pytest.fixture
def pair():
    """A truth of 80 spots and 7 genes with ties, and a prediction of it."""
    rng = np.random.default_rng(0)
    truth = np.log1p(rng.poisson(2.0, (80, 7)))
    return (0.5 * truth + rng.normal(size=truth.shape)).astype(np.float32), truth


def hexagonal(side, pitch=100.0):
    i, j = (g.ravel() for g in np.meshgrid(np.arange(side), np.arange(side)))
    return np.stack([pitch * (i + 0.5 * (j % 2)), pitch * np.sqrt(0.75) * j], axis=1)


def test_scores_per_gene_equal_scipy_and_sklearn(pair):
    p, t = pair
    columns = list(zip(p.T.astype(float), t.T, strict=True))
    for found, expected in (
        (metrics.pearson_per_gene, lambda a, b: scipy.stats.pearsonr(a, b)[0]),
        (metrics.spearman_per_gene, lambda a, b: scipy.stats.spearmanr(a, b)[0]),
        (metrics.mse_per_gene, lambda a, b: mean_squared_error(b, a)),
        (metrics.r2_per_gene, lambda a, b: r2_score(b, a)),
    ):
        np.testing.assert_allclose(found(p, t), [expected(*c) for c in columns], rtol=1e-9)


@given(shift=st.floats(-1e3, 1e3), scale=st.floats(1e-2, 1e3), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_correlations_know_no_unit_and_no_order_of_spots(shift, scale, seed):
    rng = np.random.default_rng(seed)
    p, t = rng.normal(size=(2, 30, 3))
    order = rng.permutation(30)
    for correlation in (metrics.pearson_per_gene, metrics.spearman_per_gene):
        expected = correlation(p, t)
        np.testing.assert_allclose(correlation(scale * p + shift, t), expected, atol=1e-6)
        np.testing.assert_allclose(correlation(-p, t), -expected, atol=1e-9)
        np.testing.assert_allclose(correlation(p[order], t[order]), expected, atol=1e-9)
        np.testing.assert_allclose(correlation(t, p), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("values", "constant"),
    [
        (np.full(9, 3.3), True),
        (np.zeros(9), True),
        (1e6 + np.arange(9) * 1e-5, True),
        (np.arange(9) * 1e-6, False),
        (1e3 + np.arange(9) * 1e-5, False),
    ],
)
def test_a_constant_is_nan_on_either_side_and_left_out_of_means(values, constant):
    other = np.random.default_rng(0).normal(size=(9, 2))
    column = np.stack([values, other[:, 0]], axis=1)
    assert metrics.is_constant(column).tolist() == [constant, False]
    for score in (metrics.pearson_per_gene, metrics.spearman_per_gene):
        for found in (score(column, other), score(other, column)):
            assert np.isnan(found).tolist() == [constant, False]
            assert np.isfinite(metrics.mean_of_defined(found))
    assert np.isnan(metrics.r2_per_gene(other, column)).tolist() == [constant, False]
    assert np.isnan(metrics.mean_of_defined(np.array([np.nan])))


def test_float32_input_is_scored_in_float64():
    t = np.arange(100.0)[:, None]
    p = (1e4 + t / 64).astype(np.float32)
    assert metrics.pearson_per_gene(p, t)[0] == pytest.approx(
        np.corrcoef(p[:, 0].astype(float), t[:, 0])[0, 1], abs=1e-12
    )


def test_relative_variation_is_0_for_the_truth_and_1_for_a_constant(pair):
    _, t = pair
    np.testing.assert_allclose(metrics.relative_variation_per_gene(t + 5, t), 0, atol=1e-12)
    np.testing.assert_allclose(metrics.relative_variation_per_gene(0 * t, t), 1)
    # twice the amplitude is four times the variance
    np.testing.assert_allclose(metrics.relative_variation_per_gene(2 * t, t), 9)


def test_inner_spots_of_a_hexagonal_array_have_their_six_neighbours():
    coords = hexagonal(7)
    weights = metrics.neighbour_mean(coords)
    distance = np.linalg.norm(coords[:, None] - coords, axis=2)
    inner = (np.sum(distance < 101, axis=1) == 7).nonzero()[0]
    assert len(inner) == 25
    for i in inner:
        expected = (distance[i] < 101) & (distance[i] > 0)
        np.testing.assert_allclose(weights[[i]].toarray()[0], expected / 6)


def test_neighbours_do_not_depend_on_order_even_among_ties():
    x, y = (g.ravel().astype(float) for g in np.meshgrid(np.arange(6), np.arange(6)))
    coords = np.stack([x, y], axis=1)  # on a square array the sixth neighbour is one of four
    order = np.random.default_rng(0).permutation(36)
    weights = metrics.neighbour_mean(coords).toarray()
    np.testing.assert_array_equal(
        metrics.neighbour_mean(coords[order]).toarray(), weights[np.ix_(order, order)]
    )
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert not weights.diagonal().any()


@pytest.mark.parametrize("n", [1, 2, 4])
def test_few_or_coinciding_spots_have_what_neighbours_there_are(n):
    same = metrics.neighbour_mean(np.zeros((n, 2))).toarray()
    np.testing.assert_allclose(same, (1 - np.eye(n)) / max(n - 1, 1))


def test_morans_i_equals_its_definition(pair):
    rng = np.random.default_rng(1)
    weights = sp.random_array((80, 80), density=0.1, rng=rng, format="csr")
    p, _ = pair
    z = p.astype(float) - p.astype(float).mean(axis=0)
    pairs = np.einsum("ij,ig,jg->g", weights.toarray(), z, z)
    expected = 80 / weights.sum() * pairs / (z**2).sum(axis=0)
    np.testing.assert_allclose(metrics.morans_i(p, weights), expected)


def test_morans_i_of_a_wave_of_alternation_and_of_noise():
    n = 48
    ring = np.stack([np.cos(2 * np.pi * np.arange(n) / n), np.sin(2 * np.pi * np.arange(n) / n)], 1)
    weights = metrics.neighbour_mean(ring, n_neighbors=2)
    phase = 2 * np.pi * np.arange(n) / n
    noise = np.random.default_rng(0).normal(size=(n, 4000))
    # cosines are eigenvectors of the ring, cos(phase) their eigenvalue
    waves = np.stack([np.cos(3 * phase), np.cos(np.arange(n) * np.pi), np.ones(n)], axis=1)
    found = metrics.morans_i(waves, weights)
    np.testing.assert_allclose(found[:2], [np.cos(3 * 2 * np.pi / n), -1])
    assert np.isnan(found[2])
    assert metrics.morans_i(noise, weights).mean() == pytest.approx(-1 / (n - 1), abs=0.01)
    assert np.isnan(metrics.morans_i(noise, sp.csr_matrix((n, n)))).all()


def test_gene_correlation_distance_has_known_values():
    rng = np.random.default_rng(0)
    t = rng.normal(size=(50, 4))
    assert metrics.gene_correlation_distance(3 * t + 1, t) == pytest.approx(0, abs=1e-12)
    a = t[:, :1]
    together, apart = np.hstack([a, a]), np.hstack([a, -a])
    assert metrics.gene_correlation_distance(together, apart) == pytest.approx(2)
    assert np.isnan(metrics.gene_correlation_distance(together, np.hstack([a, 0 * a])))


def test_crps_equals_the_integral_that_defines_it():
    rng = np.random.default_rng(0)
    samples, truth = rng.normal(size=(5, 3, 2)), rng.normal(size=(3, 2))
    z = np.linspace(-6, 6, 48_001)[:, None, None]
    below = np.mean([one <= z for one in samples], axis=0)
    integral = trapezoid((below - (truth <= z)) ** 2, z[:, 0, 0], axis=0)
    np.testing.assert_allclose(metrics.crps_per_gene(samples, truth), integral.mean(0), atol=5e-4)
    np.testing.assert_allclose(
        metrics.crps_per_gene(samples[:1], truth), np.abs(samples[0] - truth).mean(0)
    )


def test_crps_of_many_normal_samples_is_the_known_one():
    rng = np.random.default_rng(0)
    truth = np.array([[0.0, 1.3]])
    found = metrics.crps_per_gene(rng.normal(size=(200_000, 1, 2)), truth)
    y = truth[0]
    normal = scipy.stats.norm
    known = y * (2 * normal.cdf(y) - 1) + 2 * normal.pdf(y) - 1 / np.sqrt(np.pi)
    np.testing.assert_allclose(found, known, atol=5e-3)


def test_energy_score_of_one_gene_is_crps_and_grows_with_correlation_that_is_wrong():
    rng = np.random.default_rng(0)
    samples, truth = rng.normal(size=(6, 20, 1)), rng.normal(size=(20, 1))
    assert metrics.energy_score(samples, truth) == pytest.approx(
        metrics.crps_per_gene(samples, truth)[0]
    )
    one = rng.normal(size=(400, 1))
    x = rng.normal(size=(100, 400, 1))
    together, opposed = np.concatenate([x, x], axis=2), np.concatenate([x, -x], axis=2)
    truth = np.hstack([one, one])
    assert metrics.energy_score(together, truth) < metrics.energy_score(opposed, truth) - 0.05
    np.testing.assert_allclose(
        metrics.crps_per_gene(together, truth), metrics.crps_per_gene(opposed, truth), atol=0.05
    )


def test_energy_distance_is_0_for_the_same_values_wherever_they_lie(pair):
    p, t = pair
    shuffled = np.random.default_rng(0).permuted(t, axis=0)
    np.testing.assert_allclose(
        metrics.energy_distance_per_gene(np.stack([shuffled, t]), t), 0, atol=1e-7
    )
    assert (metrics.energy_distance_per_gene(p[None], t) > 0.1).all()


@pytest.mark.parametrize("n_samples", [2, 8, 25])
def test_coverage_of_a_calibrated_ensemble_is_what_it_says(n_samples):
    rng = np.random.default_rng(0)
    draws = rng.gamma(2.0, size=(n_samples + 1, 20_000, 2))
    for each in metrics.coverage(draws[1:], draws[0]):
        assert each.calibrated == pytest.approx(min(each.level, (n_samples - 1) / (n_samples + 1)))
        assert each.covered == pytest.approx(each.calibrated, abs=0.02)
    narrow = metrics.coverage(draws[1:] * 0.1, draws[0])
    for wide, tenth in zip(metrics.coverage(draws[1:], draws[0]), narrow, strict=True):
        assert tenth.width == pytest.approx(wide.width / 10)
    assert all(each.covered < each.calibrated for each in narrow)


def test_coverage_of_values_that_many_samples_share_does_not_depend_on_the_number_of_samples():
    rng = np.random.default_rng(0)
    draws = np.maximum(rng.normal(size=(40, 20_000, 2)), 0)  # half of all are 0
    # 19 samples: every end is a sample; 16: ends of the 50% interval lie between two
    of_19, of_16 = (metrics.coverage(draws[1 : 1 + n], draws[0])[0].covered for n in (19, 16))
    assert of_19 == pytest.approx(0.75, abs=0.01)
    assert of_16 == pytest.approx(of_19, abs=0.01)


def test_noise_ceiling_is_the_correlation_of_the_true_rate_with_its_counts():
    rng = np.random.default_rng(0)
    rate = np.array([0.4, 2.0, 20.0]) * rng.gamma(3, 1 / 3, size=(200_000, 1))
    counts = rng.poisson(rate)
    found = metrics.noise_ceiling(counts, counts.sum(1), lambda half, total: half, rng, n_repeats=2)
    np.testing.assert_allclose(found, metrics.pearson_per_gene(rate, counts), atol=0.01)


def test_noise_ceiling_of_pure_noise_is_low_and_of_a_gene_without_counts_undefined():
    rng = np.random.default_rng(0)
    counts = rng.poisson(3.0, (5_000, 2)) * [1, 0]
    found = metrics.noise_ceiling(counts, counts.sum(1), lambda half, total: np.log1p(half), rng)
    assert found[0] < 0.15
    assert np.isnan(found[1])


def test_halves_share_out_each_spots_total():
    counts = np.random.default_rng(0).poisson(5.0, (50, 3))
    total, halves = counts.sum(1) + 40.0, []

    def transform(half, half_total):
        assert (half.sum(1) <= half_total).all()
        halves.append((half, half_total))
        return half

    metrics.noise_ceiling(counts, total, transform, np.random.default_rng(0), n_repeats=1)
    np.testing.assert_array_equal(halves[0][0] + halves[1][0], counts)
    np.testing.assert_array_equal(halves[0][1] + halves[1][1], total)


@needs_real_slides
@pytest.mark.parametrize(
    ("target", "known"),
    [
        ("log1p", {"C5": 0.52, "C2": 0.55, "B4": 0.92}),
        ("log1p_normalised", {"C5": 0.44, "C2": 0.42, "B4": 0.68}),
    ],
)
def test_noise_ceilings_of_real_slides_are_those_on_record(target, known):
    genes = read_gene_list(BENCH / "var_50genes.json")
    for slide, value in known.items():
        truth = read_expression(BENCH / "adata" / f"{slide}.h5ad", genes)
        found = metrics.noise_ceiling(
            truth.counts.toarray(),
            truth.total,
            lambda half, total: to_target(sp.csr_matrix(half), total, target),
            np.random.default_rng(0),
        )
        assert metrics.mean_of_defined(found) == pytest.approx(value, abs=0.02), slide


def test_bootstrap_is_the_score_of_resampled_spots(pair):
    p, t = pair
    found = metrics.bootstrap_pearson({"a": p}, t, np.random.default_rng(5), 40)["a"]
    rng = np.random.default_rng(5)
    rows = [rng.integers(len(t), size=len(t)) for _ in range(40)]
    expected = [metrics.mean_of_defined(metrics.pearson_per_gene(p[r], t[r])) for r in rows]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_bootstrap_is_seeded_paired_and_free_of_the_chunk(pair, monkeypatch):
    p, t = pair
    both = metrics.bootstrap_pearson({"a": p, "b": p}, t, np.random.default_rng(1), 30)
    np.testing.assert_array_equal(both["a"], both["b"])
    monkeypatch.setattr(metrics, "_MOST_WEIGHTS", 7 * len(t))
    chunked = metrics.bootstrap_pearson({"a": p}, t, np.random.default_rng(1), 30)
    np.testing.assert_allclose(chunked["a"], both["a"], atol=1e-12)
    other = metrics.bootstrap_pearson({"a": p}, t, np.random.default_rng(2), 30)
    assert not np.allclose(other["a"], both["a"])


def test_bootstrap_leaves_out_genes_that_are_constant_in_a_resample():
    t = np.zeros((20, 2))
    t[0, 0] = 1.0  # a third of the resamples miss this spot
    t[:, 1] = np.arange(20)
    found = metrics.bootstrap_pearson({"a": t, "b": 0 * t}, t, np.random.default_rng(0), 100)
    np.testing.assert_allclose(found["a"], 1)
    assert np.isnan(found["b"]).all()
    assert np.isnan(metrics.interval(found["b"])).all()


def test_bootstrap_interval_covers_the_true_correlation():
    rng, rho, hits = np.random.default_rng(0), 0.5, 0
    for _ in range(200):
        t = rng.normal(size=(100, 1))
        p = rho * t + np.sqrt(1 - rho**2) * rng.normal(size=(100, 1))
        low, high = metrics.interval(metrics.bootstrap_pearson({"a": p}, t, rng, 200)["a"])
        hits += low <= rho <= high
    assert hits / 200 == pytest.approx(0.95, abs=0.05)
