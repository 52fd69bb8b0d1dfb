from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from stflow_graph.stats import domains
from stflow_graph.stats.domains import (
    Components,
    fit_centres,
    nearest_centre,
    ranks_by_size,
    smooth,
)
from stflow_graph.stats.metrics import neighbour_mean


def clusters(sizes=(50, 30, 20), n_genes=8):
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    means = 3 * rng.normal(size=(len(sizes), n_genes))
    return truth, (means[truth] + 0.1 * rng.normal(size=(len(truth), n_genes))).astype(np.float32)


def test_components_are_those_of_the_singular_value_decomposition():
    _, values = clusters()
    found = Components.fit(values)
    centred = values - values.mean(axis=0)
    _, s, vt = np.linalg.svd(centred.astype(float), full_matrices=False)
    np.testing.assert_allclose(found.explained, s**2 / (s**2).sum(), rtol=1e-5, atol=1e-9)
    scores = found.scores(values)
    np.testing.assert_allclose(np.abs(scores[:, :2]), np.abs(centred @ vt[:2].T), atol=1e-4)
    np.testing.assert_allclose(scores @ found.axes, centred, atol=1e-4)  # all 8 are kept


def test_clusters_are_found_and_numbered_by_size_whatever_their_order():
    truth, values = clusters()
    components = Components.fit(values)
    scores = components.scores(values)
    centres = fit_centres(scores, 3)
    labels = nearest_centre(scores, centres)
    ranks = ranks_by_size(np.bincount(labels, minlength=3), centres)
    assert adjusted_rand_score(truth, labels) == 1
    assert np.bincount(ranks[labels])[1:].tolist() == [50, 30, 20]
    np.testing.assert_array_equal(fit_centres(scores, 3), centres)


def test_labels_are_the_nearest_centre_in_parts_too(monkeypatch):
    rng = np.random.default_rng(1)
    scores, centres = rng.normal(size=(40, 3)), rng.normal(size=(5, 3))
    expected = ((scores[:, None] - centres) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(nearest_centre(scores, centres), expected)
    monkeypatch.setattr(domains, "_ROWS", 7)
    np.testing.assert_array_equal(nearest_centre(scores, centres), expected)


def test_domains_of_one_size_are_ranked_by_their_centres():
    centres = np.array([[2.0, 0.0], [1.0, 5.0], [1.0, 4.0]])
    assert ranks_by_size(np.array([3, 3, 3]), centres).tolist() == [3, 2, 1]
    assert ranks_by_size(np.array([1, 3, 9]), centres).tolist() == [3, 2, 1]


def test_smoothing_is_the_mean_over_a_spot_and_its_neighbours():
    rng = np.random.default_rng(2)
    coords, scores = rng.uniform(size=(30, 2)), rng.normal(size=(30, 4)).astype(np.float32)
    weights = neighbour_mean(coords)
    near = (weights.toarray() > 0) | np.eye(30, dtype=bool)
    mean = near / near.sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(smooth(scores, weights, 0), scores)
    np.testing.assert_allclose(smooth(scores, weights, 2), mean @ mean @ scores, atol=1e-6)
    single = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(smooth(single, neighbour_mean(np.zeros((1, 2))), 3), single)


@pytest.mark.parametrize("values", [np.ones((5, 3)), np.eye(3)[[0, 1, 1, 0]]])
def test_more_domains_than_different_spots_are_refused(values):
    scores = Components.fit(values.astype(np.float32)).scores(values)
    with pytest.raises(ValueError, match="3 domains of [12] different spots"):
        fit_centres(scores, 3)
