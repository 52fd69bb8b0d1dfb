"""Levels are found that counts were multiplied by."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stflow_graph.flow.levels import GeneLevels, at_level

GENES = 60


def test_counts_are_multiplied():
    mean = torch.tensor([[0.0, 0.1, 2.0], [-0.2, 5.0, 9.0]])
    level = torch.tensor([0.7, -1.0, 0.3])
    counts = torch.expm1(mean.clamp(min=0)) * level.exp()
    torch.testing.assert_close(at_level(mean, level), torch.log1p(counts))
    unchanged = at_level(mean, torch.zeros(3))
    torch.testing.assert_close(unchanged, mean.clamp(min=0), rtol=1e-6, atol=1e-7)


def slide(
    n: int, shared: float, own: float, *, in_common: float = 0.0, noise: float = 0.3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return expected and measured expression and the levels."""
    rng = np.random.default_rng(seed)
    mean = np.log1p(np.exp(rng.normal(1, 0.7, GENES) + 0.3 * rng.normal(size=(n, 1))))
    levels = shared + own * rng.normal(size=GENES)
    spots = in_common * rng.normal(size=(n, 1))
    truth = np.log1p(np.expm1(mean) * np.exp(levels + spots))
    truth = truth + noise * rng.normal(size=truth.shape)
    return mean.astype(np.float32), truth.astype(np.float32), levels


@pytest.mark.parametrize("shared", [-1.2, 0.0, 0.5])
@pytest.mark.parametrize("own", [0.05, 0.4])
def test_levels_are_found(shared, own):
    mean, truth, levels = slide(200, shared, own)
    found = GeneLevels.fit(mean, truth, np.full(GENES, 0.3))
    assert found.shared == pytest.approx(levels.mean(), abs=0.08 + 0.05 * abs(shared))
    assert np.sqrt(np.square(found.genes - levels).mean()) < 0.07
    assert found.own**0.5 == pytest.approx(max(own, 0.2), abs=0.08)  # as some genes had .5 before


def test_genes_hardly_expressed_have_the_level_of_the_others():
    mean, truth, _ = slide(200, -0.8, 0.05)
    mean[:, 0], truth[:, 0] = 1e-4, 0
    found = GeneLevels.fit(mean, truth, np.full(GENES, 0.3))
    assert found.genes[0] == pytest.approx(found.shared, abs=0.05)


def test_one_spot_says_little_of_the_slide():
    """Its genes have its own depth in common."""
    errors = []
    for seed in range(12):
        mean, truth, _ = slide(1, 0.0, 0.1, in_common=0.6, noise=0.1, seed=seed)
        found = GeneLevels.fit(mean, truth, np.full(GENES, 0.1))
        naive = (truth - mean).mean() / (1 - np.exp(-mean)).mean()
        errors.append([found.shared, naive])
    rms = np.sqrt(np.square(errors).mean(axis=0))
    assert rms[0] < 0.7 * rms[1]
    # many spots tell it
    mean, truth, levels = slide(300, 0.8, 0.1, in_common=0.6, noise=0.1)
    found = GeneLevels.fit(mean, truth, np.full(GENES, 0.1))
    assert found.shared == pytest.approx(levels.mean(), abs=0.12)


def test_noise_alone_is_no_level():
    mean, truth, _ = slide(4, 0.0, 0.0, noise=1.0)
    found = GeneLevels.fit(mean, truth, np.full(GENES, 1.0))
    measured = (truth - mean).mean(axis=0)
    assert np.sqrt(np.square(found.genes).mean()) < 0.6 * np.sqrt(np.square(measured).mean())


@pytest.mark.parametrize("case", ["all zero", "nothing expected", "one gene", "never varied"])
def test_odd_slides_have_finite_levels(case):
    mean, truth, _ = slide(30, 0.3, 0.2)
    scale = np.full(GENES, 0.3)
    if case == "all zero":
        truth = np.zeros_like(truth)
    elif case == "nothing expected":
        mean = np.zeros_like(mean) - 0.1
    elif case == "one gene":
        mean, truth, scale = mean[:1, :1], truth[:1, :1], scale[:1]
    else:
        scale[0], truth[:, 0] = 1e-6, 0
    found = GeneLevels.fit(mean, truth, scale)
    assert np.isfinite([*found.genes, found.shared, found.own]).all()
    assert np.abs(found.genes).max() <= 9


def test_genes_that_are_not_measured_have_the_shared_level():
    levels = GeneLevels(np.array([1.0, 2.0]), 1.4, 0.2).of_all(np.array([3, 1]), 5)
    assert levels.tolist() == [1.4, 2.0, 1.4, 1.0, 1.4]
