"""Reading named columns of a table: text (.csv, tab-separated, maybe .gz) or Parquet."""

from __future__ import annotations

import contextlib
import csv
import gzip
import itertools
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from stflow_graph.errors import (
    BadInput,
    MissingDependency,
    as_bad_input,
    count,
    reason_of,
    unquoted,
)
from stflow_graph.io.atomic import check_file
from stflow_graph.io.hdf5 import HDF5_SIGNATURE, check_unique

Column = Sequence[str] | np.ndarray
_PARQUET_SIGNATURE = b"PAR1"
_MAX_LINE, _MAX_RATIO = 2**26, 500


def read_columns(
    path: str | Path, needed: Sequence[str] = (), *, no_header: Sequence[str] = ()
) -> dict[str, Column]:
    """Read a table's columns by name.

    Args:
        path: .parquet, .csv or tab-separated, maybe .gz.
        needed: columns that must be there, others then take no memory; none named keeps all.
        no_header: names of the columns if the first row, of as many cells, has numbers in all but
            the first.

    Raises:
        BadInput: not such a table, a column missing or twice, rows of different lengths.
        MissingDependency: Parquet needs the package pyarrow.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        return _read_parquet(path, needed)
    return dict(_read_text(path, read_rows(path), needed, no_header))


def read_text_columns(path: str | Path) -> dict[str, list[str]]:
    """Read a text table (.csv or tab-separated, maybe .gz) as its columns, cells without blanks.

    A row may stop before its last cells, which are then "".

    Raises:
        BadInput: not such a table, or a column twice.
    """
    return _read_text(path, read_rows(path, short_rows=True))


def check_columns(names: Collection[str], needed: Sequence[str], path: str | Path) -> None:
    """Check that a table has the needed columns.

    Raises:
        BadInput: some are missing; the message lists them and those there.
    """
    missing = [name for name in needed if name not in names]
    if missing:
        raise BadInput(path, "columns", list(names), "also " + ", ".join(missing))


def _read_text(
    path: str | Path,
    rows: Iterator[list[str]],
    needed: Sequence[str] = (),
    no_header: Sequence[str] = (),
) -> dict[str, list[str]]:
    header = [name.strip() for name in next(rows)]
    if len(header) == len(no_header) and None not in map(as_number, header[1:]):
        rows, header = itertools.chain([header], rows), list(no_header)
    check_unique([name for name in header if name], path, "columns")
    check_columns(header, needed, path)
    columns: dict[str, list[str]] = {name: [] for name in needed or header}
    places = [(header.index(name), cells) for name, cells in columns.items()]
    for row in rows:
        for place, cells in places:
            cells.append(row[place].strip())
    return columns


def as_number(text: str) -> float | None:
    """Return the number that a text stands for, None if it is none."""
    try:
        return float(text)
    except ValueError:
        return None


def _read_parquet(path: Path, needed: Sequence[str]) -> dict[str, Column]:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingDependency(
            f"{path}: Parquet needs the package pyarrow. Fix: pip install 'stflow-graph[parquet]'"
        ) from None
    with check_file(path).open("rb") as raw:
        head = raw.read(4)
    if head != _PARQUET_SIGNATURE:
        raise BadInput(path, "content", head, f"a Parquet file (signature {_PARQUET_SIGNATURE!r})")
    # opened here: pyarrow would take a path with "=" in a folder for a partition
    with as_bad_input(path, "content", "a whole Parquet file"), path.open("rb") as raw:
        file = pq.ParquetFile(raw)
        names = file.schema_arrow.names
        check_unique(names, path, "columns")
        check_columns(names, needed, path)
        table = file.read(columns=list(needed) or names)
        return {name: table[name].to_numpy() for name in table.column_names}


def numbers(cells: Column, path: str | Path, field: str) -> np.ndarray:
    """Return a column as float64.

    Raises:
        BadInput: cells that are not numbers.
    """
    try:
        return np.array(cells, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadInput(path, field, unquoted(str(error)), "numbers") from None


def whole_numbers(cells: Column, path: str | Path, field: str) -> np.ndarray:
    """Return a column as int64.

    Raises:
        BadInput: cells that are not whole numbers of fewer than 32 bits.
    """
    values = numbers(cells, path, field)
    wrong = ~((values == np.rint(values)) & (np.abs(values) < 2**31))
    if wrong.any():
        raise BadInput(path, field, values[wrong][:3].tolist(), "whole numbers")
    return values.astype(np.int64)


def texts(cells: Column) -> list[str]:
    """Return a column as str; bytes, which old Parquet files have, are taken as UTF-8."""
    return [c.decode("utf-8", "replace") if isinstance(c, bytes) else str(c) for c in cells]


def read_rows(path: str | Path, *, short_rows: bool = False) -> Iterator[list[str]]:
    """Yield the rows of a text table, each as long as the first, which is usually a header.

    Args:
        path: .csv, or anything else for tab-separated, maybe .gz. If the first row has no such
            separator, it may be another: tab, comma or semicolon.
        short_rows: a row may stop before its last cells, which are then empty.

    Raises:
        BadInput: not such a table, an empty one, rows of other lengths.
    """
    path = Path(path)
    name = path.name.lower()
    separator = "," if name.removesuffix(".gz").endswith(".csv") else "\t"
    n_cells = 0
    with open_text(path, f"a table of cells separated by {separator!r}", newline="") as file:
        lines = lines_of(file, path)
        first = next(lines, "")
        if separator not in first:
            separator = next((other for other in "\t,;" if other in first), separator)
        for row in csv.reader(itertools.chain([first], lines), delimiter=separator):
            if not row:
                continue
            n_cells = n_cells or len(row)
            if short_rows:
                row += [""] * (n_cells - len(row))
            if len(row) != n_cells:
                found = unquoted(f"{count(len(row), 'cell')} in the row of {row[0][:40]!r}")
                raise BadInput(path, "rows", found, f"{n_cells}, as in the first row")
            yield row
    if not n_cells:
        raise BadInput(path, "content", unquoted("an empty file"), "a table")


def lines_of(file: TextIO, path: str | Path) -> Iterator[str]:
    """Yield the lines of a text file, none of which may fill the memory.

    Raises:
        BadInput: a line of over 64 million characters, or a .gz that unpacks to 500 times its size.
    """
    is_packed = Path(path).suffix.lower() == ".gz"
    left = _MAX_LINE + _MAX_RATIO * Path(path).stat().st_size
    while line := file.readline(_MAX_LINE + 1):
        left -= len(line)
        if len(line) > _MAX_LINE or (is_packed and left < 0):
            found = unquoted("a line or a text without end")
            raise BadInput(path, "content", found, f"lines of at most {_MAX_LINE:,} characters")
        yield line


@contextlib.contextmanager
def open_text(path: str | Path, expected: str, newline: str | None = None) -> Iterator[TextIO]:
    """Open a text file, UTF-8 with or without a byte order mark, maybe .gz.

    Args:
        path: the file.
        expected: its content, for messages.
        newline: as of the built-in ``open``.

    Raises:
        BadInput: the file is missing, or the body finds that it is no text, .gz or table.
    """
    path = check_file(path)
    with path.open("rb") as raw:
        if raw.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE:
            fix = "an .h5ad needs this ending; a matrix of 10x is read with its Space Ranger folder"
            raise BadInput(path, "content", unquoted("an HDF5 file"), expected, fix)
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline=newline) as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise BadInput(path, "content", unquoted("a damaged .gz"), expected) from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise BadInput(path, "content", unquoted(reason_of(error)), expected) from None
