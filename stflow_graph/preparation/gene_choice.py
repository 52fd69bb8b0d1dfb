"""Gene ranking on training slides: by variability, mean count or spatial autocorrelation.

HEST-bench's rule: a gene qualifies if it has counts in a tenth of the spots of every slide and is
no control probe; the spots of all slides are pooled. Where panels differ, a gene may be one of some
slides only, whose spots are pooled. HEST's own lists were chosen on all slides of
a data set, including test slides; here only training slides are used.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

Method = Literal["hvg", "mean", "moran"]
METHODS: tuple[Method, ...] = ("hvg", "mean", "moran")
# substrings of the names of probes that measure no gene
_CONTROLS = ("BLANK", "Control")


@dataclasses.dataclass(frozen=True)
class GeneStatistics:
    """Per-gene summary of one slide.

    Attributes:
        n_spots: number of spots.
        table: indexed by gene, with the ``total`` of the counts and of their ``squares`` over
            spots, the ``share`` of the spots with a count, and, if computed, ``moran``, Moran's I
            of log1p(counts), NaN where undefined.
    """

    n_spots: int
    table: pd.DataFrame

    @classmethod
    def of(cls, counts: sp.csr_matrix, genes: Sequence[str]) -> GeneStatistics:
        """Summarise raw counts, ``[N, G]``, of distinct genes."""
        counts = counts.astype(np.float64)
        counts.eliminate_zeros()
        columns = {
            "share": counts.getnnz(axis=0) / counts.shape[0],
            "total": np.asarray(counts.sum(axis=0)).ravel(),
            "squares": np.asarray(counts.power(2).sum(axis=0)).ravel(),
        }
        return cls(counts.shape[0], pd.DataFrame(columns, index=pd.Index(genes, dtype=object)))


def rank_genes(
    slides: Sequence[GeneStatistics],
    method: Method = "hvg",
    *,
    min_fraction: float = 0.1,
    panel: Collection[str] | None = None,
    min_slides: int | None = None,
    n_bins: int = 20,
) -> pd.DataFrame:
    """Rank the genes that are counted in at least ``min_fraction`` of the spots of every slide.

    With ``min_slides``, of every slide that measures the gene, of which there must be so many.

    ``hvg``: by dispersion log(variance / mean) of the counts, standardised among genes of similar
    log1p(mean), in ``n_bins`` bins of equal width. ``mean``: by mean count. ``moran``: by Moran's
    I, mean over slides. Ties are in alphabetical order (scanpy keeps all genes that tie for the
    last place).

    Args:
        slides: training slides only, so that test slides have no influence.
        method: see above.
        min_fraction: see above.
        panel: candidates, such as the genes that test slides measure too; None means all.
        min_slides: minimum number of slides that measure a gene; None means all slides.
        n_bins: see above.

    Returns:
        Qualified genes as the index, the best first: their ``mean`` count over the spots of all
        slides that measure them, the minimum ``share`` of the spots with a count over these slides,
        their ``score``, and the number of these ``slides``.

    Source: Satija et al. 2015, Nat. Biotechnol. 33, 495-502, as scanpy's flavour "seurat" on log1p
    counts; HEST-bench (Jaume et al., NeurIPS 2024), ``get_k_genes``.
    """
    n_measuring = Counter(gene for slide in slides for gene in slide.table.index)
    least = len(slides) if min_slides is None else min_slides
    genes = {gene for gene, number in n_measuring.items() if number >= least}
    genes = genes if panel is None else genes & set(panel)
    names = sorted(gene for gene in genes if not any(part in gene for part in _CONTROLS))
    measured = np.stack([slide.table.index.get_indexer(names) >= 0 for slide in slides])
    tables = [slide.table.reindex(names) for slide in slides]

    def pooled(column: str) -> np.ndarray:
        return np.where(measured, [table[column] for table in tables], 0).sum(axis=0)

    n = measured.T @ [slide.n_spots for slide in slides]
    mean = pooled("total") / n
    share = np.where(measured, [table["share"] for table in tables], 1).min(axis=0)
    if method == "hvg":
        variance = (pooled("squares") - n * mean**2) / np.maximum(n - 1, 1)
        score = _dispersion(mean, variance, share >= min_fraction, n_bins)
    else:
        score = mean if method == "mean" else pooled("moran") / measured.sum(axis=0)
    columns = {"mean": mean, "share": share, "score": score, "slides": measured.sum(axis=0)}
    ranked = pd.DataFrame(columns, index=names)
    ranked = ranked[(share >= min_fraction) & np.isfinite(score)]
    return ranked.sort_values("score", ascending=False, kind="stable")


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
