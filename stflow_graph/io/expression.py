"""Expression of a slide as an .h5ad with raw counts, as HEST-bench keeps it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.coords import check_coords
from stflow_graph.io.gene_names import (
    DEFAULT_MATCHING,
    NAME_COLUMNS,
    GeneMatching,
    MatchedGenes,
    identities,
    match_genes,
)
from stflow_graph.io.h5ad import read_h5ad, read_var, write_elements
from stflow_graph.io.hdf5 import (
    check_unique,
    create_h5,
    open_h5,
    read_strings,
)

if TYPE_CHECKING:
    import anndata

FORMAT = "stflow_graph.expression/1"
_MAX_COUNT = 1e12
# the simulator's layer of expected expression
TRUE_MEAN = "true_mean"


@dataclasses.dataclass(frozen=True)
class Expression:
    """Counts of one slide.

    Attributes:
        counts: ``[N, G]`` CSR float32, raw counts.
        barcodes: N names.
        genes: G names, as requested.
        total: ``[N]`` float64, counts of each spot over all genes of the file.
        coords: ``[N, 2]`` float64 level-0 pixels (x, y) of the spots' centres, None if absent.
        um_per_px: micrometres per pixel, None if unknown.
        true_mean: ``[N, G]`` float32 in log1p units where a simulator stored it, else None.
        var: further columns per gene, such as ``gene_ids``.
        absent: requested genes that the file lacks.
        matched: a phrase with the number of genes matched other than by name; "" if none.
    """

    counts: sp.csr_matrix
    barcodes: list[str]
    genes: list[str]
    total: np.ndarray
    coords: np.ndarray | None = None
    um_per_px: float | None = None
    true_mean: np.ndarray | None = None
    var: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    absent: list[str] = dataclasses.field(default_factory=list)
    matched: str = ""


def read_expression(
    path: str | Path,
    genes: Sequence[str] | None = None,
    *,
    matching: GeneMatching = DEFAULT_MATCHING,
    min_fraction: float = 1.0,
    number_duplicates: bool = False,
) -> Expression:
    """Read and validate raw counts from an .h5ad; see :func:`expression_of`.

    ``number_duplicates`` keeps all genes that stand several times, see :func:`numbered`.
    """
    adata = read_h5ad(path)
    if number_duplicates:
        adata.var_names = pd.Index(numbered([str(name) for name in adata.var_names]), dtype=object)
    return expression_of(adata, path, genes, matching=matching, min_fraction=min_fraction)


def gene_identities(path: str | Path, genes: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the Ensembl ID and the symbol of genes by an .h5ad's var, "" where it has none.

    Raises:
        BadInput: not an .h5ad.
    """
    var = read_var(path)
    columns = [var.index, *(var[name] for name in NAME_COLUMNS if name in var)]
    names = [["" if pd.isna(v) else str(v) for v in np.asarray(c, object)] for c in columns]
    return identities(genes, list(zip(*names, strict=True)))


def expression_of(
    adata: anndata.AnnData,
    path: str | Path,
    genes: Sequence[str] | None = None,
    *,
    matching: GeneMatching = DEFAULT_MATCHING,
    min_fraction: float = 1.0,
) -> Expression:
    """Return the validated raw counts of an AnnData.

    Args:
        adata: spots x genes, raw counts in ``X``.
        path: the file it comes from, for messages.
        genes: the genes to return, in this order; None returns all.
        matching: how to match genes that the file names differently, see ``io.gene_names``.
        min_fraction: minimum fraction of the requested genes that must be there.

    Raises:
        BadInput: not an .h5ad, corrupt sparse indices, counts negative, not finite or not whole,
            duplicated barcodes, genes absent or duplicated (with their number and examples).
    """
    barcodes, names = list(adata.obs_names), [str(name) for name in adata.var_names]
    check_unique(barcodes, path, "obs_names")
    if not barcodes:
        raise BadInput(path, "obs_names", unquoted("0 spots"), "at least one spot")
    if adata.isbacked:
        adata = adata.to_memory()
    if adata.X is None:
        raise BadInput(path, "X", None, "raw counts")
    if adata.X.dtype.kind not in "iufb":
        raise BadInput(path, "X", str(adata.X.dtype), "numbers")
    half = adata.X.dtype == np.float16  # which scipy does not take
    counts = sp.csr_matrix(adata.X.astype(np.float32) if half else adata.X)
    check_raw(counts.data, path, "X", "store raw counts in X")
    counts = counts.astype(np.float32)
    matched = match_genes(
        list(dict.fromkeys(names)) if genes is None else list(genes),
        names,
        path,
        other_names=[] if genes is None else _other_names(adata),
        matching=matching,
        min_fraction=min_fraction,
    )
    return Expression(
        _columns_of(counts, matched),
        barcodes,
        matched.genes,
        totals(counts),
        coords=spatial(adata, path),
        um_per_px=um_per_px_of(adata),
        true_mean=_true_mean(adata, matched),
        absent=matched.absent,
        matched=matched.how,
    )


def totals(counts: sp.csr_matrix) -> np.ndarray:
    """Return the sum of each row, ``[N]`` float64."""
    return np.asarray(counts.sum(axis=1), dtype=np.float64).reshape(-1)


