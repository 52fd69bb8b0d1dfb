from __future__ import annotations

import numpy as np

from stflow_graph.io.loupe import level_edges, level_names


def test_levels_hold_equally_many_spots_and_their_names_sort_like_them():
    values = np.random.default_rng(0).permutation(100).astype(float)
    (edges,) = level_edges(values[:, None])
    names = np.asarray(level_names(values, edges))
    levels, counts = np.unique(names.astype(str), return_counts=True)
    assert counts.tolist() == [20] * 5
    assert [name[:3] for name in levels] == ["1: ", "2: ", "3: ", "4: ", "5: "]
    rank = np.array([int(name[0]) for name in names])
    assert (np.diff(rank[np.argsort(values)]) >= 0).all()


def test_a_constant_has_one_level_and_ties_share_theirs():
    constant, mostly_zero = np.full(10, 0.5), np.array([0.0] * 9 + [1.0])
    edges = level_edges(np.stack([constant, mostly_zero], 1))
    assert set(level_names(constant, edges[0])) == {"1: 0.5"}
    names = np.asarray(level_names(mostly_zero, edges[1]))
    assert len(set(names[:9])) == 1
