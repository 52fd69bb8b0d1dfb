from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_squared_error, r2_score

from stflow_graph.stats import metrics


def hexagonal(side, pitch=100.0):
    i, j = (g.ravel() for g in np.meshgrid(np.arange(side), np.arange(side)))
    return np.stack([pitch * (i + 0.5 * (j % 2)), pitch * np.sqrt(0.75) * j], axis=1)


def test_scores_per_gene_equal_scipy_and_sklearn(pair):
    p, t = pair
    columns = list(zip(p.T.astype(float), t.T, strict=True))
    for result, expected in (
        (metrics.pearson_per_gene, lambda a, b: scipy.stats.pearsonr(a, b)[0]),
        (metrics.spearman_per_gene, lambda a, b: scipy.stats.spearmanr(a, b)[0]),
        (metrics.mse_per_gene, lambda a, b: mean_squared_error(b, a)),
        (metrics.r2_per_gene, lambda a, b: r2_score(b, a)),
    ):
        np.testing.assert_allclose(result(p, t), [expected(*c) for c in columns], rtol=1e-9)


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
        for result in (score(column, other), score(other, column)):
            assert np.isnan(result).tolist() == [constant, False]
            assert np.isfinite(metrics.mean_of_defined(result))
    assert np.isnan(metrics.r2_per_gene(other, column)).tolist() == [constant, False]


def test_statistics_of_defined_values_skip_the_others():
    values = np.array([np.nan, 1.0, 2.0, 6.0, np.inf])
    assert metrics.mean_of_defined(values) == 3
    assert metrics.std_of_defined(values) == pytest.approx(np.std([1, 2, 6]))
    assert metrics.quantile_of_defined(values, 0.5) == 2
    nothing = values[:1]
    for statistic in (metrics.mean_of_defined, metrics.std_of_defined):
        assert np.isnan(statistic(nothing))
    assert np.isnan(metrics.quantile_of_defined(nothing, 0.5))


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


def test_neighbours_are_the_same_however_many_are_sought_at_a_time(monkeypatch):
    coords = np.random.default_rng(0).uniform(size=(50, 2))
    whole = metrics.neighbour_mean(coords)
    monkeypatch.setattr(metrics, "_ROWS_AT_A_TIME", 7)
    parts = metrics.neighbour_mean(coords)
    np.testing.assert_array_equal(parts.toarray(), whole.toarray())


@pytest.mark.parametrize("name", ["checkerboard", "gradient"])
def test_morans_i_of_patterns_on_a_torus(name):
    n = 10
    x, y = (g.ravel() for g in np.meshgrid(np.arange(n), np.arange(n)))
    # the four neighbours of a square array whose opposite edges meet
    step = np.minimum((x[:, None] - x) % n, (x - x[:, None]) % n)
    step += np.minimum((y[:, None] - y) % n, (y - y[:, None]) % n)
    weights = sp.csr_matrix((step == 1) / 4)
    if name == "checkerboard":
        values, expected = (x + y) % 2, -1.0
    else:  # a wave along x: cos(2π / n) with two neighbours, 1 with the two above and below
        values, expected = np.cos(2 * np.pi * x / n), (1 + np.cos(2 * np.pi / n)) / 2
    assert metrics.morans_i(values[:, None], weights)[0] == pytest.approx(expected)


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
    result = metrics.morans_i(waves, weights)
    np.testing.assert_allclose(result[:2], [np.cos(3 * 2 * np.pi / n), -1])
    assert np.isnan(result[2])
    assert metrics.morans_i(noise, weights).mean() == pytest.approx(-1 / (n - 1), abs=0.01)
    assert np.isnan(metrics.morans_i(noise, sp.csr_matrix((n, n)))).all()


def test_gene_correlation_distance_is_that_of_all_pairs_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    p, t = rng.normal(size=(30, 11)), rng.gamma(1.0, size=(30, 11))
    t[:, 4] = 1  # it counts on neither side
    kept = np.delete(np.arange(11), 4)
    one, other = (np.corrcoef(v[:, kept], rowvar=False) for v in (p, t))
    expected = np.abs(one - other)[np.triu_indices(10, k=1)].mean()
    monkeypatch.setattr(metrics, "_GENES_AT_A_TIME", 3)
    assert metrics.gene_correlation_distance(p, t) == pytest.approx(expected, abs=1e-12)


def test_gene_correlation_distance_has_known_values():
    rng = np.random.default_rng(0)
    t = rng.normal(size=(50, 4))
    assert metrics.gene_correlation_distance(3 * t + 1, t) == pytest.approx(0, abs=1e-12)
    a = t[:, :1]
    together, apart = np.hstack([a, a]), np.hstack([a, -a])
    assert metrics.gene_correlation_distance(together, apart) == pytest.approx(2)
    assert np.isnan(metrics.gene_correlation_distance(together, np.hstack([a, 0 * a])))
