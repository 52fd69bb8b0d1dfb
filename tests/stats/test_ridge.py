from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from stflow_graph.data.slide import Slide
from stflow_graph.nn.ridge_head import RidgeHead
from stflow_graph.stats import ridge
from stflow_graph.stats.ridge import ALPHAS, HeldOutPart, RidgePath, held_out_scores
from stflow_graph.training.ridge import choose_input_dropout, fit_ridge_heads


def slides(n: int = 4, spots: int = 60, channels: int = 20, noise: float = 1.0) -> list[Slide]:
    weights = np.random.default_rng(9).normal(size=(channels, 3))
    found = []
    for i in range(n):
        rng = np.random.default_rng(i)
        x = rng.normal(size=(spots, channels)).astype(np.float32)
        y = x @ weights + noise * rng.normal(size=(spots, 3)) + i
        names = [f"{i}-{j}" for j in range(spots)]
        found.append(Slide(f"S{i}", x, rng.random((spots, 2)), names, y.astype(np.float32)))
    return found


def features(slide: Slide) -> np.ndarray:
    return slide.x


def splits(given):
    return [([s for s in given if s is not each], [each]) for each in given]


def fit(given) -> RidgePath:
    return RidgePath.fit([s.x for s in given], [s.y for s in given])


def score(given) -> np.ndarray:
    parts = [[HeldOutPart(each.x, each.y)] for each in given]
    return held_out_scores([fit(learn) for learn, _ in splits(given)], parts)


def dropout(given) -> float:
    paths = [fit(learn) for learn, _ in splits(given)]
    return choose_input_dropout(splits(given), features, paths)


def test_it_is_scikit_learns_ridge_on_slides_centred_one_by_one():
    given = slides()
    x = np.concatenate([s.x for s in given]).astype(float)
    y = np.concatenate([s.y - s.y.mean(0) for s in given]).astype(float)
    path = fit(given)
    for alpha in (1.0, 100.0):
        expected = Ridge(alpha=alpha, fit_intercept=False).fit(x, y).coef_.T
        np.testing.assert_allclose(path.weights(alpha), expected, rtol=1e-5, atol=1e-7)


def test_many_spots_are_drawn_from_with_the_penalty_in_proportion(monkeypatch):
    given = slides(spots=400)
    monkeypatch.setattr(ridge, "_MAX_ROWS", 1600)
    whole = fit(given).weights(1600.0)
    monkeypatch.setattr(ridge, "_MAX_ROWS", 800)
    drawn = fit(given).weights(1600.0)
    np.testing.assert_allclose(drawn, whole, atol=0.1)


def test_scores_are_of_held_out_slides():
    given = slides(noise=0.1)
    scores = score(given)
    assert scores.shape == (len(ALPHAS), 1)
    assert scores.max() > 0.95
    for slide in given:  # nothing to learn
        slide.y[:] = np.random.default_rng(len(slide.name)).normal(size=slide.y.shape)
    assert score(given).max() < 0.3


def test_noisier_slides_ask_for_more_dropout():
    rates = [dropout(slides(noise=noise, channels=200)) for noise in (0.1, 30.0)]
    assert 0 < rates[0] < rates[1] <= 0.98


def test_the_rate_does_not_depend_on_the_unit_of_the_penalty_and_nothing_to_score_is_no_error():
    given = slides(noise=3.0)
    rate = dropout(given)
    alpha = ALPHAS[int(score(given)[:, 0].argmax())]
    squares = np.mean([np.square(s.x).mean() for s in given]) * 240
    assert rate == pytest.approx(min(0.98, alpha / (alpha + 2 * squares)), abs=1e-3)
    for slide in given:
        slide.y[:] = 1
    assert dropout(given) == 0.5


@pytest.mark.parametrize(("error", "share"), [(1.0, 0.5), (0.3, 0.25), (0.0, 0.0)])
def test_the_ridge_has_the_share_that_held_out_slides_ask_for(error, share):
    given = slides(spots=200, noise=3.0)
    parted, rng = splits(given), np.random.default_rng(0)
    paths = [fit(learn) for learn, _ in parted]
    # the weights that the slides were made with; a ridge errs by about .5
    weights = np.random.default_rng(9).normal(size=(20, 3))
    means = {s: s.x @ weights + error * rng.normal(size=s.y.shape) for s in given}
    parts = [RidgeHead(20, 3, 3) for _ in given]
    alpha, found = fit_ridge_heads(parts, parted, features, means, paths, [np.zeros(3)] * 4)
    assert found == share
    assert [float(part.mixing_weight) for part in parts] == [share] * 4
    assert alpha in ALPHAS


def test_the_ridge_stays_out_where_no_held_out_slide_can_be_scored():
    given = slides()
    for slide in given:
        slide.y[:] = 1.0
    parted = splits(given)
    paths = [fit(learn) for learn, _ in parted]
    means = {slide: slide.truth for slide in given}
    part = RidgeHead(20, 3, 3)
    assert fit_ridge_heads([part] * 4, parted, features, means, paths, [np.zeros(3)] * 4) is None
    assert float(part.mixing_weight) == 0
