import json

import numpy as np
import pytest
from scipy.stats import nbinom, poisson

from stflow_graph.simulation.fields import REGIONS
from stflow_graph.simulation.gene_model import (
    CLASSES,
    FEATURES,
    MODELLED,
    expected_log1p,
    make_gene_model,
)

LOG_MEAN = np.log([1e-4, 0.05, 0.7, 4.0, 30.0, 150.0])


@pytest.fixture
def model():
    return make_gene_model(np.random.default_rng(0))


@pytest.mark.parametrize("log_sd", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("dispersion", [0.8, 6.0])
def test_expectation_is_the_sum_over_counts(log_sd, dispersion):
    z, weight = np.polynomial.hermite_e.hermegauss(25)
    weight = weight / weight.sum()
    k = np.arange(30_000)
    expected = [
        sum(
            w * (nbinom.pmf(k, dispersion, dispersion / (dispersion + m)) @ np.log1p(k))
            for m, w in zip(np.exp(value + log_sd * z), weight, strict=True)
        )
        for value in LOG_MEAN
    ]
    np.testing.assert_allclose(expected_log1p(LOG_MEAN, dispersion, log_sd), expected, atol=2e-6)


def test_expectation_without_overdispersion_is_poisson():
    k = np.arange(3000)
    expected = [poisson.pmf(k, mean) @ np.log1p(k) for mean in np.exp(LOG_MEAN)]
    np.testing.assert_allclose(expected_log1p(LOG_MEAN, 1e7, 0.0), expected, atol=2e-6)


def test_true_mean_is_the_mean_of_sampled_counts(model):
    rng = np.random.default_rng(1)
    log_rate = rng.normal(1.0, 1.0, (3, len(model.genes)))
    draws = 20_000
    tall = np.repeat(log_rate, draws, axis=0)
    seen = np.log1p(model.sample(tall, rng)).reshape(3, draws, -1)
    error = seen.std(axis=1) / np.sqrt(draws)
    score = (seen.mean(axis=1) - model.expected(log_rate)) / error
    assert np.abs(score).max() < 5
    # a bias of a hundredth of a log unit would show in the mean score
    assert abs(score.mean()) < 0.5


def test_counts_have_the_variance_of_the_model(model):
    mean = 8.0
    counts = model.sample(np.full((40_000, 4), np.log(mean)), np.random.default_rng(2))
    lift = np.exp(model.depth_spot_sd**2 / 2)
    second = mean * lift + mean**2 * lift**4 * (1 + 1 / model.dispersion)
    keep = 1 - model.dropout
    np.testing.assert_allclose(counts.mean(), keep * mean * lift, rtol=0.02)
    np.testing.assert_allclose((counts**2).mean(), keep * second, rtol=0.05)


def test_each_class_follows_its_driver_alone(model):
    rng = np.random.default_rng(3)
    n, genes = 5, len(model.genes)
    own, around = rng.normal(size=(2, n, len(FEATURES)))
    level, depth = rng.normal(size=genes), rng.normal(size=n)
    base = model.log_rate(own, around, level, depth)
    changed = {
        "own": model.log_rate(own + 1.7, around, level, depth) != base,
        "neighbour": model.log_rate(own, around + 1.7, level, depth) != base,
        "slide": model.log_rate(own, around, level + 1.7, depth) != base,
    }
    for driver, moved in changed.items():
        for name in CLASSES:
            assert (moved[:, model.rows(name)] == (name == driver)).all(), (driver, name)
    np.testing.assert_allclose(model.log_rate(own, around, level, depth + 1), base + 1)


def test_neighbour_genes_follow_states_that_patches_show(model):
    coupling = model.coupling[:, model.rows("neighbour")]
    assert ((coupling != 0).sum(axis=0) == 1).all()
    assert not coupling[: len(REGIONS)].any()
    assert (coupling[len(REGIONS) :] != 0).any(axis=1).all()


def test_more_cells_give_more_depth(model):
    depth = model.log_depth(np.array([0, 20, 70, 300]), np.random.default_rng(0))
    assert (np.diff(depth) > 0).all()


def test_gene_list_is_fifty_modelled_genes(model):
    assert len(model.modelled) == sum(MODELLED.values()) == 50
    assert len(set(model.genes)) == len(model.genes) > 50


def test_description_gives_the_model_back(model):
    described = json.loads(json.dumps(model.describe()))
    assert described["dropout"] == model.dropout
    assert described["coupling_rings"] == model.coupling_rings
    for i, gene in enumerate(model.genes):
        entry = described["genes"][gene]
        assert entry["class"] == model.classes[i]
        assert np.log(entry["mean_count"]) == pytest.approx(model.base[i])
        for name, loadings in (("own", model.own), ("neighbour", model.coupling)):
            assert [entry[name].get(f, 0.0) for f in FEATURES] == loadings[:, i].tolist()
