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
    assert list(dict.fromkeys(folds.tolist())) == list(range(k))  # numbered as they come
    np.testing.assert_array_equal(group_folds(groups, k, **options), folds)


@given(slides)
def test_as_many_folds_as_groups_leave_one_group_out_in_their_order(rows):
    groups = [group for group, _, _ in rows]
    order = list(dict.fromkeys(groups))
    folds = group_folds(groups, len(order), weights=[weight for _, weight, _ in rows])
    assert folds.tolist() == [order.index(group) for group in groups]


@given(slides, st.data())
def test_folds_are_as_even_as_those_of_scikit_learn(rows, data):
    groups = [group for group, _, _ in rows]
    k = data.draw(st.integers(2, len(set(groups))))
    sizes = np.bincount(group_folds(groups, k))
    theirs = [len(test) for _, test in GroupKFold(k).split(groups, groups=groups)]
    assert sorted(sizes) == sorted(theirs)


def test_weights_and_strata_are_spread():
    groups = list("ABCD")
    assert group_folds(groups, 2, weights=[9, 1, 5, 5]).tolist() in ([0, 1, 1, 0], [0, 0, 1, 1])
    for seed in range(5):
        folds = group_folds(groups, 2, strata=list("xxyy"), seed=seed)
        assert folds[0] != folds[1]
        assert folds[2] != folds[3]


def test_the_seed_decides_among_equals():
    drawn = {tuple(group_folds(list("ABCDEF"), 3, seed=seed)) for seed in range(20)}
    assert len(drawn) > 3


@pytest.mark.parametrize("k", [1, 3])
def test_there_is_no_fold_without_a_group(k):
    with pytest.raises(ValueError, match=f"k = {k} for 2 groups"):
        group_folds(["A", "B", "A"], k)


def test_weights_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        group_folds(["A", "B"], 2, weights=[1, 0])
