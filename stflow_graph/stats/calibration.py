"""How far samples must spread, and which genes to trust: learned from held-out training slides."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from stflow_graph.stats.metrics import LEVELS, intervals, most_coverage, pearson_per_gene

_SPREADS = np.geomspace(0.25, 8.0, 41)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """What a denoiser predicts for a training slide that it was not trained on.

    Attributes:
        mean: ``[N, G]`` log1p units.
        samples: ``[S, N, G]``, or None of a denoiser whose samples are not calibrated.
        truth: ``[N, G]``.
    """

    mean: np.ndarray
    samples: np.ndarray | None
    truth: np.ndarray


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What held-out training slides say of each gene.

    Attributes:
        spread: ``[G]`` factor of the samples' distances from the mean; NaN where samples were not
            calibrated.
        pearson: ``[G]`` mean over held-out slides of the PCC of mean and truth; NaN where the gene
            was constant in all.
        pearson_sd: ``[G]`` its standard deviation over the slides; NaN with fewer than two.
    """

    spread: np.ndarray
    pearson: np.ndarray
    pearson_sd: np.ndarray

    @classmethod
    def fit(cls, parts: Sequence[HeldOut]) -> Calibration:
        """Choose each gene's spread so that central intervals hold what they should.

        Of a grid, the factor whose 50, 80 and 90% intervals are nearest to their nominal
        coverage, summed over levels, all held-out spots together. Expression is not negative, so
        samples are cut at 0; where most counts are 0, intervals that reach 0 hold more than they
        should, whatever the factor.
        """
        scores = np.stack([pearson_per_gene(part.mean, part.truth) for part in parts])
        known = np.isfinite(scores)
        count = known.sum(axis=0)
        total = np.where(known, scores, 0).sum(axis=0)
        mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        squares = np.where(known, (scores - mean) ** 2, 0).sum(axis=0)
        sd = np.where(count > 1, np.sqrt(squares / np.maximum(count - 1, 1)), np.nan)
        return cls(_fit_spread(parts), mean, sd)

    def apply(self, mean: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Return the samples ``[S, N, G]`` spread about the mean ``[N, G]``, none negative.

        Samples that were not calibrated are returned as they are.
        """
        if np.isnan(self.spread).any():
            return samples
        return _spread(mean, samples, self.spread)


def _fit_spread(parts: Sequence[HeldOut]) -> np.ndarray:
    n_genes = parts[0].truth.shape[1]
    if any(part.samples is None for part in parts):
        return np.full(n_genes, np.nan)
    mean = np.concatenate([part.mean for part in parts])
    truth = np.concatenate([part.truth for part in parts])
    samples = np.concatenate([np.asarray(part.samples) for part in parts], axis=1)
    # spreading samples keeps their order, so quantiles are spread like samples
    bounds = [intervals(samples, level) for level in LEVELS]
    missed = np.zeros((len(_SPREADS), n_genes))
    for row, factor in zip(missed, _SPREADS, strict=True):
        for level, (low, high) in zip(LEVELS, bounds, strict=True):
            inside = (_spread(mean, low, factor) <= truth) & (truth <= _spread(mean, high, factor))
            row += np.abs(inside.mean(axis=0) - most_coverage(level, len(samples)))
    return _SPREADS[missed.argmin(axis=0)]


def _spread(mean: np.ndarray, samples: np.ndarray, factor: np.ndarray | float) -> np.ndarray:
    return np.maximum(mean + factor * (samples - mean), 0).astype(samples.dtype)
