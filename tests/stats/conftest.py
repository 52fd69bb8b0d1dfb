"""Fixtures shared by the tests of the statistics."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """A prediction of 80 spots and 7 genes, and its truth, which has ties."""
    rng = np.random.default_rng(0)
    truth = np.log1p(rng.poisson(2.0, (80, 7)))
    return (0.5 * truth + rng.normal(size=truth.shape)).astype(np.float32), truth
