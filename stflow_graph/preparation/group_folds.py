"""Folds whose test sides share no patient (or other group) with their training sides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def group_folds(
    groups: Sequence[str],
    k: int,
    *,
    weights: Sequence[float] | None = None,
    strata: Sequence[str] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Deal S slides to k folds, all slides of a group to the same one.

    Groups are dealt from the heaviest to the lightest, each to the fold where the sum over strata
    and folds of (fold's weight / stratum's weight)² grows least: with one stratum, the lightest
    fold, as scikit-learn's ``GroupKFold`` does. No fold stays empty.

    Args:
        groups: each slide's group, such as its patient.
        k: folds, from 2 to the number of groups.
        weights: what each slide counts, such as its spots; None counts slides.
        strata: each slide's class, whose weight is spread evenly; None means one class.
        seed: decides among groups of equal weight.

    Returns:
        ``[S]`` the fold that tests each slide, numbered in the order of the slides.

    Raises:
        ValueError: k is out of range, or a weight is not positive.
    """
    group = _numbered(groups)
    n_groups = int(group.max(initial=-1)) + 1
    if not 2 <= k <= n_groups:
        raise ValueError(f"k = {k} for {n_groups} groups")
    weight = np.ones(len(group)) if weights is None else np.asarray(weights, dtype=np.float64)
    if not (np.isfinite(weight) & (weight > 0)).all():
        raise ValueError("weights must be positive")
    stratum = np.zeros(len(group), dtype=np.int64) if strata is None else _numbered(strata)
    # the last column, of all strata together, keeps a fold from standing empty
    shares = np.zeros((n_groups, stratum.max() + 2))
    np.add.at(shares, (group, stratum), weight)
    shares[:, -1] = shares.sum(axis=1)
    order = np.random.default_rng(seed).permutation(n_groups)
    order = order[np.argsort(-shares[order, -1], kind="stable")]
    shares /= shares.sum(axis=0)
    load = np.zeros((k, shares.shape[1]))
    fold_of = np.empty(n_groups, dtype=np.int64)
    for number in order:
        # the growth of the sum of squares, less what is the same for all folds
        fold = int(np.argmin(load @ shares[number]))
        load[fold] += shares[number]
        fold_of[number] = fold
    return _numbered(fold_of[group])


def _numbered(values: Sequence[str] | np.ndarray) -> np.ndarray:
    """Number the different values in the order in which they first come."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)
