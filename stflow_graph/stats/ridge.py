"""Ridge regression on slides: the penalty that held-out training slides ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stflow_graph.stats.metrics import mean_of_defined, pearson_per_gene

if TYPE_CHECKING:
    from stflow_graph.data.slide import Slide

ALPHAS = 10.0 ** np.arange(2.5, 6.01, 0.5)
_MOST_ROWS = 3000  # of the kernel; beyond, spots are drawn

Features = Callable[["Slide"], np.ndarray]
Finish = Callable[["Slide", np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class RidgePath:
    """Ridge regressions of expression, centred slide by slide, for every penalty at once.

    Attributes:
        x: ``[n, F]`` features of the spots; with very many spots of some that were drawn.
        values: ``[n]`` eigenvalues of ``x @ x.T``.
        vectors: ``[n, n]`` its eigenvectors.
        rotated: ``[n, G]`` expression in their basis.
        share: share of the spots that were drawn.
    """

    x: np.ndarray
    values: np.ndarray
    vectors: np.ndarray
    rotated: np.ndarray
    share: float

    @classmethod
    def fit(cls, train: Sequence[Slide], features: Features) -> RidgePath:
        """Decompose the training slides' features ``[N, F]``, which are taken as they are."""
        x = np.concatenate([features(slide) for slide in train]).astype(np.float64)
        y = np.concatenate([s.truth - s.truth.mean(axis=0, dtype=np.float64) for s in train])
        share = min(1.0, _MOST_ROWS / len(x))
        if share < 1:
            rows = np.random.default_rng(0).choice(len(x), _MOST_ROWS, replace=False)
            x, y = x[rows], y[rows]
        values, vectors = np.linalg.eigh(x @ x.T)
        return cls(x, values.clip(min=0), vectors, vectors.T @ y, share)

    def weights(self, alpha: float) -> np.ndarray:
        """Return the weights ``[F, G]`` for an L2 penalty of all spots together."""
        shrunk = self.rotated / (self.values + alpha * self.share)[:, None]
        return self.x.T @ (self.vectors @ shrunk)


def held_out_scores(
    splits: Sequence[tuple[Sequence[Slide], Sequence[Slide]]],
    features: Features,
    finishes: Sequence[Finish] = (lambda slide, predicted: predicted,),
    paths: Sequence[RidgePath] = (),
) -> np.ndarray:
    """Return the mean PCC on held-out parts for each penalty and finish, ``[ALPHAS, finishes]``.

    Args:
        splits: pairs of slides to learn from and slides held out.
        features: a slide's features ``[N, F]``.
        finishes: what is done with a prediction ``[N, G]`` before it is scored.
        paths: of the splits' first parts; none: they are made.

    Returns:
        Means over the held-out slides where a score is defined, NaN where none is.
    """
    table: list[list[list[float]]] = [[] for _ in ALPHAS]
    for i, (learn, validate) in enumerate(splits):
        path = paths[i] if paths else RidgePath.fit(learn, features)
        inputs = [features(slide) for slide in validate]
        for of_slides, alpha in zip(table, ALPHAS, strict=True):
            weights = path.weights(alpha)
            for slide, x in zip(validate, inputs, strict=True):
                predicted = x @ weights
                found = (finish(slide, predicted) for finish in finishes)
                of_slides.append(
                    [mean_of_defined(pearson_per_gene(each, slide.truth)) for each in found]
                )
    scores = np.array(table)  # [ALPHAS, slides, finishes]
    known = np.isfinite(scores)
    total = np.where(known, scores, 0).sum(axis=1)
    return np.where(known.any(axis=1), total / known.sum(axis=1).clip(min=1), np.nan)
