"""AnnData files: reading untrusted ones, and writing with checksums."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import scipy.sparse as sp

from stflow_graph.errors import BadInput, as_bad_input, unquoted
from stflow_graph.io.hdf5 import keys_of, lacks_locks, open_h5
from stflow_graph.io.versions import unchanged

if TYPE_CHECKING:
    import anndata
    import pandas as pd

_MAPPINGS = ("obsm", "varm", "obsp", "varp", "layers", "uns")


def read_h5ad(path: str | Path) -> anndata.AnnData:
    """Read an .h5ad after the checks of :func:`open_h5` and of its sparse indices.

    Raises:
        BadInput: anything that anndata cannot read, or a file that is replaced meanwhile.
    """
    with unchanged(path):
        return _read_h5ad(path)


def _read_h5ad(path: str | Path) -> anndata.AnnData:
    import anndata

    with open_h5(path) as file:
        if "obs" not in file or "var" not in file or "X" not in file:
            raise BadInput(path, "content", keys_of(file), "an .h5ad with X, obs and var")
        check_precision(file, path)
    with (
        as_bad_input(path, "content", "an .h5ad that anndata can read"),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", module="anndata")
        try:
            adata = anndata.read_h5ad(path)
        except OSError as error:
            if not lacks_locks(error):
                raise
            with Path(path).open("rb") as stream:  # of which HDF5 locks nothing
                adata = anndata.read_h5ad(stream)
    for name, matrix in [("X", adata.X), *adata.layers.items()]:
        if sp.issparse(matrix):
            with as_bad_input(path, name, "valid sparse indices"):
                check_sparse(matrix)
    return adata


def check_precision(file: h5py.File, path: str | Path) -> None:
    """Refuse sparse counts of 16 bits, which scipy has no matrix for.

    Raises:
        BadInput: ``X`` is of such.
    """
    data = file["X"].get("data") if isinstance(file["X"], h5py.Group) else None
    if isinstance(data, h5py.Dataset) and data.dtype == np.float16:
        found = unquoted("float16 in a sparse matrix")
        raise BadInput(path, "X", found, "integers or float32", "save X again as float32")


def read_var(path: str | Path) -> pd.DataFrame:
    """Read the table of an .h5ad's genes and nothing else.

    Raises:
        BadInput: not an .h5ad, or a table that anndata cannot read.
    """
    try:
        from anndata.io import read_elem
    except ImportError:  # before 0.11
        from anndata.experimental import read_elem

    with open_h5(path) as file, as_bad_input(path, "var", "a table that anndata can read"):
        table: pd.DataFrame = read_elem(file["var"])
        return table


def check_sparse(matrix: sp.csr_matrix | sp.csc_matrix) -> None:
    """Refuse indices out of range, which crash the interpreter at the first ``.toarray()``.

    Raises:
        ValueError: they are, or the pointers to rows or columns decrease.
    """
    matrix.check_format(full_check=True)
    if (np.diff(matrix.indptr) < 0).any():  # of a matrix without values scipy does not look
        raise ValueError("pointers that decrease")


def is_h5ad(path: str | Path) -> bool:
    """Return whether a file is an .h5ad, whatever it holds."""
    try:
        with open_h5(path) as file:
            return {"obs", "var"} <= set(file)
    except BadInput:
        return False


def write_elements(file: h5py.File, adata: anndata.AnnData) -> None:
    """Write an AnnData into an empty file, as ``AnnData.write_h5ad`` does, with checksums."""
    try:
        from anndata.io import write_elem
    except ImportError:  # before 0.11
        from anndata.experimental import write_elem

    adata.strings_to_categoricals()
    file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    parts = {"X": adata.X, "raw": adata.raw, "obs": adata.obs, "var": adata.var}
    parts |= {key: dict(getattr(adata, key)) for key in _MAPPINGS}
    for key, value in parts.items():
        if value is not None:
            # text of any length, as in tables, takes no checksum
            options = {"compression": "gzip", "fletcher32": key in ("X", "layers")}
            write_elem(file, key, value, dataset_kwargs=options)
