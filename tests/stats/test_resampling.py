from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from real import BENCH, needs_real_slides

from stflow_graph.data.genes import read_gene_list
from stflow_graph.data.normalise import to_target
from stflow_graph.io.expression import read_expression
from stflow_graph.stats import resampling
from stflow_graph.stats.metrics import mean_of_defined, pearson_per_gene
from stflow_graph.stats.resampling import bootstrap_pearson, interval, noise_ceiling


def test_noise_ceiling_is_the_correlation_of_the_true_rate_with_its_counts():
    rng = np.random.default_rng(0)
    rate = np.array([0.4, 2.0, 20.0]) * rng.gamma(3, 1 / 3, size=(200_000, 1))
    counts = rng.poisson(rate)
    result = noise_ceiling(counts, counts.sum(1), lambda half, total: half, rng, n_repeats=2)
    np.testing.assert_allclose(result, pearson_per_gene(rate, counts), atol=0.01)


def test_noise_ceiling_of_pure_noise_is_low_and_of_a_gene_without_counts_undefined():
    rng = np.random.default_rng(0)
    counts = rng.poisson(3.0, (5_000, 2)) * [1, 0]
    result = noise_ceiling(counts, counts.sum(1), lambda half, total: np.log1p(half), rng)
    assert result[0] < 0.15
    assert np.isnan(result[1])


def test_halves_share_out_each_spots_total():
    counts = np.random.default_rng(0).poisson(5.0, (50, 3))
    total, halves = counts.sum(1) + 40.0, []

    def transform(half, half_total):
        assert (half.sum(1) <= half_total).all()
        halves.append((half, half_total))
        return half

    noise_ceiling(counts, total, transform, np.random.default_rng(0), n_repeats=1)
    np.testing.assert_array_equal(halves[0][0] + halves[1][0], counts)
    np.testing.assert_array_equal(halves[0][1] + halves[1][1], total)


@needs_real_slides
@pytest.mark.parametrize(
    ("target", "recorded"),
    [
        ("log1p", {"C5": 0.52, "C2": 0.55, "B4": 0.92}),
        ("log1p_normalised", {"C5": 0.44, "C2": 0.42, "B4": 0.68}),
    ],
)
def test_noise_ceilings_of_real_slides_are_those_on_record(target, recorded):
    genes = read_gene_list(BENCH / "var_50genes.json")
    for slide, value in recorded.items():
        truth = read_expression(BENCH / "adata" / f"{slide}.h5ad", genes)
        result = noise_ceiling(
            truth.counts.toarray(),
            truth.total,
            lambda half, total: to_target(sp.csr_matrix(half), total, target),
            np.random.default_rng(0),
        )
        assert mean_of_defined(result) == pytest.approx(value, abs=0.02), slide


def test_bootstrap_is_the_score_of_resampled_spots(pair):
    p, t = pair
    result = bootstrap_pearson({"a": p}, t, np.random.default_rng(5), 40)["a"]
    rng = np.random.default_rng(5)
    rows = [rng.integers(len(t), size=len(t)) for _ in range(40)]
    expected = [mean_of_defined(pearson_per_gene(p[r], t[r])) for r in rows]
    np.testing.assert_allclose(result, expected, atol=1e-9)


def test_bootstrap_is_seeded_paired_and_free_of_the_chunk(pair, monkeypatch):
    p, t = pair
    both = bootstrap_pearson({"a": p, "b": p}, t, np.random.default_rng(1), 30)
    np.testing.assert_array_equal(both["a"], both["b"])
    monkeypatch.setattr(resampling, "_MAX_WEIGHTS", 7 * len(t))
    chunked = bootstrap_pearson({"a": p}, t, np.random.default_rng(1), 30)
    np.testing.assert_allclose(chunked["a"], both["a"], atol=1e-12)
    other = bootstrap_pearson({"a": p}, t, np.random.default_rng(2), 30)
    assert not np.allclose(other["a"], both["a"])


def test_bootstrap_leaves_out_genes_that_are_constant_in_a_resample():
    t = np.zeros((20, 2))
    t[0, 0] = 1.0  # a third of the resamples miss this spot
    t[:, 1] = np.arange(20)
    result = bootstrap_pearson({"a": t, "b": 0 * t}, t, np.random.default_rng(0), 100)
    np.testing.assert_allclose(result["a"], 1)
    assert np.isnan(result["b"]).all()
    assert np.isnan(interval(result["b"])).all()


def test_bootstrap_interval_covers_the_true_correlation():
    rng, rho, hits = np.random.default_rng(0), 0.5, 0
    for _ in range(200):
        t = rng.normal(size=(100, 1))
        p = rho * t + np.sqrt(1 - rho**2) * rng.normal(size=(100, 1))
        low, high = interval(bootstrap_pearson({"a": p}, t, rng, 200)["a"])
        hits += low <= rho <= high
    assert hits / 200 == pytest.approx(0.95, abs=0.05)
