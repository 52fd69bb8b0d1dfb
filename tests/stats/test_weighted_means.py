from __future__ import annotations

import numpy as np

from stflow_graph.stats.weighted_means import WeightedMeans


def test_means_are_weighted_and_skip_what_a_member_lacks():
    means = WeightedMeans()
    means.add("p", ["a", "b"], np.array([1.0, 10.0]), 100)
    means.add("q", ["a"], np.array([5.0]), 7)
    means.add("p", ["b", "a", "c"], np.array([20.0, np.nan, 3.0]), 300)
    table = means.table(["q", "p"])
    assert list(table.columns) == ["a", "b", "c"]
    np.testing.assert_array_equal(table, [[5, np.nan, np.nan], [1, 17.5, 3]])


def test_the_mean_of_slides_is_that_of_all_spots():
    rng = np.random.default_rng(0)
    slides = [rng.normal(size=(n, 3)) for n in (5, 20, 11)]
    means = WeightedMeans()
    for values in slides:
        means.add("p", list("xyz"), values.mean(axis=0), len(values))
    np.testing.assert_allclose(
        means.table(["p"])[list("xyz")].iloc[0], np.concatenate(slides).mean(0)
    )
