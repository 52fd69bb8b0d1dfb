from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from stflow_graph.data.normalise import TARGETS, Normalisation, to_target

RNG = np.random.default_rng(0)


def test_targets_are_logs_of_counts_and_of_shares():
    counts, total = sp.csr_matrix([[1.0, 3.0], [0.0, 0.0]]), np.array([10.0, 0.0])
    np.testing.assert_allclose(to_target(counts, total, "log1p"), np.log1p([[1, 3], [0, 0]]))
    np.testing.assert_allclose(
        to_target(counts, total, "log1p_normalised"), np.log1p([[1000, 3000], [0, 0]]), rtol=1e-6
    )
    with pytest.raises(ValueError, match=", ".join(TARGETS)):
        to_target(counts, total, "cpm")


def fit(standardize, center=True):
    xs = [RNG.normal(3, 2, (40, 5)).astype(np.float32) for _ in range(2)]
    ys = [RNG.normal(1, 1, (n, 4)).astype(np.float32) for n in (10, 30)]
    return xs, ys, Normalisation.fit(xs, ys, standardize, center)


def test_standardising_gives_mean_zero_and_deviation_one():
    xs, _, scaling = fit("slide")
    out = scaling.embeddings(xs[0])
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(0), 1, atol=1e-4)
    xs, _, scaling = fit("train")
    joined = np.concatenate([scaling.embeddings(x) for x in xs])
    np.testing.assert_allclose(joined.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(joined.std(0), 1, atol=1e-4)
    assert fit("none")[2].embeddings(xs[0]) is xs[0]


def test_centring_keeps_the_channels_relative_spread_and_forgets_the_slides_mean():
    xs, _, scaling = fit("center")
    x = xs[0] * np.arange(1, 6, dtype=np.float32)
    out = scaling.embeddings(x)
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-5)
    assert np.mean(out**2) == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(out.std(0) / out.std(0)[0], x.std(0) / x.std(0)[0], rtol=1e-4)
    np.testing.assert_allclose(scaling.embeddings(3 * x + 7), out, atol=1e-4)


def test_a_constant_channel_becomes_zero():
    scaling = fit("slide")[2]
    assert np.all(scaling.embeddings(np.full((7, 5), 3.3, np.float32)) == 0)


def test_centred_targets_come_back_around_the_mean_of_slides():
    _, ys, scaling = fit("slide")
    centred = scaling.targets(ys[0])
    np.testing.assert_allclose(centred.mean(0), 0, atol=1e-6)
    # every slide counts alike, however many spots it has
    expected = (ys[0].mean(0) + ys[1].mean(0)) / 2
    np.testing.assert_allclose(scaling.expression(centred).mean(0), expected, atol=1e-5)
    assert fit("slide", center=False)[2].targets(ys[0]) is ys[0]
