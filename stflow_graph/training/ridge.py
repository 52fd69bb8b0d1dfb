"""What ridge regressions on the training slides tell a denoiser: its dropout, its linear part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from stflow_graph.data.slide import Slide
from stflow_graph.nn.ridge_head import LinearPart
from stflow_graph.stats.ridge import ALPHAS, HeldOutPart, RidgePath, held_out_scores

# of the ridge in the mean: with more slides the network needs it less
_SHARES = (0.5, 0.25, 0.0)
_MOST_DROPOUT = 0.98

Features = Callable[[Slide], np.ndarray]
Splits = Sequence[tuple[Sequence[Slide], Sequence[Slide]]]


def choose_input_dropout(splits: Splits, features: Features, paths: Sequence[RidgePath]) -> float:
    r"""Return the dropout of the first layer's input that the training slides ask for.

    Dropping a share p of the features of a linear model acts as the penalty
    :math:`\frac{p}{1 - p} \sum_i x_{if}^2` on the weight of feature f (Wager et al., NeurIPS
    2013), so a ridge regression, whose best penalty α takes a second to find on held-out slides,
    tells :math:`\frac{p}{1 - p} = α / (2 N \overline{x^2})`. The 2 leaves the other half to weight
    decay and the dropout of later layers. At most .98; .5 where nothing can be scored.

    Args:
        splits: pairs of slides to learn from and slides held out.
        features: what the first layer sees of a slide, ``[N, F]``.
        paths: ridge regressions on the splits' first parts.
    """
    held_out = [[HeldOutPart(features(s), s.truth) for s in part] for _, part in splits]
    scores = held_out_scores(paths, held_out)[:, 0]
    if not np.isfinite(scores).any():
        return 0.5
    alpha = ALPHAS[int(np.nanargmax(scores))]
    x = [features(slide) for part in splits[0] for slide in part]
    squares = sum(float(np.square(each, dtype=np.float64).sum()) for each in x)
    odds = alpha * x[0].shape[1] / (2 * max(squares, 1e-12))
    return round(float(min(_MOST_DROPOUT, odds / (1 + odds))), 4)


def fit_linear_parts(
    parts: Sequence[LinearPart],
    splits: Splits,
    features: Features,
    means: Mapping[Slide, np.ndarray],
    paths: Sequence[RidgePath],
    level: Sequence[np.ndarray],
) -> tuple[float, float] | None:
    """Set each member's linear part to a ridge regression on the slides it learns from.

    All take one penalty and one share, a half, a quarter or nothing: those with which the ridge and
    the members' networks together predict the slides held out best.

    Args:
        parts: of the members.
        splits: for each member the slides it learns from and those it holds out.
        features: what the first layer sees of a slide, ``[N, F]``.
        means: the mean ``[N, G]`` that the member which holds a slide out predicts of it.
        paths: for each member the ridge regressions on what it learns from.
        level: for each member ``[G]`` mean of what it learns, in the scale of training.

    Returns:
        Penalty and share; None, with the linear parts left out, if no held-out slide can be scored.
    """

    def part_of(slide: Slide) -> HeldOutPart:
        mixtures = [partial(_mixed, means[slide], share=share) for share in _SHARES]
        return HeldOutPart(features(slide), slide.truth, mixtures)

    scores = held_out_scores(paths, [[part_of(s) for s in held_out] for _, held_out in splits])
    if not np.isfinite(scores).any():
        return None
    best, chosen = np.unravel_index(int(np.nanargmax(scores)), scores.shape)
    alpha, share = float(ALPHAS[best]), _SHARES[chosen]
    for part, path, mean, (learn, _) in zip(parts, paths, level, splits, strict=True):
        weights = path.weights(alpha)
        x = np.concatenate([features(slide) for slide in learn]).mean(axis=0, dtype=np.float64)
        part.set_weights(
            torch.from_numpy(weights),
            torch.from_numpy(mean - x @ weights),
            torch.from_numpy(path.x @ weights),
            share,
        )
    return alpha, share


def _mixed(mean: np.ndarray, ridge: np.ndarray, *, share: float) -> np.ndarray:
    return (1 - share) * mean + share * ridge
