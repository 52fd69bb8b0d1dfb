from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from stflow_graph.stats.umap_plane import MIN_SPOTS, umap_plane

needs_umap = pytest.mark.skipif(
    importlib.util.find_spec("umap") is None, reason="needs pip install .[scanpy]"
)


def groups(n: int = 60) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(n, 5)) + 30 * (np.arange(n)[:, None] % 2)).astype(np.float32)


def test_it_is_none_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    assert umap_plane(groups()) is None


@needs_umap
@pytest.mark.filterwarnings("default")  # of numba's and umap's own
def test_neighbours_stay_together_and_a_seed_repeats():
    (places, version), (again, _) = umap_plane(groups(), 3), umap_plane(groups(), 3)
    np.testing.assert_array_equal(places, again)
    assert version
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    nearest = np.argsort(distance, axis=1)[:, 1]
    assert (nearest % 2 == np.arange(len(places)) % 2).mean() > 0.9
    other, _ = umap_plane(groups(), 4)
    assert not np.array_equal(places, other)


@needs_umap
@pytest.mark.filterwarnings("default")
def test_features_on_a_line_have_places():
    features = np.repeat(np.arange(3.0, dtype=np.float32), MIN_SPOTS // 3)[:, None]
    places, _ = umap_plane(features)
    assert places.shape == (MIN_SPOTS, 2)
    assert np.isfinite(places).all()
