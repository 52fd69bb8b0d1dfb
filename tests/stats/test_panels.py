from __future__ import annotations

import numpy as np
import pytest

from stflow_graph.stats.calibration import Calibration, HeldOut
from stflow_graph.stats.metrics import pearson_per_gene, pooled_pearson, spearman_per_gene
from stflow_graph.stats.panels import genes_by_slides, mean_of_measured, take_genes
from stflow_graph.stats.ridge import PanelRidgePath, RidgePath, fit_ridge_path

# gene 0 in all slides, 1 and 3 in the first two, 2 in the last, 4 in none
PANELS = np.array([[1, 1, 0, 1, 0], [1, 1, 0, 1, 0], [1, 0, 1, 0, 0]], bool)


def panels_of(seed: int = 0, n_genes: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    ys = [rng.normal(size=(n, n_genes)) for n in (30, 25, 20)]
    return [np.where(genes[:n_genes], y, np.nan) for y, genes in zip(ys, PANELS, strict=True)]


def test_genes_are_grouped_by_the_slides_that_measure_them():
    groups = {tuple(slides): list(genes) for slides, genes in genes_by_slides(panels_of())}
    assert groups == {(0, 1, 2): [0], (0, 1): [1, 3], (2,): [2]}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_means_are_numpys_where_nothing_is_missing(dtype):
    values = np.random.default_rng(0).normal(size=(17, 5)).astype(dtype)
    found = mean_of_measured(values)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values.mean(axis=0))
    assert take_genes(values, np.arange(5)) is values
    values[3:, 1], values[:, 2] = np.nan, np.nan
    expected = values[:3, 1].mean()
    np.testing.assert_allclose(mean_of_measured(values)[1:3], [expected, np.nan], rtol=1e-6)


def test_ridges_of_panels_are_those_of_each_gene_alone():
    rng = np.random.default_rng(1)
    ys, xs = panels_of(), [rng.normal(size=(n, 8)) for n in (30, 25, 20)]
    path = fit_ridge_path(xs, ys)
    assert isinstance(path, PanelRidgePath)
    weights = path.weights(3.0)
    for gene in range(4):
        slides = [i for i in range(3) if PANELS[i, gene]]
        own = RidgePath.fit([xs[i] for i in slides], [ys[i][:, [gene]] for i in slides])
        np.testing.assert_allclose(weights[:, [gene]], own.weights(3.0), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(weights[:, 4], 0)
    assert len(path.groups) == 3  # a decomposition for each group of slides
    complete = fit_ridge_path(xs, [np.nan_to_num(y) for y in ys])
    assert isinstance(complete, RidgePath)


def test_scores_are_of_measured_genes_and_pooled_over_the_slides_that_have_them():
    truth = panels_of()
    predicted = [np.random.default_rng(i).normal(size=y.shape) for i, y in enumerate(truth)]
    for score in (pearson_per_gene, spearman_per_gene):
        found = score(predicted[2], truth[2])
        np.testing.assert_array_equal(np.isnan(found), [False, True, False, True, True])
    pooled = pooled_pearson(predicted, truth)
    for gene, slides in ((0, [0, 1, 2]), (3, [0, 1]), (2, [2])):
        pair = (np.concatenate([part[i] for i in slides])[:, [gene]] for part in (predicted, truth))
        assert pooled[gene] == pytest.approx(pearson_per_gene(*pair)[0], abs=1e-12)
    assert np.isnan(pooled[4])


def test_calibration_of_a_gene_is_that_of_the_slides_that_measure_it():
    rng = np.random.default_rng(2)
    parts = []
    for y in panels_of(n_genes=4):
        mean = 5 + rng.normal(size=y.shape)
        samples = mean + 0.3 * rng.normal(size=(9, *y.shape))
        parts.append(HeldOut(mean, samples, mean + y))
    found = Calibration.fit(parts)
    assert np.isfinite(found.pearson).all()
    for gene, slides in ((1, [0, 1]), (2, [2])):
        alone = [
            HeldOut(p.mean[:, [gene]], p.samples[:, :, [gene]], p.truth[:, [gene]])
            for p in (parts[i] for i in slides)
        ]
        expected = Calibration.fit(alone)
        assert found.spread[gene] == expected.spread[0]
        assert found.pearson[gene] == pytest.approx(expected.pearson[0])
