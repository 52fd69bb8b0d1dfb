from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load, save

from stflow_graph.stats.training_range import LEVELS, TrainingRange

F, G = 40, 3


def slide(seed, n=150, shift=0.0, scale=1.0):
    """Embeddings about a common subspace, each slide with an offset of its own."""
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(99).normal(size=(5, F))
    inside = rng.normal(size=(n, 5)) @ basis + 0.3 * rng.normal(size=5) @ basis
    return scale * (inside + 0.2 * rng.normal(size=(n, F))) + shift


def fitted(n_slides=4, stains=()):
    predictions = [np.random.default_rng(i).gamma(1, 1, (50, G)) for i in range(n_slides)]
    return TrainingRange.fit([slide(i) for i in range(n_slides)], predictions, stains)


@pytest.mark.parametrize("n_slides", [1, 2, 4, 20])
def test_a_slide_like_those_of_training_is_in_range_and_others_are_not(n_slides):
    known = fitted(n_slides)
    same = known.distances(slide(100))
    assert (same <= 1).mean() > 0.9
    assert known.slide_in_range(same)
    others = {
        "noise": np.random.default_rng(0).normal(size=(60, F)) * 3,
        "constant": np.full((60, F), 5.0),
        "shifted": slide(101, shift=np.random.default_rng(7).normal(size=F) * 3),
        "scaled": slide(102, scale=6.0),
    }
    for name, x in others.items():
        distances = known.distances(x)
        assert not known.slide_in_range(distances), name
        assert (distances > 1).mean() > 0.7, name


def test_distances_are_mahalanobis_distances_of_the_model_in_its_formula():
    known = fitted()
    covariance = known.components.T @ np.diag(known.variances) @ known.components
    covariance += known.residual * (np.eye(F) - known.components.T @ known.components)
    x = slide(100, 20)
    difference = x - known.mean
    expected = np.einsum("nf,fg,ng->n", difference, np.linalg.inv(covariance), difference) / F
    np.testing.assert_allclose(known.distances(x) * known.spot_limit, expected, rtol=1e-8)
    np.testing.assert_allclose(known.components @ known.components.T, np.eye(16), atol=1e-10)
    own = np.concatenate([slide(i) for i in range(4)])
    assert known.distances(own).mean() * known.spot_limit == pytest.approx(1, abs=0.02)


def test_dead_channels_are_far_when_they_come_alive():
    slides = [slide(i) for i in range(3)]
    for x in slides:
        x[:, :4] = 0
    known = TrainingRange.fit(slides, [np.ones((5, G))])
    alive = slide(50)
    assert not known.slide_in_range(known.distances(alive))
    alive[:, :4] = 0
    assert known.slide_in_range(known.distances(alive))


def test_stains_are_compared_where_they_are_known():
    pink, blue = np.array([0.25, 0.5, 0.25]), np.array([0.45, 0.35, 0.2])
    known = fitted(3, [pink, None, pink + 0.02 * np.array([1, -1, 0])])
    assert known.stain_in_range(pink + 0.04 * np.array([0, 1, -1])) is True
    assert known.stain_in_range(blue) is False
    assert known.stain_in_range(None) is None
    assert fitted(2, [None, None]).stain_in_range(blue) is None
    assert fitted(2).stain_in_range(blue) is None
    assert fitted(2).stain_in_range(np.zeros(3)) is False  # nothing is stained


def test_expression_is_that_of_the_held_out_predictions():
    parts = [np.arange(101.0)[:, None] * [1, 2, 3]]
    known = TrainingRange.fit([slide(0), slide(1)], parts)
    np.testing.assert_allclose(known.expression, np.outer([1, 2, 3], 100 * LEVELS))


def test_arrays_are_read_back_and_others_refused():
    known = fitted(3, [np.array([0.3, 0.4, 0.3]), None, None])
    arrays = known.arrays()
    again = TrainingRange.from_arrays(load(save(arrays)), F, G)
    np.testing.assert_allclose(again.distances(slide(5)), known.distances(slide(5)), rtol=1e-4)
    np.testing.assert_array_equal(np.isnan(again.stains), np.isnan(known.stains))
    with pytest.raises(KeyError):
        TrainingRange.from_arrays({k: v for k, v in arrays.items() if k != "mean"}, F, G)
    components, expression = arrays["components"], arrays["expression"]
    changes = {
        "shape": [
            ("mean", arrays["mean"][:-1]),
            ("components", components.T),
            ("components", components[:-1]),
            ("variances", arrays["variances"][:-1]),
            ("variances", arrays["variances"][0]),
            ("slide_limit", np.ones(2, np.float32)),
            ("stains", np.zeros(3, np.float32)),
            ("expression", expression[:1]),
        ],
        "finite": [
            *((name, np.full_like(value, np.inf)) for name, value in arrays.items()),
            *((n, np.full_like(v, np.nan)) for n, v in arrays.items() if n != "stains"),
        ],
        "not positive": [
            ("variances", -arrays["variances"]),
            ("residual", np.zeros((), np.float32)),
            ("spot_limit", np.float32(1e-42)),
            ("slide_limit", np.float32(-1)),
        ],
        "orthonormal": [("components", 2 * components), ("components", components[[0] * 16])],
        "decrease": [("expression", expression[:, ::-1])],
        "expected float32": [
            *((n, v.astype(t)) for n, v in arrays.items() for t in ("f8", "f2", ">f4", "c8", "?"))
        ],
        "unexpected: more": [("more", np.zeros(1, np.float32))],
    }
    for message, cases in changes.items():
        for name, value in cases:
            with pytest.raises(ValueError, match=message):
                TrainingRange.from_arrays({**arrays, name: value}, F, G)
    for sizes in ((F + 1, G), (F, G - 1), (0, G), (-1, G), (F, 10**9)):
        with pytest.raises(ValueError, match="shape"):
            TrainingRange.from_arrays(arrays, *sizes)
    none = {"components": components[:0], "variances": arrays["variances"][:0]}
    with pytest.raises(ValueError, match="shape"):
        TrainingRange.from_arrays({**arrays, **none}, F, G)


@pytest.mark.parametrize(
    "values", [(1, 1), (0, 0), (1, 2), (None, 1), (1, None), (None, 1e3)], ids=str
)
def test_a_range_of_constant_embeddings_can_be_read_back(values):
    slides = [1e4 * slide(0) if value is None else np.full((9, F), value) for value in values]
    known = TrainingRange.fit(slides, [np.ones((5, G))])
    again = TrainingRange.from_arrays(known.arrays(), F, G)
    for x in (*slides, slide(1, scale=1e6)):
        assert np.isfinite(again.distances(x).astype(np.float32)).all()


def test_large_slides_count_no_more_than_others():
    slides = [slide(i) for i in range(3)]
    many = np.repeat(slides[0], 40, axis=0)
    one = TrainingRange.fit([many, *slides[1:]], [np.ones((5, G))])
    assert one.slide_in_range(one.distances(slide(100)))
    assert len(one.mean) == F
