"""Ridge regressions on the training slides: the input dropout they imply, and the ridge heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from stflow_graph.data.slide import Slide
from stflow_graph.nn.ridge_head import RidgeHead
from stflow_graph.stats.ridge import (
    ALPHAS,
    HeldOutPart,
    PanelRidgePath,
    RidgePath,
    held_out_scores,
)

# of the ridge in the mean: with more slides the network needs it less
_MIXING_WEIGHTS = (0.5, 0.25, 0.0)
_MAX_DROPOUT = 0.98

Features = Callable[[Slide], np.ndarray]
Splits = Sequence[tuple[Sequence[Slide], Sequence[Slide]]]
Paths = Sequence[RidgePath | PanelRidgePath]


def choose_input_dropout(splits: Splits, features: Features, paths: Paths) -> float:
    r"""Return the dropout of the first layer's input that suits the training slides.

    Dropping a fraction p of the features of a linear model acts as the penalty
    :math:`\frac{p}{1 - p} \sum_i x_{if}^2` on the weight of feature f (Wager et al., NeurIPS
    2013), so the best penalty α of a ridge regression, which takes a second to find on held-out
    slides, gives :math:`\frac{p}{1 - p} = α / (2 N \overline{x^2})`. The 2 leaves the other half
    to weight decay and the dropout of later layers. At most .98; .5 where nothing can be scored.

    Args:
        splits: pairs of slides to learn from and slides held out.
        features: the first layer's input for a slide, ``[N, F]``.
        paths: ridge regressions on the splits' first parts.
    """
    held_out = ((HeldOutPart(features(s), s.truth) for s in part) for _, part in splits)
    scores = held_out_scores(paths, held_out)[:, 0]
    if not np.isfinite(scores).any():
        return 0.5
    alpha = ALPHAS[int(np.nanargmax(scores))]
    squares, width = 0.0, 0
    for slide in (slide for part in splits[0] for slide in part):
        x = features(slide)
        squares, width = squares + float(np.square(x, dtype=np.float64).sum()), x.shape[1]
    odds = alpha * width / (2 * max(squares, 1e-12))
    return round(float(min(_MAX_DROPOUT, odds / (1 + odds))), 4)


def fit_ridge_heads(
    heads: Sequence[RidgeHead],
    splits: Splits,
    features: Features,
    means: Mapping[Slide, np.ndarray],
    paths: Paths,
    level: Sequence[np.ndarray],
    fixed: Sequence[np.ndarray | None] | None = None,
) -> tuple[float, float] | None:
    """Set each member's ridge head to a ridge regression on the slides that it learns from.

    All members share one penalty and one mixing weight, 1/2, 1/4 or 0: those with which ridge and
    network together predict the held-out slides best.

    Args:
        heads: of the members.
        splits: for each member the slides it learns from and those it holds out.
        features: the first layer's input for a slide, ``[N, F]``.
        means: the mean ``[N, G]`` predicted for a held-out slide by the member that holds it out.
        paths: for each member the ridge regressions on what it learns from.
        level: for each member ``[G]`` mean of what it learns, in the scale of training; of a gene
            that not all slides measure, over the spots of those that do.
        fixed: for each member weights ``[F, G]`` that are not fitted, NaN for genes that are; None
            fits all genes.

    Returns:
        Penalty and mixing weight; None, with the heads left unset, if no held-out slide can be
        scored.
    """

    def part_of(slide: Slide) -> HeldOutPart:
        mixtures = [partial(_mixed, means[slide], weight=weight) for weight in _MIXING_WEIGHTS]
        return HeldOutPart(features(slide), slide.truth, mixtures)

    if fixed is not None:
        pairs = zip(paths, fixed, strict=True)
        paths = [dataclasses.replace(path, fixed=weights) for path, weights in pairs]
    scores = held_out_scores(paths, (map(part_of, held_out) for _, held_out in splits))
    if not np.isfinite(scores).any():
        return None
    best, chosen = np.unravel_index(int(np.nanargmax(scores)), scores.shape)
    alpha, mixing_weight = float(ALPHAS[best]), _MIXING_WEIGHTS[chosen]
    for head, path, mean, (learn, _) in zip(heads, paths, level, splits, strict=True):
        weights = path.weights(alpha)
        head.set_weights(
            torch.from_numpy(weights),
            torch.from_numpy(mean - _mean_prediction(path, weights, learn, features)),
            torch.from_numpy(path.x @ weights),
            mixing_weight,
        )
    return alpha, mixing_weight


def _mean_prediction(
    path: RidgePath | PanelRidgePath,
    weights: np.ndarray,
    learn: Sequence[Slide],
    features: Features,
) -> np.ndarray:
    """Return the mean ``[G]`` of x @ weights over the spots that each gene was fitted to."""
    totals = np.stack([features(slide).sum(axis=0, dtype=np.float64) for slide in learn])
    n_spots = np.array([len(slide) for slide in learn])
    if isinstance(path, RidgePath):
        mean: np.ndarray = totals.sum(axis=0) / n_spots.sum() @ weights
        return mean
    mean = np.zeros(path.n_genes)
    for genes, slides, _ in path.groups:
        x = totals[slides].sum(axis=0) / n_spots[slides].sum()
        mean[genes] = x @ weights[:, genes]
    return mean


def _mixed(mean: np.ndarray, ridge: np.ndarray, *, weight: float) -> np.ndarray:
    return (1 - weight) * mean + weight * ridge