def read_positions(path: str | Path) -> tuple[list[str], np.ndarray] | None:
    """Read the barcodes and ``obsm["spatial"]`` of an .h5ad without its counts.

    Returns:
        N names and ``[N, 2]`` float64 centres in level-0 pixels (x, y); None if there are none.

    Raises:
        BadInput: not an .h5ad, or places that do not fit its spots.
    """
    with open_h5(path) as file:
        obs, places = file.get("obs"), file.get("obsm/spatial")
        index = obs.attrs.get("_index") if isinstance(obs, h5py.Group) else None
        names = None if index is None else obs.get(str(index))
        if isinstance(names, h5py.Dataset) and isinstance(places, h5py.Dataset):
            barcodes = read_strings(names)
            return barcodes, check_coords(places[()], path, "obsm['spatial']", len(barcodes))
    # another encoding, of older or newer versions of anndata
    adata = read_h5ad(path)
    coords = spatial(adata, path)
    return None if coords is None else (list(adata.obs_names), coords)


def check_raw(values: np.ndarray, path: str | Path, field: str, fix: str | None = None) -> None:
    """Check that values are raw counts: whole numbers >= 0.

    Raises:
        BadInput: not numbers, not finite, negative or not whole (with their number and examples).
    """
    if values.dtype.kind not in "iufb":
        raise BadInput(path, field, str(values.dtype), "numbers")
    for wrong, kind in (
        (~np.isfinite(values), "not finite"),
        (values < 0, "negative"),
        (values != np.rint(values), "not whole"),
        (values > _MAX_COUNT, "too large for counts"),
    ):
        if wrong.any():
            found = unquoted(
                f"{int(wrong.sum())} values {kind}, such as {values[wrong][:3].tolist()}"
            )
            raise BadInput(path, field, found, "raw counts", fix)


def numbered(names: Sequence[str]) -> list[str]:
    """Make names unique as scanpy's ``var_names_make_unique`` does: A, A becomes A, A-1."""
    from anndata.utils import make_index_unique

    if len(set(names)) == len(names):
        return list(names)
    with warnings.catch_warnings():
        # it warns if A-1 is a name of its own; the result is still unique
        warnings.filterwarnings("ignore", module="anndata")
        return list(make_index_unique(pd.Index(names, dtype=object)))


def _other_names(adata: anndata.AnnData) -> list[list[str]]:
    columns = [adata.var[name] for name in NAME_COLUMNS if name in adata.var]
    return [["" if pd.isna(v) else str(v) for v in column.to_numpy(object)] for column in columns]


def _columns_of(counts: sp.csr_matrix, matched: MatchedGenes) -> sp.csr_matrix:
    columns, n = np.concatenate(matched.columns), len(matched.genes)
    if n == len(columns):
        same = np.array_equal(columns, np.arange(counts.shape[1]))
        return counts if same else counts[:, columns]
    genes = np.repeat(np.arange(n), [len(several) for several in matched.columns])
    ones = np.ones(len(columns), dtype=np.float32)
    return sp.csr_matrix(counts @ sp.csr_matrix((ones, (columns, genes)), (counts.shape[1], n)))


def spatial(adata: anndata.AnnData, path: str | Path) -> np.ndarray | None:
    """Return ``obsm["spatial"]`` as float64 ``[N, 2]``, None if there is none.

    Raises:
        BadInput: another shape, or not finite.
    """
    if "spatial" not in adata.obsm:
        return None
    return check_coords(np.asarray(adata.obsm["spatial"]), path, "obsm['spatial']", adata.n_obs)


def um_per_px_of(adata: anndata.AnnData) -> float | None:
    """Return the micrometres per pixel in ``uns``, None without a positive number there."""
    for key in ("um_per_px", "pixel_size_um_estimated"):
        value = adata.uns.get(key)
        is_number = isinstance(value, int | float | np.integer | np.floating)
        if is_number and not isinstance(value, bool) and 0 < value < np.inf:
            return float(value)
    return None


def _true_mean(adata: anndata.AnnData, matched: MatchedGenes) -> np.ndarray | None:
    if TRUE_MEAN not in adata.layers or any(len(columns) > 1 for columns in matched.columns):
        return None
    layer = adata.layers[TRUE_MEAN][:, np.concatenate(matched.columns)]
    return (layer.toarray() if sp.issparse(layer) else np.asarray(layer)).astype(np.float32)


def write_expression(
    path: str | Path,
    counts: sp.csr_matrix,
    barcodes: Sequence[str],
    genes: Sequence[str],
    coords: np.ndarray,
    *,
    um_per_px: float,
    obs: Mapping[str, np.ndarray] | None = None,
    var: Mapping[str, Any] | None = None,
    layers: Mapping[str, np.ndarray] | None = None,
    uns: Mapping[str, Any] | None = None,
) -> None:
    """Write raw counts atomically as an .h5ad.

    Args:
        path: the final path.
        counts: ``[N, G]`` raw counts.
        barcodes: N names.
        genes: G names.
        coords: ``[N, 2]`` centres in level-0 pixels (x, y), stored as ``obsm["spatial"]``.
        um_per_px: micrometres per level-0 pixel, stored in ``uns``.
        obs: further columns per spot.
        var: further columns per gene.
        layers: further ``[N, G]`` matrices.
        uns: further unstructured data.
    """
    import anndata

    adata = anndata.AnnData(
        X=sp.csr_matrix(counts, dtype=np.float32),
        obs=pd.DataFrame(dict(obs or {}), index=pd.Index(barcodes, dtype=object)),
        var=pd.DataFrame(dict(var or {}), index=pd.Index(genes, dtype=object)),
    )
    adata.obsm["spatial"] = np.asarray(coords, dtype=np.float64)
    adata.uns.update({"um_per_px": float(um_per_px), **(uns or {})})
    for name, layer in (layers or {}).items():
        adata.layers[name] = layer
    write_h5ad(path, adata)


def write_h5ad(path: str | Path, adata: anndata.AnnData) -> None:
    """Write an AnnData atomically, compressed; the same data give the same bytes."""
    with create_h5(path, FORMAT) as (file, _):
        write_elements(file, adata)
