"""Feature-barcode matrices of 10x Genomics' pipelines: .h5 (both layouts) or a folder of .mtx.

Space Ranger, Cell Ranger and Xenium write them alike: features x barcodes in compressed columns,
which are the compressed rows of spots x genes. The layout of version 3 has one group ``matrix``
with ``features/{id, name, feature_type, genome}``; that of version 2 a group per genome with
``genes`` and ``gene_names``.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp

from stflow_graph.errors import BadConfig, BadInput, as_bad_input, count, one_line, unquoted
from stflow_graph.io.atomic import check_file, required_file
from stflow_graph.io.columns import read_rows
from stflow_graph.io.expression import Expression, check_raw, numbered, totals
from stflow_graph.io.h5ad import check_sparse
from stflow_graph.io.hdf5 import check_unique, dataset, keys_of, open_h5, read_strings

GENE_EXPRESSION = "Gene Expression"
GENE_NAMES = ("symbols", "ids")
# entries of the matrix that are converted and checked at a time
_BLOCK = 2**24
_FOLDER_FILES = (
    ("counts", ("matrix.mtx.gz", "matrix.mtx")),
    ("features", ("features.tsv.gz", "genes.tsv.gz", "features.tsv", "genes.tsv")),
    ("barcodes", ("barcodes.tsv.gz", "barcodes.tsv")),
)


class _Features(NamedTuple):
    """The features of a matrix; the old layout has no types."""

    ids: list[str]
    symbols: list[str]
    types: list[str] = []


def read_tenx(path: str | Path, gene_names: str = "symbols") -> Expression:
    """Read the gene expression of a feature-barcode matrix.

    Features of other types (control probes, antibodies) are left out. Symbols that stand twice
    become unique as in scanpy: A, A is A, A-1. ``var`` keeps ``gene_ids`` and ``gene_symbols``.

    Args:
        path: the .h5, or the folder of ``matrix.mtx.gz``, ``features.tsv.gz``, ``barcodes.tsv.gz``.
        gene_names: ``"symbols"`` or ``"ids"``.

    Returns:
        N barcodes x G genes, without coordinates.

    Raises:
        BadInput: keys missing (lists those found), lengths that differ, indices out of range or
            twice, counts that are not raw, a barcode twice, several genomes in an old layout.
        BadConfig: unknown ``gene_names``.
    """
    if gene_names not in GENE_NAMES:
        raise BadConfig(f"gene names {gene_names!r}: expected {' or '.join(GENE_NAMES)}")
    path = Path(path)
    if path.is_dir():
        counts, barcodes, features = _read_folder(path)
    else:
        with open_h5(path) as file:
            counts, barcodes, features = _read_h5(file)
    if not barcodes:
        raise BadInput(path, "barcodes", unquoted("0 barcodes"), "at least one")
    check_unique(barcodes, path, "barcodes")
    return _expression(counts, barcodes, features, gene_names, path)


def tenx_files(path: str | Path) -> dict[str, Path]:
    """Return the files of a matrix by role: ``counts``, or of a folder each of its three.

    Raises:
        BadInput: a file of the folder is missing; the message lists those found.
    """
    path = Path(path)
    if not path.is_dir():
        return {"counts": path}
    return {role: required_file(path, role, names) for role, names in _FOLDER_FILES}


def software(path: str | Path) -> str:
    """Return the program that wrote a .h5, such as ``"spaceranger-2.1.0"``; "" if unknown."""
    with open_h5(path) as file:
        value = file.attrs.get("software_version", "")
        return one_line(
            value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        )


def _expression(
    counts: sp.csr_matrix, barcodes: list[str], features: _Features, gene_names: str, path: Path
) -> Expression:
    kept = np.arange(len(features.ids))
    if features.types:
        kept = np.flatnonzero(np.array(features.types) == GENE_EXPRESSION)
    if not len(kept):
        types = unquoted(f"0 genes; types {sorted(set(features.types))}")
        raise BadInput(path, "features", types, f"features of type {GENE_EXPRESSION!r}")
    if len(kept) < len(features.ids):
        counts = counts[:, kept]
    ids, symbols = ([names[i] for i in kept] for names in (features.ids, features.symbols))
    genes = numbered(symbols if gene_names == "symbols" else ids)
    var = {"gene_ids": ids, "gene_symbols": symbols}
    return Expression(counts, barcodes, genes, totals(counts), var=var)


def _read_h5(file: h5py.File) -> tuple[sp.csr_matrix, list[str], _Features]:
    group, keys = file.get("matrix"), ["features/id", "features/name", "features/feature_type"]
    if not isinstance(group, h5py.Group):
        group, keys = _genome(file), ["genes", "gene_names"]
    ids, symbols, *types = (read_strings(dataset(group, [key])) for key in keys)
    barcodes = read_strings(dataset(group, ["barcodes"]))
    features = _Features(ids, symbols, *types)
    _check_lengths(group, barcodes, features)
    return _read_rows(group, (len(barcodes), len(ids))), barcodes, features


def _genome(file: h5py.File) -> h5py.Group:
    genomes = [name for name, item in file.items() if isinstance(item, h5py.Group)]
    of_genes = [name for name in genomes if "gene_names" in file[name]]
    if len(of_genes) != 1:
        expected = "a group 'matrix', or one genome with 'gene_names'"
        raise BadInput(file.filename, "matrix", keys_of(file), expected)
    return file[of_genes[0]]


def _check_lengths(group: h5py.Group, barcodes: list[str], features: _Features) -> None:
    file, n = group.file.filename, len(features.ids)
    for field, values in (("names", features.symbols), ("feature types", features.types or None)):
        if values is not None and len(values) != n:
            raise BadInput(file, field, unquoted(f"{len(values)}"), f"{n}, one per feature id")
    shape = tuple(np.ravel(dataset(group, ["shape"])[()]).tolist())
    if shape != (n, len(barcodes)):
        found = unquoted(f"{shape} for {n} features and {len(barcodes)} barcodes")
        raise BadInput(file, f"{group.name}/shape", found, f"({n}, {len(barcodes)})")


def _read_rows(group: h5py.Group, shape: tuple[int, int]) -> sp.csr_matrix:
    """Read the compressed rows, spots x genes, block by block into 8 bytes an entry."""
    path = group.file.filename
    stored = {key: dataset(group, [key]) for key in ("indptr", "indices", "data")}
    for key, data in stored.items():
        if data.ndim != 1 or data.dtype.kind not in ("iuf" if key == "data" else "iu"):
            found = unquoted(f"{data.dtype} {data.shape}")
            raise BadInput(path, data.name, found, "a list of numbers")
    n_entries, starts = len(stored["data"]), stored["indptr"][()].astype(np.int64)
    for key, n in (("indices", len(stored["indices"])), ("indptr", starts[-1:].sum())):
        if n != n_entries:
            raise BadInput(path, key, unquoted(f"{n} for {n_entries} values"), "one per value")
    indices = np.empty(n_entries, dtype=np.int32)
    values = np.empty(n_entries, dtype=np.float32)
    for start in range(0, n_entries, _BLOCK):
        part = slice(start, start + _BLOCK)
        index, block = stored["indices"][part], stored["data"][part]
        if not (index.min() >= 0 and index.max() < shape[1]):
            found = unquoted(f"{index.min()} to {index.max()}")
            raise BadInput(path, "indices", found, f"0 to {shape[1] - 1}")
        check_raw(block, path, "data")
        indices[part], values[part] = index, block
    with as_bad_input(path, "indptr", f"{shape[0] + 1} pointers, never decreasing from 0"):
        counts = sp.csr_matrix((values, indices, starts), shape)
        check_sparse(counts)
    counts.sort_indices()
    if not counts.has_canonical_format:
        found = unquoted("a feature twice in one barcode")
        raise BadInput(path, "indices", found, "each feature once")
    return counts


def _read_folder(folder: Path) -> tuple[sp.csr_matrix, list[str], _Features]:
    files = tenx_files(folder)
    barcodes = [row[0] for row in read_rows(files["barcodes"])]
    columns = [list(c) for c in zip(*read_rows(files["features"]), strict=True)]
    if len(columns) < 2:
        raise BadInput(files["features"], "columns", unquoted("1"), "ids and names")
    features = _Features(*columns[:3])
    path = check_file(files["counts"])
    with as_bad_input(path, "content", "a Matrix Market file"):
        n_rows, n_columns, n_entries, kind, field, symmetry = scipy.io.mminfo(path)
    if field not in ("integer", "real") or symmetry != "general":
        raise BadInput(path, "content", f"{field} {symmetry}", "integer general or real general")
    expected = (len(features.ids), len(barcodes))
    # it is allocated by these numbers, before any entry is read
    if (n_rows, n_columns, kind) != (*expected, "coordinate") or n_entries > n_rows * n_columns:
        found = unquoted(f"{kind} ({n_rows}, {n_columns}) with {n_entries} entries")
        raise BadInput(path, "shape", found, f"coordinate {expected}, features x barcodes")
    counts = _read_entries(path, (n_columns, n_rows), n_entries)
    check_raw(counts.data, path, "data")
    return counts, barcodes, features


def _read_entries(path: Path, shape: tuple[int, int], n_entries: int) -> sp.csr_matrix:
    """Read the entries of a Matrix Market file, features x spots, as spots x features.

    By pandas: on damaged entries scipy's reader crashes the interpreter.
    """
    with as_bad_input(path, "content", "entries of a Matrix Market file"):
        table = pd.read_csv(
            path,
            sep=r"\s+",
            comment="%",
            header=None,
            names=["feature", "spot", "count"],
            dtype={"feature": np.int64, "spot": np.int64, "count": np.float64},
        )[1:]  # the first line has the shape
    if len(table) != n_entries:
        raise BadInput(
            path, "content", unquoted(count(len(table), "entry", "entries")), f"{n_entries}"
        )
    places = []
    for name, n in (("spot", shape[0]), ("feature", shape[1])):
        place = table[name].to_numpy() - 1
        if len(place) and not 0 <= place.min() <= place.max() < n:
            found = unquoted(f"{place.min() + 1} to {place.max() + 1}")
            raise BadInput(path, f"{name} of an entry", found, f"1 to {n}")
        places.append(place)
    return sp.csr_matrix((table["count"].to_numpy(), places), shape, dtype=np.float32)
