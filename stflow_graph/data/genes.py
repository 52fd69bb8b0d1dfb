"""Gene lists as HEST-bench keeps them, a JSON file with the key ``genes``; choosing the genes."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from stflow_graph.errors import BadInput, plain
from stflow_graph.io.atomic import read_json, write_json


def read_gene_list(path: str | Path) -> list[str]:
    """Read ``{"genes": [...]}``.

    Raises:
        BadInput: another content, no genes, a gene twice.
    """
    content = read_json(path)
    genes = content.get("genes") if isinstance(content, dict) else content
    if not isinstance(genes, list) or not all(isinstance(gene, str) for gene in genes):
        raise BadInput(path, "genes", type(genes).__name__, "a list of gene names")
    if not genes:
        raise BadInput(path, "genes", plain("0 genes"), "at least one gene")
    if len(set(genes)) < len(genes):
        twice = sorted({gene for gene in genes if genes.count(gene) > 1})
        raise BadInput(path, "genes", plain(f"duplicates such as {twice[:3]}"), "each gene once")
    return genes


def write_gene_list(path: str | Path, genes: list[str]) -> None:
    """Write ``{"genes": [...]}`` atomically."""
    write_json(path, {"genes": genes})


@dataclasses.dataclass(frozen=True)
class GeneStatistics:
    """What choosing genes needs to know of one slide.

    Attributes:
        genes: G names.
        n_spots: number of spots.
        share: ``[G]`` share of the spots in which the gene was counted at all.
        total: ``[G]`` sum of the counts over spots.
        squares: ``[G]`` sum of the squared counts over spots.
    """

    genes: list[str]
    n_spots: int
    share: np.ndarray
    total: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, counts: sp.csr_matrix, genes: Sequence[str]) -> GeneStatistics:
        """Summarise raw counts, ``[N, G]``."""
        counts = counts.astype(np.float64)
        counts.eliminate_zeros()
        total, squares = (np.asarray(m.sum(axis=0)).reshape(-1) for m in (counts, counts.power(2)))
        share = counts.getnnz(axis=0) / counts.shape[0]
        return cls(list(genes), counts.shape[0], share, total, squares)


def highly_variable_genes(
    slides: Sequence[GeneStatistics],
    *,
    n_genes: int = 50,
    least_share: float = 0.1,
    panel: Collection[str] | None = None,
    n_bins: int = 20,
) -> list[str]:
    """Choose the genes that vary most for their mean, over the spots of all slides together.

    A gene must be counted in at least ``least_share`` of the spots of every slide. Its dispersion
    log(variance / mean) is standardised among genes of similar log1p(mean), in ``n_bins`` bins of
    equal width; the highest are chosen. HEST-bench chooses its genes in this way.

    Args:
        slides: the training slides, and nothing else, so that the choice has not seen the test.
        n_genes: how many; fewer are returned if fewer qualify.
        least_share: see above.
        panel: only these genes, where a test slide does not measure every gene; None means all.
        n_bins: see above.

    Returns:
        The genes' names in alphabetical order.

    Source: Satija et al. 2015, Nat. Biotechnol. 33, 495-502, as scanpy's flavour "seurat".
    """
    places = [{gene: i for i, gene in enumerate(slide.genes)} for slide in slides]
    shared = set.intersection(*map(set, places))
    names = sorted(shared if panel is None else shared & set(panel))
    columns = [[place[name] for name in names] for place in places]
    every = list(zip(slides, columns, strict=True))
    n = sum(slide.n_spots for slide in slides)
    mean = np.sum([slide.total[c] for slide, c in every], axis=0) / n
    squares = np.sum([slide.squares[c] for slide, c in every], axis=0)
    variance = (squares - n * mean**2) / max(n - 1, 1)
    enough = np.all([slide.share[c] >= least_share for slide, c in every], axis=0)
    rows = np.flatnonzero(enough & (variance > 1e-12 * mean))
    if not len(rows):
        return []
    score = _standardised(np.log(variance[rows] / mean[rows]), np.log1p(mean[rows]), n_bins)
    chosen = rows[np.argsort(-score, kind="stable")[:n_genes]]
    return sorted(names[i] for i in chosen)


def _standardised(dispersion: np.ndarray, mean: np.ndarray, n_bins: int) -> np.ndarray:
    edges = np.linspace(mean.min(), mean.max(), n_bins + 1)
    bins = np.searchsorted(edges[1:-1], mean, side="left")
    # a gene alone in its bin has no deviation to compare with and counts as one deviation high
    score = np.ones_like(dispersion)
    for number in np.unique(bins):
        inside = bins == number
        deviation = dispersion[inside].std(ddof=1) if inside.sum() > 1 else 0.0
        if deviation > 0:
            score[inside] = (dispersion[inside] - dispersion[inside].mean()) / deviation
    return score
