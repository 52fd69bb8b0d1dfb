"""HDF5 files with one row, one barcode and one place for each spot: patches and embeddings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stflow_graph.errors import BadInput, count, unquoted
from stflow_graph.io.checked_file import CheckedFile
from stflow_graph.io.coords import check_coords, check_spread
from stflow_graph.io.hdf5 import check_unique, create_h5, dataset, read_strings

# of chunks that are still filled, which batches of rows do in parts
_CACHE_BYTES = 2**22


def read_positions(file: h5py.File, field: str, n_rows: int) -> tuple[list[str], np.ndarray]:
    """Read the barcodes and places of the rows of a file.

    Args:
        file: with ``barcodes`` (or ``barcode``) and ``coords``.
        field: the key of the rows, for messages.
        n_rows: their number.

    Returns:
        N names and ``[N, 2]`` float64 level-0 pixels (x, y).

    Raises:
        BadInput: zero spots, duplicated barcodes, or lengths or coordinates that do not fit.
    """
    path, barcodes = file.filename, read_strings(dataset(file, ["barcodes", "barcode"]))
    check_n_rows(path, field, n_rows, len(barcodes), "barcode")
    check_unique(barcodes, path, "barcodes")
    coords = check_coords(dataset(file, ["coords"])[()], path, "coords", len(barcodes))
    check_spread(coords, path, "coords")
    return barcodes, coords


def check_n_rows(path: str | Path, field: str, n_rows: int, n: int, item: str) -> None:
    """Check that there is one row for each of N > 0 barcodes or places.

    Raises:
        BadInput: there are none, or another number of rows.
    """
    if n == 0:
        raise BadInput(path, f"{item}s", unquoted("0 spots"), "at least one spot")
    if n_rows != n:
        raise BadInput(path, field, unquoted(count(n_rows, "row")), f"{n}, one per {item}")


class RowWriter:
    """Writes the rows of a file batch by batch; used through :func:`write_rows`.

    Attributes:
        file: the open file, for further data.
        attrs: its attributes, for values that are known only at the end.
        written: rows written so far.
    """

    def __init__(self, data: h5py.Dataset, output: CheckedFile) -> None:
        self.file, self.attrs = data.file, data.file.attrs
        self.written = 0
        self._data, self._output = data, output

    def append(self, rows: np.ndarray) -> None:
        """Write the next rows, ``[B, ...]``.

        Raises:
            OSError: a write failed; :func:`write_rows` tells which file's.
        """
        self._data[self.written : self.written + len(rows)] = rows
        self.written += len(rows)
        self._output.check()


@contextlib.contextmanager
def write_rows(
    path: str | Path,
    barcodes: Sequence[str],
    coords: np.ndarray,
    *,
    keys: tuple[str, str],
    row_shape: tuple[int, ...],
    format: str,
    **storage: Any,
) -> Iterator[RowWriter]:
    """Write a file atomically; the body appends all N rows in order.

    Args:
        path: the final path.
        barcodes: N names, stored as HEST does: ``[N, 1]`` fixed-width bytes.
        coords: ``[N, 2]`` level-0 pixels (x, y), stored rounded.
        keys: of the barcodes and of the rows.
        row_shape: of a row.
        format: the format mark, set once all rows are there.
        **storage: dtype, chunks and compression of the rows.

    Raises:
        RuntimeError: the body appended fewer or more than N rows.
        StorageFailed: a write failed; a file that was at the path stays.
    """
    n, encoded = len(barcodes), [barcode.encode() for barcode in barcodes]
    with create_h5(path, format) as (file, output):
        storage |= {"fletcher32": True, "rdcc_nbytes": _CACHE_BYTES}
        data = file.create_dataset(keys[1], (n, *row_shape), **storage)
        width = max([1, *map(len, encoded)])
        file[keys[0]] = np.array(encoded, f"S{width}").reshape(-1, 1)
        file["coords"] = np.rint(np.asarray(coords)).astype(np.int64)
        writer = RowWriter(data, output)
        yield writer
        if writer.written != n:
            raise RuntimeError(f"{path}: {writer.written} of {n} rows were written")
