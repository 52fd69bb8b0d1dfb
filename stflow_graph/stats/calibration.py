"""Per-gene calibration of sample spread and expected accuracy on held-out training slides."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from stflow_graph.stats.ensembles import crps_per_gene
from stflow_graph.stats.metrics import pearson_per_gene
from stflow_graph.stats.panels import genes_by_slides, take_genes

_SPREADS = np.geomspace(0.25, 8.0, 41)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Prediction of a training slide by a denoiser that was not trained on it.

    Attributes:
        mean: ``[N, G]`` log1p units.
        samples: ``[S, N, G]``, or None for a denoiser without calibrated samples.
        truth: ``[N, G]``, NaN for genes that the slide does not measure.
    """

    mean: np.ndarray
    samples: np.ndarray | None
    truth: np.ndarray


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Spread of the samples and expected accuracy, gene by gene.

    Attributes:
        spread: ``[G]`` factor of the samples' distances from the mean; NaN where samples were not
            calibrated.
        pearson: ``[G]`` PCC of mean and truth, averaged over the held-out slides that measure the
            gene; NaN where it was constant in all.
        pearson_sd: ``[G]`` its standard deviation over the slides; NaN with fewer than two.
    """

    spread: np.ndarray
    pearson: np.ndarray
    pearson_sd: np.ndarray

    @classmethod
    def fit(cls, parts: Sequence[HeldOut]) -> Calibration:
        """Choose each gene's spread by the continuous ranked probability score.

        Of a grid, the factor with the lowest score over all held-out spots that measure the gene;
        1 where none does. Expression is not negative, so samples are clipped at 0. Coverage would
        not do: where most counts are 0, a spread can make intervals cover what they say and most
        samples wrong.
        """
        scores = np.stack([pearson_per_gene(part.mean, part.truth) for part in parts])
        defined = np.ma.masked_invalid(scores)
        mean, sd = defined.mean(axis=0), defined.std(axis=0, ddof=1)
        return cls(_fit_spread(parts), mean.filled(np.nan), sd.filled(np.nan))

    def apply(self, mean: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Return the samples ``[S, N, G]`` spread about the mean ``[N, G]``, none negative.

        Samples that were not calibrated are returned unchanged.
        """
        if np.isnan(self.spread).any():
            return samples
        return _spread(mean, samples, self.spread)


def _fit_spread(parts: Sequence[HeldOut]) -> np.ndarray:
    n_genes = parts[0].truth.shape[1]
    if any(part.samples is None for part in parts):
        return np.full(n_genes, np.nan)
    spread = np.ones(n_genes)
    for slides, genes in genes_by_slides([part.truth for part in parts]):
        chosen = [parts[i] for i in slides]
        mean = np.concatenate([take_genes(part.mean, genes) for part in chosen])
        truth = np.concatenate([take_genes(part.truth, genes) for part in chosen])
        drawn = [take_genes(np.asarray(part.samples), genes) for part in chosen]
        samples = np.concatenate(drawn, axis=1)
        scores = [
            crps_per_gene(_spread(mean, samples, factor), truth, fair=True) for factor in _SPREADS
        ]
        spread[genes] = _SPREADS[np.argmin(scores, axis=0)]
    return spread


def _spread(mean: np.ndarray, samples: np.ndarray, factor: np.ndarray | float) -> np.ndarray:
    return np.maximum(mean + factor * (samples - mean), 0).astype(samples.dtype)
