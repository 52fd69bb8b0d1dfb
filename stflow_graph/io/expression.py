"""Expression of a slide as an .h5ad with raw counts, as HEST-bench keeps it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stflow_graph.errors import BadInput, plain
from stflow_graph.io.atomic import atomic_path
from stflow_graph.io.hdf5 import check_coords, check_unique, open_h5

if TYPE_CHECKING:
    import anndata

FORMAT = "stflow_graph.expression/1"
# the layer in which the simulator keeps each spot's expected expression
TRUE_MEAN = "true_mean"


@dataclasses.dataclass(frozen=True)
class Expression:
    """Counts of one slide.

    Attributes:
        counts: ``[N, G]`` CSR float32, raw counts.
        barcodes: N names.
        genes: G names.
        total: ``[N]`` float64, counts of each spot over all genes of the file.
        coords: ``[N, 2]`` float64 level-0 pixels (x, y) of the spots' centres, None if absent.
        um_per_px: micrometres per pixel, None if unknown.
        true_mean: ``[N, G]`` float32 in log1p units where a simulator stored it, else None.
    """

    counts: sp.csr_matrix
    barcodes: list[str]
    genes: list[str]
    total: np.ndarray
    coords: np.ndarray | None
    um_per_px: float | None
    true_mean: np.ndarray | None = None


def read_expression(path: str | Path, genes: Sequence[str] | None = None) -> Expression:
    """Read and validate raw counts from an .h5ad.

    Args:
        path: the file.
        genes: the genes to return, in this order; None returns all.

    Raises:
        BadInput: not an .h5ad, corrupt sparse indices, counts negative, not finite or not whole,
            duplicated barcodes or genes, genes absent (how many, and three of them).
    """
    return expression_of(read_h5ad(path), path, genes)


def expression_of(
    adata: anndata.AnnData, path: str | Path, genes: Sequence[str] | None = None
) -> Expression:
    """Return the raw counts of an AnnData, validated as :func:`read_expression` does.

    Args:
        adata: spots x genes, raw counts in ``X``.
        path: where it comes from, for messages.
        genes: the genes to return, in this order; None returns all.

    Raises:
        BadInput: as :func:`read_expression`.
    """
    barcodes, names = list(adata.obs_names), list(adata.var_names)
    check_unique(barcodes, path, "obs_names")
    check_unique(names, path, "var_names")
    if not barcodes:
        raise BadInput(path, "obs_names", plain("0 spots"), "at least one spot")
    counts = _checked_counts(adata.X, path)
    total = np.asarray(counts.sum(axis=1), dtype=np.float64).reshape(-1)
    columns = _columns(names, genes, path)
    return Expression(
        counts=counts if columns is None else counts[:, columns],
        barcodes=barcodes,
        genes=names if genes is None else list(genes),
        total=total,
        coords=spatial(adata, path),
        um_per_px=um_per_px_of(adata),
        true_mean=_true_mean(adata, columns),
    )


def read_h5ad(path: str | Path) -> anndata.AnnData:
    """Read an .h5ad after the checks of :func:`open_h5` and of its sparse indices.

    Raises:
        BadInput: anything that anndata cannot read.
    """
    import anndata

    with open_h5(path) as file:
        if "obs" not in file or "var" not in file or "X" not in file:
            keys = plain("keys " + ", ".join(map(repr, file)))
            raise BadInput(path, "content", keys, "an .h5ad with X, obs and var")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="anndata")
            adata = anndata.read_h5ad(path)
    except MemoryError:
        raise
    except Exception as error:  # foreign files make anndata raise nearly anything
        text = " ".join(str(error).split())
        raise BadInput(path, "content", text, "an .h5ad that anndata can read") from None
    for name, matrix in [("X", adata.X), *adata.layers.items()]:
        if sp.issparse(matrix):
            _check_sparse(matrix, path, name)
    return adata


def _check_sparse(matrix: Any, path: str | Path, name: str) -> None:
    # an index out of range crashes the interpreter at the first .toarray()
    try:
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise BadInput(path, name, str(error), "valid sparse indices") from None


def _checked_counts(matrix: Any, path: str | Path) -> sp.csr_matrix:
    if matrix is None:
        raise BadInput(path, "X", None, "raw counts")
    counts = sp.csr_matrix(matrix)
    values = counts.data
    if values.dtype.kind not in "iufb":
        raise BadInput(path, "X", str(values.dtype), "numbers")
    for wrong, what in (
        (~np.isfinite(values), "not finite"),
        (values < 0, "negative"),
        (values != np.rint(values), "not whole"),
    ):
        if wrong.any():
            found = plain(f"{int(wrong.sum())} values {what}, such as {values[wrong][:3].tolist()}")
            raise BadInput(path, "X", found, "raw counts", "store raw counts in X")
    return counts.astype(np.float32)


def _columns(names: list[str], genes: Sequence[str] | None, path: str | Path) -> np.ndarray | None:
    if genes is None:
        return None
    place = {name: i for i, name in enumerate(names)}
    absent = [gene for gene in genes if gene not in place]
    if absent:
        found = plain(f"{len(absent)} of {len(genes)} genes absent, such as {absent[:3]}")
        raise BadInput(path, "var_names", found, "every gene of the gene list")
    return np.array([place[gene] for gene in genes], dtype=np.int64)


def spatial(adata: anndata.AnnData, path: str | Path) -> np.ndarray | None:
    """Return ``obsm["spatial"]`` as float64 ``[N, 2]``, None if there is none.

    Raises:
        BadInput: another shape, or not finite.
    """
    if "spatial" not in adata.obsm:
        return None
    return check_coords(np.asarray(adata.obsm["spatial"]), path, "obsm['spatial']", adata.n_obs)


def um_per_px_of(adata: anndata.AnnData) -> float | None:
    """Return the micrometres per pixel that ``uns`` tells, None if it does not."""
    for key in ("um_per_px", "pixel_size_um_estimated"):
        value = adata.uns.get(key)
        if value is not None and np.ndim(value) == 0 and np.isfinite(float(value)):
            return float(value)
    return None


def _true_mean(adata: anndata.AnnData, columns: np.ndarray | None) -> np.ndarray | None:
    if TRUE_MEAN not in adata.layers:
        return None
    layer = adata.layers[TRUE_MEAN]
    layer = layer.toarray() if sp.issparse(layer) else np.asarray(layer)
    return (layer if columns is None else layer[:, columns]).astype(np.float32)


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
    with atomic_path(path) as temporary:
        adata.write_h5ad(temporary, compression="gzip")
