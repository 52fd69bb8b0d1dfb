r"""Levels of genes on a slide: factors by which its counts differ from what is expected.

Depth, tissue and patient multiply a gene's counts on a whole slide,

.. math:: S(μ, λ) = \log(1 + (e^μ - 1)\, e^λ), \qquad λ_g = d + γ_g

with d common to all genes and :math:`γ_g` a gene's own.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

# before anything is measured: deviations of d, of γ and of what the genes of a spot have in common,
# and how many genes and spots the latter two count as
_SPREAD, _OWN_SPREAD, _SPOT_SPREAD = 0.5, 0.5, 0.5
_GENES_BEFORE, _SPOTS_BEFORE = 10, 4
# variance of a slide's mean residual that is no level, in units of that of its spots: neighbouring
# spots differ from their expectation in common
_NO_LEVEL = 0.01
_LARGEST = 8.0  # of λ
_N_STEPS, _MAX_STEP, _TOLERANCE = 60, 1.0, 1e-3


def at_level(mean: Tensor, level: Tensor) -> Tensor:
    """Return S, expected expression of counts that are multiplied; none is negative.

    Args:
        mean: ``[N, G]`` log1p units.
        level: λ ``[G]``.
    """
    return torch.log1p(torch.expm1(mean.clamp(min=0)) * level.exp())


@dataclasses.dataclass(frozen=True)
class GeneLevels:
    """Levels of the genes measured on a slide.

    Attributes:
        genes: λ ``[M]``.
        shared: d.
        own: variance of γ.
    """

    genes: np.ndarray
    shared: float
    own: float

    @classmethod
    def fit(cls, mean: np.ndarray, truth: np.ndarray, scale: np.ndarray) -> GeneLevels:
        """Return the most probable levels.

        A gene's mean over the spots is off by the noise of so many spots, and by what neighbouring
        spots have in common; all genes together are off by what the genes of a spot have in common.
        Genes that are hardly expressed say little of their level and take that of the others.
        Gauss-Newton steps on λ; d and the variances follow by expectation and maximisation.

        Args:
            mean: ``[n, M]`` expected expression, log1p units.
            truth: ``[n, M]`` measured.
            scale: ``[M]`` deviations of a spot's residuals.
        """
        counts, few = np.expm1(np.maximum(mean, 0)), _NO_LEVEL + 1 / len(mean)
        noise = np.square(scale) * few
        genes, shared, own = np.zeros(mean.shape[1]), 0.0, _OWN_SPREAD**2
        for _ in range(_N_STEPS):
            expected = np.log1p(counts * np.exp(genes).astype(counts.dtype))
            slope = -np.expm1(-expected).mean(axis=0, dtype=np.float64)
            residuals = truth - expected
            told = np.square(slope) / noise
            seen = residuals.mean(axis=0, dtype=np.float64) * slope / noise + told * genes
            # d and the mean of what the genes of a spot have in common look the same
            common = _variance_in_common(residuals, slope / np.square(scale), slope) * few
            weights = 1 / (1 + own * told)
            before = 1 / (_SPREAD**2 + common)
            shared = float((weights * seen).sum() / ((weights * told).sum() + before))
            probable = (seen + shared / own) / (told + 1 / own)
            squares = np.square(probable - shared) + 1 / (told + 1 / own)
            total = squares.sum() + _GENES_BEFORE * _OWN_SPREAD**2
            own = float(total / (len(genes) + _GENES_BEFORE))
            step = np.clip(probable - genes, -_MAX_STEP, _MAX_STEP)
            genes = np.clip(genes + step, -_LARGEST, _LARGEST)
            if np.abs(step).max() < _TOLERANCE:
                break
        of_spots = shared * common * before
        return cls(genes - of_spots, shared - of_spots, own)

    def of_all(self, measured: np.ndarray, n_genes: int) -> np.ndarray:
        """Return λ ``[G]`` of all genes: those not ``measured`` have the level that genes share."""
        levels = np.full(n_genes, self.shared)
        levels[measured] = self.genes
        return levels


def _variance_in_common(residuals: np.ndarray, weights: np.ndarray, slope: np.ndarray) -> float:
    """Return the variance over spots of the level that is most probable of each."""
    levels = residuals @ weights / max(float(weights @ slope), 1e-12)
    squares = np.square(levels - levels.mean()).sum() + _SPOTS_BEFORE * _SPOT_SPREAD**2
    return float(squares / (len(levels) - 1 + _SPOTS_BEFORE))
