"""Gene ranking on training slides: by variability, mean count or spatial autocorrelation.

HEST-bench's rule: a gene qualifies if it has counts in a tenth of the spots of every slide and is
no control probe; the spots of all slides are pooled. HEST's own lists were chosen on all slides of
a data set, including test slides; here only training slides are used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
import scipy.sparse as sp

Method = Literal["hvg", "mean", "moran"]
METHODS: tuple[Method, ...] = ("hvg", "mean", "moran")
# substrings of the names of probes that measure no gene
_CONTROLS = ("BLANK", "Control")


@dataclasses.dataclass(frozen=True)
class GeneStatistics:
    """Per-gene summary of one slide.

    Attributes:
        genes: G names.
        n_spots: number of spots.
        share: ``[G]`` fraction of the spots with a count of the gene.
        total: ``[G]`` sum of the counts over spots.
        squares: ``[G]`` sum of the squared counts over spots.
        moran: ``[G]`` Moran's I of log1p(counts), NaN where undefined; None if not computed.
    """

    genes: list[str]
    n_spots: int
    share: np.ndarray
    total: np.ndarray
    squares: np.ndarray
    moran: np.ndarray | None = None

    @classmethod
    def of(cls, counts: sp.csr_matrix, genes: Sequence[str]) -> GeneStatistics:
        """Summarise raw counts, ``[N, G]``."""
        counts = counts.astype(np.float64)
        counts.eliminate_zeros()
        total, squares = (np.asarray(m.sum(axis=0)).reshape(-1) for m in (counts, counts.power(2)))
        share = counts.getnnz(axis=0) / counts.shape[0]
        return cls(list(genes), counts.shape[0], share, total, squares)


@dataclasses.dataclass(frozen=True)
class RankedGenes:
    """Qualified genes, the best first.

    Attributes:
        genes: G names.
        mean: ``[G]`` mean count over the spots of all slides.
        share: ``[G]`` fraction of the spots with a count of the gene, minimum over slides.
        score: ``[G]`` the score that they are ranked by.
    """

    genes: list[str]
    mean: np.ndarray
    share: np.ndarray
    score: np.ndarray

    def top(self, n: int) -> RankedGenes:
        """Return the best n."""
        return RankedGenes(self.genes[:n], self.mean[:n], self.share[:n], self.score[:n])


def rank_genes(
    slides: Sequence[GeneStatistics],
    method: Method = "hvg",
    *,
    min_fraction: float = 0.1,
    panel: Collection[str] | None = None,
    n_bins: int = 20,
) -> RankedGenes:
    """Rank the genes that are counted in at least ``min_fraction`` of the spots of every slide.

    ``hvg``: by dispersion log(variance / mean) of the counts, standardised among genes of similar
    log1p(mean), in ``n_bins`` bins of equal width. ``mean``: by mean count. ``moran``: by Moran's
    I, mean over slides. Ties are in alphabetical order (scanpy keeps all genes that tie for the
    last place).

    Args:
        slides: training slides only, so that test slides have no influence.
        method: see above.
        min_fraction: see above.
        panel: candidates, such as the genes that test slides measure too; None means all.
        n_bins: see above.

    Source: Satija et al. 2015, Nat. Biotechnol. 33, 495-502, as scanpy's flavour "seurat" on log1p
    counts; HEST-bench (Jaume et al., NeurIPS 2024), ``get_k_genes``.
    """
    places = [{gene: i for i, gene in enumerate(slide.genes)} for slide in slides]
    shared = set.intersection(*map(set, places))
    names = sorted(shared if panel is None else shared & set(panel))
    names = [name for name in names if not any(part in name for part in _CONTROLS)]
    columns = [np.array([place[name] for name in names], dtype=np.int64) for place in places]
    pairs = list(zip(slides, columns, strict=True))
    n = sum(slide.n_spots for slide in slides)
    mean = np.sum([slide.total[c] for slide, c in pairs], axis=0) / n
    share = np.min([slide.share[c] for slide, c in pairs], axis=0)
    if method == "hvg":
        squares = np.sum([slide.squares[c] for slide, c in pairs], axis=0)
        variance = (squares - n * mean**2) / max(n - 1, 1)
        score = _dispersion(mean, variance, share >= min_fraction, n_bins)
    elif method == "mean":
        score = mean
    else:
        score = np.mean([_moran(slide)[c] for slide, c in pairs], axis=0)
    rows = np.flatnonzero((share >= min_fraction) & np.isfinite(score))
    rows = rows[np.argsort(-score[rows], kind="stable")]
    return RankedGenes([names[i] for i in rows], mean[rows], share[rows], score[rows])


def _moran(slide: GeneStatistics) -> np.ndarray:
    if slide.moran is None:
        raise ValueError("these statistics have no Moran's I")
    return slide.moran


def _dispersion(
    mean: np.ndarray, variance: np.ndarray, qualified: np.ndarray, n_bins: int
) -> np.ndarray:
    """Return the standardised dispersion among ``qualified`` genes; NaN where undefined."""
    score = np.full_like(mean, np.nan)
    rows = np.flatnonzero(qualified)
    if not len(rows):
        return score
    level = np.log1p(mean[rows])
    edges = np.linspace(level.min(), level.max(), n_bins + 1)
    varies = variance[rows] > 1e-12 * mean[rows]
    bins = np.searchsorted(edges[1:-1], level, side="left")
    for number in np.unique(bins[varies]):
        inside = rows[varies & (bins == number)]
        dispersion = np.log(variance[inside] / mean[inside])
        deviation = dispersion.std(ddof=1) if len(inside) > 1 else 0.0
        if deviation > 0:
            score[inside] = (dispersion - dispersion.mean()) / deviation
        elif len(inside) == 1:
            # a gene alone in its bin has no reference and counts as one deviation high
            score[inside] = 1.0
    return score
