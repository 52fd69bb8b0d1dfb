from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold

from stflow_graph.preparation.group_folds import group_folds

slides = st.lists(
    st.tuples(st.sampled_from("ABCDEFG"), st.integers(1, 500), st.sampled_from("xyz")),
    min_size=2,
    max_size=30,
).filter(lambda rows: len({group for group, _, _ in rows}) > 1)


@given(slides, st.data(), st.integers(0, 5), st.booleans())
def test_groups_stay_whole_and_no_fold_is_empty(rows, data, seed, stratified):
    groups, weights, strata = zip(*rows, strict=True)
    k = data.draw(st.integers(2, len(set(groups))))
    options = {"weights": weights, "strata": strata if stratified else None, "seed": seed}
    folds = group_folds(groups, k, **options)
    assert len(set(zip(groups, folds.tolist(), strict=True))) == len(set(groups))
    assert list(dict.fromkeys(folds.tolist())) == list(range(k))  # numbered in slide order
    np.testing.assert_array_equal(group_folds(groups, k, **options), folds)
    if not stratified:
        theirs = [len(test) for _, test in GroupKFold(k).split(groups, groups=groups)]
        assert sorted(np.bincount(group_folds(groups, k))) == sorted(theirs)


def test_weights_and_strata_are_spread_and_the_seed_decides_among_equals():
    groups = list("ABCD")
    assert group_folds(groups, 2, weights=[9, 1, 5, 5]).tolist() in ([0, 1, 1, 0], [0, 0, 1, 1])
    for seed in range(5):
        folds = group_folds(groups, 2, strata=list("xxyy"), seed=seed)
        assert folds[0] != folds[1]
        assert folds[2] != folds[3]
    assert len({tuple(group_folds(list("ABCDEF"), 3, seed=seed)) for seed in range(20)}) > 3


@pytest.mark.parametrize(
    ("k", "weights", "message"),
    [(1, None, "k = 1 for 2"), (3, None, "k = 3 for 2 groups"), (2, [1, 1, 0], "positive")],
)
def test_folds_without_a_group_and_weights_that_are_not_positive_are_refused(k, weights, message):
    with pytest.raises(ValueError, match=message):
        group_folds(["A", "B", "A"], k, weights=weights)
