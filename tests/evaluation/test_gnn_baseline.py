from __future__ import annotations

import dataclasses

import numpy as np

from stflow_graph.data.slide import Slide
from stflow_graph.evaluation.baselines import fit_ridge
from stflow_graph.evaluation.gnn_baseline import fit_simple_gnn
from stflow_graph.stats.metrics import neighbour_mean, pearson_per_gene


def slide(seed: int, side: int = 14) -> Slide:
    """A slide whose genes follow the neighbours' embeddings, not the spot's own."""
    rng = np.random.default_rng(seed)
    i, j = (g.ravel() for g in np.meshgrid(np.arange(side), np.arange(side)))
    coords = np.stack([100.0 * i, 100.0 * j], 1) + rng.normal(size=(side**2, 2))
    x = rng.normal(size=(side**2, 8)).astype(np.float32)
    y = 3 * (neighbour_mean(coords, 8) @ x)[:, :4] + 2 + 0.1 * rng.normal(size=(side**2, 4))
    names = [f"{seed}-{n}" for n in range(side**2)]
    return Slide(f"S{seed}", x, coords, names, y.astype(np.float32))


def test_it_sees_neighbours_and_not_the_slide_that_it_predicts():
    *train, test = (slide(seed) for seed in range(4))
    blind = dataclasses.replace(test, y=None)
    gnn, again = (fit_simple_gnn(train, seed=0) for _ in range(2))
    result = gnn(blind)
    np.testing.assert_array_equal(result, gnn(test))
    np.testing.assert_array_equal(result, again(test))
    assert (result.shape, result.dtype) == ((196, 4), np.float64)
    assert pearson_per_gene(result, test.truth).mean() > 0.6
    assert pearson_per_gene(fit_ridge(train)(test), test.truth).mean() < 0.3
    np.testing.assert_allclose(result.mean(), test.truth.mean(), atol=0.3)
