from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from linear import CHANNELS, N_GENES, WEIGHTS, linear_slide

from stflow_graph.data.slide import Slide
from stflow_graph.nn.ridge_head import RidgeHead
from stflow_graph.stats.ridge import ALPHAS, RidgePath, fit_ridge_path
from stflow_graph.training.ridge import choose_input_dropout, fit_ridge_heads

# of the channels: so large that the grid's penalties matter
SCALES = np.array([10, 10, 100, 100, 30, 30], np.float32)
SLIDES = [linear_slide(name, 12, noise=2.0) for name in "ABCD"]
SPLITS = [(SLIDES[1:], SLIDES[:1]), (SLIDES[:1] + SLIDES[2:], SLIDES[1:2])]


def features(slide: Slide) -> np.ndarray:
    return slide.x * SCALES


def solved(slides: list[Slide], alpha: float) -> np.ndarray:
    """Return ridge weights by the normal equations, expression centred slide by slide."""
    x = np.concatenate([features(slide) for slide in slides]).astype(float)
    y = np.concatenate([slide.truth - slide.truth.mean(0) for slide in slides])
    return np.linalg.solve(x.T @ x + alpha * np.eye(x.shape[1]), x.T @ y)


def score(predicted: np.ndarray, slide: Slide) -> float:
    return np.diag(np.corrcoef(predicted.T, slide.truth.T)[:N_GENES, N_GENES:]).mean()


def paths() -> list[RidgePath]:
    return [
        RidgePath.fit([features(s) for s in learn], [s.truth for s in learn]) for learn, _ in SPLITS
    ]


def test_the_input_dropout_is_that_of_the_best_penalty():
    scores = [
        np.mean([score(features(s) @ solved(learn, a), s) for learn, part in SPLITS for s in part])
        for a in ALPHAS
    ]
    best = int(np.argmax(scores))
    assert 0 < best < len(ALPHAS) - 1, "the example should have its best penalty inside the grid"
    squares = np.mean([features(slide).astype(float) ** 2 for slide in SLIDES])
    odds = ALPHAS[best] / (2 * 4 * 12 * squares)
    found = choose_input_dropout(SPLITS, features, paths())
    assert found / (1 - found) == pytest.approx(odds, rel=1e-2)
    assert found == round(found, 4)


def test_the_input_dropout_is_bounded_and_has_a_default():
    small = [RidgePath(p.x / 1e3, p.values / 1e6, p.vectors, p.rotated, p.share) for p in paths()]
    assert choose_input_dropout(SPLITS, lambda slide: features(slide) / 1e3, small) == 0.98
    flat = linear_slide("F", 12)
    flat.y[:] = 8
    assert choose_input_dropout([(SLIDES[1:], [flat])], features, paths()[:1]) == 0.5


# how good the networks' means are, and the weight that a ridge then deserves
QUALITIES = [("true", 0.0), ("fair", 0.25), ("none", 0.5), ("constant", None)]


@pytest.mark.parametrize(("quality", "weight"), QUALITIES)
def test_ridge_heads_get_the_penalty_and_the_weight_that_suit_held_out_slides(quality, weight):
    held_out = [slide for _, part in SPLITS for slide in part]
    noise = np.random.default_rng(1).normal(size=(2, 12, N_GENES))
    share = {"true": 1.0, "fair": 0.78, "none": 0.0, "constant": 0.0}[quality]
    if quality == "constant":  # without a score of their own
        noise[:] = 1
    means = {
        slide: share * slide.truth + (1 - share) * 9 * z
        for slide, z in zip(held_out, noise, strict=True)
    }
    heads = [RidgeHead(CHANNELS, N_GENES, rank=9) for _ in SPLITS]
    level = [np.full(N_GENES, 2.0), np.full(N_GENES, -3.0)]
    alpha, found = fit_ridge_heads(heads, SPLITS, features, means, paths(), level)
    table = {
        (a, w): np.mean(
            [
                score((1 - w) * means[s] + w * features(s) @ solved(learn, a), s)
                for learn, part in SPLITS
                for s in part
            ]
        )
        for a in ALPHAS
        for w in (0.5, 0.25, 0.0)
        if w or quality != "constant"
    }
    assert table[alpha, found] == pytest.approx(max(table.values()), abs=1e-9)
    assert found == weight if weight is not None else found > 0
    for head, (learn, _), mean in zip(heads, SPLITS, level, strict=True):
        assert head.mixing_weight == found
        x = np.concatenate([features(slide) for slide in learn])
        expected = mean + (x - x.mean(0)) @ solved(learn, alpha)
        with torch.no_grad():
            predicted = head(torch.from_numpy(x), lambda z: z).numpy()
        np.testing.assert_allclose(predicted, expected, rtol=1e-4, atol=1e-4)


def test_heads_stay_unset_where_nothing_can_be_scored():
    flat = linear_slide("F", 12)
    flat.y[:] = 8
    head = RidgeHead(CHANNELS, N_GENES, rank=9)
    splits, means = [(SLIDES[1:], [flat])], {flat: flat.truth}
    level = [np.zeros(N_GENES)]
    assert fit_ridge_heads([head], splits, features, means, paths()[:1], level) is None
    assert all((value == 0).all() for value in head.state_dict().values())


@pytest.mark.parametrize("missing", [False, True])
def test_weights_that_are_fixed_stay_whatever_the_penalty(missing):
    slides = list(SLIDES)
    if missing:  # the third gene, of one slide
        y = slides[0].truth.copy()
        y[:, 2] = np.nan
        slides[0] = dataclasses.replace(slides[0], y=y)
    splits = [(slides, [SLIDES[3]])]
    path = fit_ridge_path([features(s) for s in slides], [s.truth for s in slides])
    fixed = np.full((CHANNELS, N_GENES), np.nan)
    fixed[:, :2] = WEIGHTS[:, :2] / SCALES[:, None]
    head, level = RidgeHead(CHANNELS, N_GENES, rank=9), np.full(N_GENES, 2.0)
    means = {SLIDES[3]: np.random.default_rng(0).normal(size=(12, N_GENES))}
    fitted = fit_ridge_heads([head], splits, features, means, [path], [level], [fixed])
    assert fitted is not None
    expected = np.concatenate([fixed[:, :2], path.weights(fitted[0])[:, 2:]], axis=1)
    weights = (head.up.weight @ head.down.weight).T
    np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-5)
    # the level is that of the slides
    x = np.concatenate([features(slide) for slide in slides])
    predicted = head(torch.from_numpy(x), lambda z: z).detach().numpy()
    np.testing.assert_allclose(predicted[:, :2].mean(axis=0), 2, rtol=1e-4)
