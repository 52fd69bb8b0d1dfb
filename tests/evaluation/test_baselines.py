from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from real import BENCH, EMBEDDINGS, needs_real_slides

from stflow_graph.data.genes import read_gene_list
from stflow_graph.data.load import load_sample
from stflow_graph.data.slide import Slide
from stflow_graph.data.splits import find_datasets
from stflow_graph.errors import BadInput
from stflow_graph.evaluation.baselines import (
    DARKNESS,
    GENE_MEAN,
    NAMES,
    RIDGE,
    SLOW,
    SMOOTHED_RIDGE,
    darkness,
    fit_baselines,
    fit_gene_mean,
    fit_ridge,
    fit_tuned_ridge,
    smoothed,
)
from stflow_graph.evaluation.training_side import TrainingSide
from stflow_graph.io.patches import write_patches
from stflow_graph.stats.metrics import mean_of_defined, pearson_per_gene


@pytest.fixture
def slides():
    """Three slides whose expression is linear in their embeddings."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(12, 4))

    def make(name):
        x = rng.normal(size=(60, 12)).astype(np.float32)
        y = (2 + x @ weights).astype(np.float32)
        return Slide(name, x, rng.uniform(0, 1000, (60, 2)), [f"{name}{i}" for i in range(60)], y)

    return [make(name) for name in "ABC"]


def blind(slide):
    """The slide as a predictor may see it."""
    return dataclasses.replace(slide, y=None)


def test_gene_mean_is_over_all_training_spots(slides):
    predicted = fit_gene_mean(slides[:2])(blind(slides[2]))
    mean = np.concatenate([slides[0].y, slides[1].y]).astype(float).mean(0)
    np.testing.assert_allclose(predicted, np.tile(mean, (60, 1)))


def test_ridge_learns_a_linear_model_and_shrinks_with_alpha(slides):
    *train, test = slides
    np.testing.assert_allclose(fit_ridge(train, alpha=1e-6)(blind(test)), test.y, atol=1e-3)
    strong = fit_ridge(train, alpha=1e9)(blind(test))
    np.testing.assert_allclose(strong, fit_gene_mean(train)(test), atol=1e-3)


def test_ridge_takes_hests_alpha(slides):
    *train, test = slides
    for n, alpha in ((5, 100 / (5 * 4)), (256, 100 / (12 * 4))):
        default, stated = (fit_ridge(train, n_components=n, alpha=a) for a in (None, alpha))
        np.testing.assert_allclose(default(test), stated(test))


def test_ridge_is_invariant_to_the_scale_of_channels(slides):
    scale = np.geomspace(1e-2, 1e2, 12).astype(np.float32)
    scaled = [dataclasses.replace(slide, x=slide.x * scale) for slide in slides]
    predicted, expected = (fit_ridge(some[:2])(some[2]) for some in (scaled, slides))
    np.testing.assert_allclose(predicted, expected, rtol=1e-4)


@pytest.mark.parametrize("n", [2, 5])
def test_ridge_takes_fewer_spots_than_components_and_constant_channels(slides, n):
    small = slides[0].take(np.arange(n))
    small.x[:, 0] = 3.0
    assert np.isfinite(fit_ridge([small])(slides[2])).all()


@pytest.mark.parametrize("n_slides", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_tuned_ridges_take_slides_too_small_to_hold_parts_out(slides, n_slides, n):
    small = [slide.take(np.arange(n)) for slide in slides[:n_slides]]
    for hops in ((), (1, 4)):
        assert np.isfinite(fit_tuned_ridge(small, hops)(slides[2])).all()


def test_a_tuned_ridge_selects_penalty_and_smoothing_on_held_out_slides(slides):
    # expression is the mean of a spot and its six nearest: smoothing must be selected
    weights = np.random.default_rng(0).normal(size=(12, 4))
    truth = smoothed(lambda slide: slide.x.astype(float) @ weights)
    *train, test = (dataclasses.replace(s, y=truth(s).astype(np.float32)) for s in slides)
    tuned, plain = (
        pearson_per_gene(fit(train)(test), test.y).mean() for fit in (fit_tuned_ridge, fit_ridge)
    )
    assert tuned > 0.75 > plain + 0.3, (tuned, plain)


def test_smoothing_averages_a_spot_with_its_six_nearest(slides):
    test = slides[2]
    predicted = smoothed(lambda slide: slide.x[:, :3].astype(float))(test)
    distance = np.linalg.norm(test.coords[:, None] - test.coords, axis=2)
    nearest = np.argsort(distance, axis=1)[:, :7]  # the spot itself is the first
    np.testing.assert_allclose(predicted, test.x[nearest, :3].astype(float).mean(1))


def test_smoothing_keeps_constants_and_a_slide_of_one_spot(slides):
    flat = smoothed(lambda slide: np.full((len(slide), 2), 1.5))
    np.testing.assert_allclose(flat(slides[0]), 1.5)
    one = slides[0].take(np.array([0]))
    np.testing.assert_allclose(smoothed(lambda slide: slide.x.astype(float))(one), one.x)


def test_all_baselines_are_fitted_and_never_see_the_slide_they_predict(slides):
    *train, test = slides
    fitted, again = fit_baselines(train), fit_baselines(train)
    assert set(fitted) == set(NAMES) - {DARKNESS, *SLOW}
    for name, predictor in fitted.items():
        predicted = predictor(blind(test))
        assert (predicted.shape, predicted.dtype) == ((60, 4), np.float64)
        np.testing.assert_array_equal(predicted, predictor(test))
        np.testing.assert_array_equal(predicted, again[name](test))
    with pytest.raises(ValueError, match="without its expression"):
        fit_baselines([blind(test)])


def write_grey(path, barcodes, red, size=4):
    images = np.full((len(barcodes), size, size, 3), 9, np.uint8)
    images[..., 0] = np.asarray(red, np.uint8)[:, None, None]
    coords = np.zeros((len(barcodes), 2))
    with write_patches(path, barcodes, coords, size=size, size_level0=size, um_per_px=1) as writer:
        writer.append(images)


def test_darkness_is_255_minus_the_mean_red_in_the_order_of_the_arguments(tmp_path):
    red = np.arange(150) % 256
    names = [f"b{i}" for i in range(150)]  # more than one batch
    write_grey(tmp_path / "A.h5", names, red)
    np.testing.assert_allclose(darkness(tmp_path / "A.h5", names), 255 - red)
    np.testing.assert_allclose(darkness(tmp_path / "A.h5", ["b149", "b0", "b70"]), [106, 255, 185])


def test_darkness_refuses_spots_without_a_patch(tmp_path):
    write_grey(tmp_path / "A.h5", ["a", "b"], [1, 2])
    with pytest.raises(BadInput, match=r"A\.h5: barcode: found 2 of 3 spots absent.*'x', 'y'"):
        darkness(tmp_path / "A.h5", ["x", "a", "y"])


@pytest.fixture
def side(cohort):
    dataset, root = find_datasets(cohort.root)[0], str(cohort.embeddings)
    return TrainingSide(dataset, root, "toy", "log1p", ("G1", "G0"), ("A", "C"))


def test_a_training_side_reads_its_slides_and_the_test_slide_without_truth(side):
    loaded = side.load()
    assert [slide.name for slide in loaded] == ["A", "C"]
    assert all(slide.y.shape == (36, 2) for slide in loaded)
    test = side.load_test_slide("B", ["2x1", "0x0"], np.zeros((2, 2)))
    assert (test.y, test.barcodes, len(test)) == (None, ["2x1", "0x0"], 2)
    with pytest.raises(BadInput, match=r"B\.h5: barcodes: found 1 of 2 spots absent.*'9x9'"):
        side.load_test_slide("B", ["0x0", "9x9"], np.zeros((2, 2)))


@pytest.mark.parametrize("names", [(), ("A", "Z")])
def test_training_slides_must_be_in_the_splits(side, names):
    with pytest.raises(BadInput, match="splits: found .* absent"):
        dataclasses.replace(side, slides=names).load()


slow = pytest.mark.slow


@needs_real_slides
@pytest.mark.parametrize(
    ("fold", "slide", "recorded"),
    [
        pytest.param(
            0, "C5", {DARKNESS: 0.165, RIDGE: 0.164, SMOOTHED_RIDGE: 0.215}, marks=pytest.mark.slow
        ),
        pytest.param(
            1, "C2", {DARKNESS: 0.206, RIDGE: 0.122, SMOOTHED_RIDGE: 0.156}, marks=pytest.mark.slow
        ),
        (2, "B4", {DARKNESS: 0.581, RIDGE: 0.182, SMOOTHED_RIDGE: 0.338}),
    ],
)
def test_baselines_of_real_slides_are_those_on_record(fold, slide, recorded):
    (dataset,) = find_datasets(BENCH)
    genes, split = read_gene_list(dataset.path / "var_50genes.json"), dataset.folds()[fold]
    train, (test,) = (
        [load_sample(sample, EMBEDDINGS.parent, "efficientnet_lite0", genes) for sample in side]
        for side in (split.train, split.test)
    )
    predicted = {name: predict(blind(test)) for name, predict in fit_baselines(train).items()}
    dark = darkness(split.test[0].patches_path, test.barcodes)
    predicted[DARKNESS] = np.repeat(dark[:, None], len(genes), axis=1)
    scores = {name: pearson_per_gene(values, test.y) for name, values in predicted.items()}
    assert test.name == slide
    for name, value in recorded.items():
        assert mean_of_defined(scores[name]) == pytest.approx(value, abs=0.02), name
    assert np.isnan(scores[GENE_MEAN]).all()
