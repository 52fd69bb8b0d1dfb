"""Ridge regression over a grid of penalties, scored on held-out data; plain numpy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from stflow_graph.stats.metrics import mean_of_defined, pearson_per_gene
from stflow_graph.stats.panels import genes_by_slides, measured_genes

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
        fixed: ``[F, G]`` weights that are not fitted, NaN for genes that are; None fits all.
    """

    x: np.ndarray
    values: np.ndarray
    vectors: np.ndarray
    rotated: np.ndarray
    share: float
    fixed: np.ndarray | None = None

    @classmethod
    def fit(cls, xs: Iterable[np.ndarray], ys: Sequence[np.ndarray]) -> RidgePath:
        """Decompose the features ``[N_s, F]`` of slides with expression ``[N_s, G]``.

        Features are used as they are; expression is centred within each slide.
        """
        n = sum(map(len, ys))
        share = min(1.0, _MAX_ROWS / n)
        x, y = _sampled(xs, ys)
        values, vectors = np.linalg.eigh(x @ x.T)
        return cls(x, values.clip(min=0), vectors, vectors.T @ y, share)

    def weights(self, alpha: float) -> np.ndarray:
        """Return the weights ``[F, G]`` for an L2 penalty of all spots together."""
        shrunk = self.rotated / (self.values + alpha * self.share)[:, None]
        return _with_fixed(self.x.T @ (self.vectors @ shrunk), self.fixed)


@dataclasses.dataclass(frozen=True)
class PanelRidgePath:
    """Ridge regressions of genes that not all slides measure, each on the slides that do.

    Genes that the same slides measure share a decomposition. The penalty is of all spots that
    measure a gene together, so a gene of few slides is shrunk more.

    Attributes:
        x: ``[n, F]`` features of the spots of all slides, or of a random sample of very many.
        groups: columns of genes, the numbers of the slides that measure them, and their regression.
        n_genes: G.
        fixed: as of :class:`RidgePath`.
    """

    x: np.ndarray
    groups: list[tuple[np.ndarray, np.ndarray, RidgePath]]
    n_genes: int
    fixed: np.ndarray | None = None

    @classmethod
    def fit(cls, xs: Sequence[np.ndarray], ys: Sequence[np.ndarray]) -> PanelRidgePath:
        """Decompose the features of each group of slides; see :meth:`RidgePath.fit`."""
        groups = [
            (
                genes,
                slides,
                RidgePath.fit((xs[i] for i in slides), [ys[i][:, genes] for i in slides]),
            )
            for slides, genes in genes_by_slides(ys)
        ]
        return cls(_sampled(xs, ys)[0], groups, ys[0].shape[1])

    def weights(self, alpha: float) -> np.ndarray:
        """Return the weights ``[F, G]`` for an L2 penalty; 0 for a gene that no slide measures."""
        weights = np.zeros((self.x.shape[1], self.n_genes))
        for genes, _, path in self.groups:
            weights[:, genes] = path.weights(alpha)
        return _with_fixed(weights, self.fixed)


def fit_ridge_path(
    xs: Sequence[np.ndarray], ys: Sequence[np.ndarray]
) -> RidgePath | PanelRidgePath:
    """Return the regressions of all genes on the slides that measure them.

    Args:
        xs: features ``[N_s, F]`` of each slide.
        ys: expression ``[N_s, G]``, NaN for genes that a slide does not measure.
    """
    if all(measured_genes(y).all() for y in ys):
        return RidgePath.fit(xs, ys)
    return PanelRidgePath.fit(xs, ys)


def _with_fixed(weights: np.ndarray, fixed: np.ndarray | None) -> np.ndarray:
    return weights if fixed is None else np.where(np.isnan(fixed), weights, fixed)


def _sampled(xs: Iterable[np.ndarray], ys: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return features and centred expression of all spots, or of a random sample of very many.

    Slides are taken one by one: features of very many spots would not fit into memory together.
    """
    n = sum(map(len, ys))
    rows = np.arange(n)
    if n > _MAX_ROWS:
        rows = np.random.default_rng(0).choice(n, _MAX_ROWS, replace=False)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    start = 0
    for x, y in zip(xs, ys, strict=True):
        (places,) = np.nonzero((start <= rows) & (rows < start + len(y)))
        mine = rows[places] - start
        centred = y - y.mean(axis=0, dtype=np.float64)
        found.append((places, x[mine].astype(np.float64), centred[mine]))
        start += len(y)
    order = np.argsort(np.concatenate([places for places, _, _ in found]))
    x, y = (np.concatenate([each[k] for each in found])[order] for k in (1, 2))
    return x, y


@dataclasses.dataclass(frozen=True)
class HeldOutPart:
    """Spots of one slide that a ridge is scored on.

    Attributes:
        x: ``[N, F]`` features.
        y: ``[N, G]`` expression, NaN for genes that the slide does not measure.
        finishes: candidates for what is done with a prediction ``[N, G]`` before it is scored.
    """

    x: np.ndarray
    y: np.ndarray
    finishes: Sequence[Finish] = (lambda predicted: predicted,)


def held_out_scores(
    paths: Iterable[RidgePath | PanelRidgePath], held_out: Iterable[Iterable[HeldOutPart]]
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
        weights = [path.weights(alpha) for alpha in ALPHAS]
        for part in parts:
            for row, weight in zip(table, weights, strict=True):
                predicted = part.x @ weight
                finished = (finish(predicted) for finish in part.finishes)
                row.append([mean_of_defined(pearson_per_gene(y, part.y)) for y in finished])
    scores = np.array(table)  # [ALPHAS, parts, finishes]
    defined = np.isfinite(scores)
    total = np.where(defined, scores, 0).sum(axis=1)
    return np.where(defined.any(axis=1), total / defined.sum(axis=1).clip(min=1), np.nan)
