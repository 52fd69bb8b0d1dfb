"""Training targets from counts, and the scaling of a model's input and output."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import scipy.sparse as sp

from stflow_graph.stats.panels import mean_of_measured

Target = Literal["log1p", "log1p_normalised"]
TARGETS: tuple[Target, ...] = ("log1p", "log1p_normalised")
_ROWS = 64  # whose differences a cache holds


def to_target(counts: sp.csr_matrix, total: np.ndarray, target: str) -> np.ndarray:
    """Return ``log1p(counts)`` or ``log1p(1e4 counts / total)`` as ``[N, G]`` float32.

    Args:
        counts: ``[N, G]`` raw counts.
        total: ``[N]`` counts of each spot over all genes; a spot of total 0 gives zeros.
        target: one of ``TARGETS``.

    Raises:
        ValueError: the target's name is unknown.
    """
    dense = np.asarray(counts.toarray(), dtype=np.float64)
    if target == "log1p_normalised":
        dense *= 1e4 / np.maximum(total, 1.0)[:, None]
    elif target != "log1p":
        raise ValueError(f"unknown target {target!r}; one of {', '.join(TARGETS)}")
    return np.log1p(dense).astype(np.float32)


class Moments:
    """Running mean and standard deviation of a slide's embeddings, added block by block.

    Sums are of differences from the first block's mean, in float64 (Chan et al., 1979), as squares
    of large values would cancel.

    Attributes:
        n: number of spots.
    """

    def __init__(self) -> None:
        self.n = 0
        self._origin: np.ndarray = np.zeros(0)
        self._sum: np.ndarray = np.zeros(0)
        self._squares: np.ndarray = np.zeros(0)

    def add(self, x: np.ndarray) -> Moments:
        """Add the embeddings ``[n, F]`` of some spots."""
        if not self.n:
            self._origin = x.mean(axis=0, dtype=np.float64)
            self._sum, self._squares = np.zeros((2, x.shape[1]))
        for start in range(0, len(x), _ROWS):
            difference = x[start : start + _ROWS] - self._origin
            self._sum += difference.sum(axis=0)
            self._squares += np.square(difference, out=difference).sum(axis=0)
        self.n += len(x)
        return self

    @property
    def mean(self) -> np.ndarray:
        """``[F]`` float64."""
        return self._origin + self._sum / self.n

    @property
    def std(self) -> np.ndarray:
        """``[F]`` float64."""
        variance = self._squares / self.n - np.square(self._sum / self.n)
        return np.sqrt(np.maximum(variance, 0))


def mean_level(ys: Iterable[np.ndarray]) -> np.ndarray:
    """Return the mean expression ``[G]`` float32 of slides, over those that measure a gene.

    Args:
        ys: expression ``[N_s, G]`` of each slide, of which each counts the same.
    """
    means = np.stack([y.mean(axis=0, dtype=np.float64) for y in ys])
    return mean_of_measured(means).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """How a model's input and output are scaled; fitted on training slides, kept with its weights.

    Attributes:
        standardize: embeddings to mean 0 and deviation 1 per ``"slide"``, by the ``"train"``
            slides' statistics, or ``"none"``; ``"center"`` subtracts each slide's mean, which
            removes most of its stain, and scales all channels together (root mean square 1).
        center_targets: whether the model's expression is relative to the slide's mean.
        x_mean: ``[F]`` mean embedding of the training slides.
        x_std: ``[F]`` their standard deviation.
        y_mean: ``[G]`` mean expression of the slides, mean over the training slides that measure
            the gene, log1p units.
    """

    standardize: str
    center_targets: bool
    x_mean: np.ndarray
    x_std: np.ndarray
    y_mean: np.ndarray

    @classmethod
    def fit(
        cls,
        xs: Iterable[np.ndarray],
        ys: Sequence[np.ndarray],
        standardize: str,
        center_targets: bool,
    ) -> Normalisation:
        """Fit on the embeddings ``[N_s, F]`` and expression ``[N_s, G]`` of training slides.

        Genes that a slide does not measure are NaN, see ``stats.panels``. Embeddings are taken
        slide by slide, in one pass.
        """
        moments = Moments()
        for x in xs:
            moments.add(x)
        return cls(
            standardize,
            center_targets,
            moments.mean.astype(np.float32),
            moments.std.astype(np.float32),
            mean_level(ys),
        )

    def embeddings(self, x: np.ndarray) -> np.ndarray:
        """Scale one slide's embeddings, ``[N, F]``; a constant channel becomes 0."""
        if self.standardize == "none":
            return x
        mean, factor = self.scaling(Moments().add(x))
        return (x - mean) * factor

    def scaling(self, moments: Moments) -> tuple[np.ndarray, np.ndarray]:
        """Return what a slide's embeddings are shifted and then multiplied by.

        Args:
            moments: of all embeddings of the slide.

        Returns:
            Two ``[F]`` float32; the factor of a constant channel is 0.
        """
        mean, std = self.x_mean, self.x_std
        if self.standardize == "none":
            return np.zeros_like(mean), np.ones_like(std)
        if self.standardize in ("slide", "center"):
            mean, std = moments.mean.astype(np.float32), moments.std.astype(np.float32)
        if self.standardize == "center":
            std = np.full_like(std, np.sqrt(np.mean(np.square(std))))
        varies = std > 1e-6
        return mean, np.where(varies, 1 / np.where(varies, std, 1), 0).astype(np.float32)

    def place(self, mean: np.ndarray) -> np.ndarray:
        """Return a slide's mean embedding ``[F]`` in deviations of the training slides' spots."""
        varies = self.x_std > 1e-6
        place: np.ndarray = np.where(varies, mean / np.where(varies, self.x_std, 1), 0)
        return place

    def targets(self, y: np.ndarray) -> np.ndarray:
        """Scale one slide's expression, ``[N, G]``, to the model's target; NaN stays."""
        if not self.center_targets:
            return y
        return (y - y.mean(axis=0, dtype=np.float64)).astype(np.float32)

    def expression(self, y: np.ndarray) -> np.ndarray:
        """Convert the model's output ``[..., G]`` back to log1p units."""
        return (y + self.y_mean).astype(np.float32) if self.center_targets else y
