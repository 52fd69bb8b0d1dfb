"""Folds whose test sides share no patient (or other group) with their training sides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd


def group_folds(
    groups: Sequence[str],
    k: int,
    *,
    weights: Sequence[float] | None = None,
    strata: Sequence[str] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Assign S slides to k folds, all slides of a group to the same one.

    Groups are assigned from the heaviest to the lightest, each to the fold where the sum over
    strata and folds of (fold's weight / stratum's weight)² grows least; with one stratum that is
    the lightest fold, as in scikit-learn's ``GroupKFold``. No fold is empty. scikit-learn's
    ``StratifiedGroupKFold`` has no weights, rejects k above the size of every stratum, and may
    leave a fold empty when its comparison of standard deviations ties up to rounding.

    Args:
        groups: the group of each slide, such as its patient.
        k: number of folds, from 2 to the number of groups.
        weights: weight of each slide, such as its spots; None weighs all the same.
        strata: the class of each slide, whose weight is spread evenly; None means one class.
        seed: decides among groups of equal weight.

    Returns:
        ``[S]`` the fold that tests each slide, numbered in the order of the slides.

    Raises:
        ValueError: k is out of range, or a weight is not positive.
    """
    group, names = pd.factorize(np.asarray(groups, dtype=object))
    if not 2 <= k <= len(names):
        raise ValueError(f"k = {k} for {len(names)} groups")
    weight = np.ones(len(group)) if weights is None else np.asarray(weights, dtype=np.float64)
    if not (np.isfinite(weight) & (weight > 0)).all():
        raise ValueError("weights must be positive")
    stratum, _ = pd.factorize(np.asarray([""] * len(group) if strata is None else strata, object))
    # the last column, of all strata together, keeps every fold from staying empty
    shares = np.zeros((len(names), stratum.max() + 2))
    np.add.at(shares, (group, stratum), weight)
    shares[:, -1] = shares.sum(axis=1)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-shares[order, -1], kind="stable")]
    shares /= shares.sum(axis=0)
    load = np.zeros((k, shares.shape[1]))
    fold_of = np.empty(len(names), dtype=np.int64)
    for i in order:
        # the growth of the sum of squares, without the terms that are equal for all folds
        fold_of[i] = np.argmin(load @ shares[i])
        load[fold_of[i]] += shares[i]
    return pd.factorize(fold_of[group])[0]
