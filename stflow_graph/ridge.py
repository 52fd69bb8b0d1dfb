"""Ridge regression on slides: the penalty that held-out training slides ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from stflow_graph.data.slide import Slide
from stflow_graph.metrics import mean_of_defined, pearson_per_gene

ALPHAS = 10.0 ** np.arange(2.5, 6.01, 0.5)
_MOST_ROWS = 6000  # of the kernel; beyond, spots are drawn

Features = Callable[[Slide], np.ndarray]
Finish = Callable[[Slide, np.ndarray], np.ndarray]


def ridge_path(
    train: Sequence[Slide], features: Features, alphas: Sequence[float] | np.ndarray
) -> list[np.ndarray]:
    """Return the weights ``[F, G]`` of ridge regressions, one for each penalty.

    Expression is centred slide by slide; features are taken as they are.

    Args:
        train: slides with expression.
        features: a slide's features ``[N, F]``.
        alphas: L2 penalties.
    """
    x = np.concatenate([features(slide) for slide in train]).astype(np.float64)
    y = np.concatenate(
        [slide.truth - slide.truth.mean(axis=0, dtype=np.float64) for slide in train]
    )
    if len(x) > _MOST_ROWS:
        rows = np.random.default_rng(0).choice(len(x), _MOST_ROWS, replace=False)
        # fewer rows at the same ratio of data to penalty
        x, y, alphas = x[rows], y[rows], np.asarray(alphas) * _MOST_ROWS / len(x)
    values, vectors = np.linalg.eigh(x @ x.T)
    rotated = vectors.T @ y
    return [x.T @ (vectors @ (rotated / (values.clip(min=0) + a)[:, None])) for a in alphas]


def held_out_scores(
    splits: Sequence[tuple[Sequence[Slide], Sequence[Slide]]],
    features: Features,
    finishes: Sequence[Finish] = (lambda slide, predicted: predicted,),
) -> np.ndarray:
    """Return the mean PCC on held-out parts for each penalty and finish, ``[ALPHAS, finishes]``.

    Args:
        splits: pairs of slides to learn from and slides held out.
        features: a slide's features ``[N, F]``.
        finishes: what is done with a prediction ``[N, G]`` before it is scored.
    """
    scores = []
    for learn, validate in splits:
        weights = ridge_path(learn, features, ALPHAS)
        for slide in validate:
            x = features(slide)
            scores.append(
                [
                    [
                        mean_of_defined(pearson_per_gene(finish(slide, x @ w), slide.truth))
                        for finish in finishes
                    ]
                    for w in weights
                ]
            )
    table = np.array(scores)
    known = np.isfinite(table)
    total = np.where(known, table, 0).sum(axis=0)
    return np.where(known.any(axis=0), total / known.sum(axis=0).clip(min=1), np.nan)
