from __future__ import annotations

import numpy as np
import pytest

from stflow_graph.graph.hilbert import hilbert_order


def lattice(side: int) -> np.ndarray:
    axis = np.arange(side, dtype=float)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)


@pytest.mark.parametrize("side", [2, 8, 64])
def test_each_step_on_a_lattice_goes_to_a_neighbour(side):
    pos = lattice(side)
    order = hilbert_order(pos)
    assert np.array_equal(np.sort(order), np.arange(side**2))
    assert np.array_equal(np.abs(np.diff(pos[order], axis=0)).sum(axis=1), np.ones(side**2 - 1))


def test_runs_of_scattered_points_are_compact():
    pos = np.random.default_rng(0).random((4096, 2)) * [3.0, 1.0]
    order = hilbert_order(pos)
    runs = pos[order].reshape(64, 64, 2)
    sides = np.ptp(runs, axis=1)
    assert np.median(sides.max(axis=1)) < 2.5 * np.sqrt(3 / 64)  # of a square with 64 of them
    shuffled = np.random.default_rng(1).permutation(len(pos))
    assert np.array_equal(pos[shuffled][hilbert_order(pos[shuffled])], pos[order])


def test_position_and_scale_of_the_slide_do_not_count():
    pos = lattice(16)
    assert np.array_equal(hilbert_order(pos * 512.0 - 4096), hilbert_order(pos))


def test_points_at_one_place_keep_their_order(monkeypatch):
    monkeypatch.setattr("stflow_graph.graph.hilbert._ROWS", 3)
    assert hilbert_order(np.zeros((7, 2))).tolist() == list(range(7))
    pos = np.repeat([[0.0, 0.0], [1.0, 0.0]], 2, axis=0)[[0, 2, 1, 3]]
    assert hilbert_order(pos).tolist() in ([0, 2, 1, 3], [1, 3, 0, 2])


@pytest.mark.parametrize("n", [0, 1])
def test_few_points(n):
    assert hilbert_order(np.ones((n, 2))).tolist() == list(range(n))
