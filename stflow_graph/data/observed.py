"""Expression measured at some of a slide's spots, which informs the prediction of the others."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from stflow_graph.data.barcodes import match_barcodes
from stflow_graph.data.coordinates import to_centres
from stflow_graph.data.normalise import to_target
from stflow_graph.errors import BadInput, count, unquoted
from stflow_graph.io.expression import Expression, expression_of
from stflow_graph.io.gene_names import DEFAULT_MATCHING, GeneMatching
from stflow_graph.io.h5ad import read_h5ad

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

_ROUNDING = 2.0  # px
_OFF = 0.1  # of the distance of neighbours
TOTAL = "total_counts"  # scanpy's name for the counts of a spot over all genes


@dataclasses.dataclass(frozen=True, eq=False)
class Observed:
    """Measured expression of some spots and genes of a slide.

    Attributes:
        rows: ``[n]`` the spots, ascending.
        genes: ``[M]`` the genes, ascending places in the model's list.
        values: ``[n, M]`` float32, log1p units.
    """

    rows: np.ndarray
    genes: np.ndarray
    values: np.ndarray

    def digest(self) -> str:
        """Return the SHA-256 of what is measured where."""
        parts = (self.rows, self.genes, self.values)
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def read_observed(
    source: str | Path | AnnData,
    barcodes: Sequence[str],
    coords: np.ndarray,
    genes: Sequence[str],
    *,
    slide: str,
    target: str = "log1p",
    matching: GeneMatching = DEFAULT_MATCHING,
) -> Observed:
    """Read the counts measured at some of a slide's spots.

    Args:
        source: an .h5ad, or what one holds, with raw counts in ``X`` of some of the slide's spots
            and of one or more of the genes. A normalised target needs the counts of a spot over
            all genes: ``obs["total_counts"]``, or else those of the file.
        barcodes: of the slide.
        coords: ``[N, 2]`` its positions, level-0 pixels (x, y).
        genes: of the model.
        slide: the file of the slide's embeddings, for messages.
        target: a target of ``data.normalise``.
        matching: how genes with other names in the file are matched.

    Raises:
        BadInput: not such a file, counts that are not raw, spots of another slide, none of the
            genes, no total, or nothing left to predict.
    """
    in_file = isinstance(source, str | Path)
    file = str(source) if in_file else "observed"
    adata = read_h5ad(source) if in_file else source
    some = dataclasses.replace(matching, missing="mask")
    expression = expression_of(adata, file, genes, matching=some)
    if expression.matched:
        logger.warning("%s: %s", file, expression.matched)
    rows, measured = match_barcodes(barcodes, expression.barcodes, slide, file)
    n_elsewhere = len(expression.barcodes) - len(rows)
    if n_elsewhere:
        logger.warning("%s: %d spots are not on the slide and are left out", file, n_elsewhere)
    if len(rows) == len(barcodes) and not expression.absent:
        found = unquoted(f"all {len(rows)} spots with all {len(genes)} genes")
        raise BadInput(file, "observed", found, "some spots or genes left to predict")
    if expression.coords is not None:
        _check_places(coords, rows, expression.coords[measured], slide, file)
    total = expression.total
    if target == "log1p_normalised":
        total = _total(adata, expression, len(genes), file)
    places = {gene: g for g, gene in enumerate(genes)}
    columns = np.array([places[gene] for gene in expression.genes])
    values = to_target(expression.counts[measured], total[measured], target)
    return Observed(rows, columns, values)


def _check_places(
    coords: np.ndarray, rows: np.ndarray, centres: np.ndarray, slide: str, file: str
) -> None:
    """Refuse spots that lie elsewhere on the slide: many slides have the same barcodes.

    A shift that all have in common is logged as a warning, see ``data.coordinates``.
    """
    pitch = float(np.median(cKDTree(coords).query(coords, k=2)[0][:, 1]))
    coords = coords[rows]
    offset = np.median(centres - coords, axis=0)
    off = np.abs(centres - coords - offset).max(axis=1)
    n_elsewhere = int((off > max(_ROUNDING, _OFF * pitch)).sum())
    if n_elsewhere:
        text = (
            f"{n_elsewhere} of {len(coords)} spots up to {off.max():.0f} px from those of {slide}"
        )
        fix = "give the counts of this slide, or leave 'spatial' out if they are"
        raise BadInput(file, "obsm['spatial']", unquoted(text), "the same places", fix)
    to_centres(coords, centres, file=slide, other=file)


def _total(adata: AnnData, expression: Expression, n_genes: int, file: str) -> np.ndarray:
    if TOTAL in adata.obs:
        column = adata.obs[TOTAL].to_numpy()
        if column.dtype.kind not in "iuf":
            raise BadInput(file, f"obs[{TOTAL!r}]", str(column.dtype), "numbers")
        total = column.astype(np.float64)
        wrong = ~np.isfinite(total) | (total < expression.total)
        if wrong.any():
            text = f"{int(wrong.sum())} values not finite or below the counts in X"
            raise BadInput(
                file, f"obs[{TOTAL!r}]", unquoted(text), "counts of a spot over all genes"
            )
        return total
    if adata.n_vars <= n_genes:
        found = unquoted(f"{count(adata.n_vars, 'gene')} and no {TOTAL!r}")
        expected = "the counts of each spot over all genes, by which the target is normalised"
        fix = f"add them as obs[{TOTAL!r}], or give a file with all genes"
        raise BadInput(file, "obs", found, expected, fix)
    return expression.total
