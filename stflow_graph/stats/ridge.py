"""Ridge regression over a grid of penalties, scored on held-out data; plain numpy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from stflow_graph.stats.metrics import mean_of_defined, pearson_per_gene

ALPHAS = 10.0 ** np.arange(2.5, 6.01, 0.5)
_MAX_ROWS = 3000  # of the kernel; with more, a sample of the rows is used

Finish = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class RidgePath:
    """Ridge regressions of expression, centred slide by slide, for every penalty at once.

    Attributes:
        x: ``[n, F]`` features of the spots, or of a random sample of very many.
        values: ``[n]`` eigenvalues of ``x @ x.T``.
        vectors: ``[n, n]`` its eigenvectors.
        rotated: ``[n, G]`` expression in their basis.
        share: fraction of the spots in ``x``.
    """

    x: np.ndarray
    values: np.ndarray
    vectors: np.ndarray
    rotated: np.ndarray
    share: float

    @classmethod
    def fit(cls, xs: Sequence[np.ndarray], ys: Sequence[np.ndarray]) -> RidgePath:
        """Decompose the features ``[N_s, F]`` of slides with expression ``[N_s, G]``.

        Features are used as they are; expression is centred within each slide.
        """
        x = np.concatenate(xs).astype(np.float64)
        y = np.concatenate([y - y.mean(axis=0, dtype=np.float64) for y in ys])
        share = min(1.0, _MAX_ROWS / len(x))
        if share < 1:
            rows = np.random.default_rng(0).choice(len(x), _MAX_ROWS, replace=False)
            x, y = x[rows], y[rows]
        values, vectors = np.linalg.eigh(x @ x.T)
        return cls(x, values.clip(min=0), vectors, vectors.T @ y, share)

    def weights(self, alpha: float) -> np.ndarray:
        """Return the weights ``[F, G]`` for an L2 penalty of all spots together."""
        shrunk = self.rotated / (self.values + alpha * self.share)[:, None]
        return self.x.T @ (self.vectors @ shrunk)


@dataclasses.dataclass(frozen=True)
class HeldOutPart:
    """Spots of one slide that a ridge is scored on.

    Attributes:
        x: ``[N, F]`` features.
        y: ``[N, G]`` expression.
        finishes: candidates for what is done with a prediction ``[N, G]`` before it is scored.
    """

    x: np.ndarray
    y: np.ndarray
    finishes: Sequence[Finish] = (lambda predicted: predicted,)


def held_out_scores(
    paths: Iterable[RidgePath], held_out: Iterable[Sequence[HeldOutPart]]
) -> np.ndarray:
    """Return the mean PCC on held-out parts for each penalty and finish, ``[ALPHAS, finishes]``.

    Args:
        paths: a regression for each split.
        held_out: the parts of each split, all with as many finishes.

    Returns:
        Means over the parts where a score is defined, NaN where none is.
    """
    table: list[list[list[float]]] = [[] for _ in ALPHAS]
    for path, parts in zip(paths, held_out, strict=True):
        for row, alpha in zip(table, ALPHAS, strict=True):
            weights = path.weights(alpha)
            for part in parts:
                predicted = part.x @ weights
                finished = (finish(predicted) for finish in part.finishes)
                row.append([mean_of_defined(pearson_per_gene(y, part.y)) for y in finished])
    scores = np.array(table)  # [ALPHAS, parts, finishes]
    defined = np.isfinite(scores)
    total = np.where(defined, scores, 0).sum(axis=1)
    return np.where(defined.any(axis=1), total / defined.sum(axis=1).clip(min=1), np.nan)
