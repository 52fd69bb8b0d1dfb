"""Reading named columns of a table: text (.csv, tab-separated, maybe .gz) or Parquet."""

from __future__ import annotations

import csv
import gzip
import itertools
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stflow_graph.errors import BadInput, MissingDependency, unquoted
from stflow_graph.io.atomic import check_file
from stflow_graph.io.hdf5 import check_unique

Column = Sequence[str] | np.ndarray
_PARQUET_SIGNATURE = b"PAR1"


def read_columns(
    path: str | Path, wanted: Sequence[str] = (), *, no_header: Sequence[str] = ()
) -> dict[str, Column]:
    """Read a table's columns by name; one without rows gives no columns.

    Args:
        path: .parquet, .csv or tab-separated, maybe .gz.
        wanted: columns that must be there, others then take no memory; none named keeps all.
        no_header: names of the columns if the first row, of as many cells, has numbers in all but
            the first.

    Raises:
        BadInput: not such a table, a column missing or twice, rows of different lengths.
        MissingDependency: Parquet needs the package pyarrow.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        return _parquet_columns(path, wanted)
    rows = read_rows(path)
    header = [name.strip() for name in next(rows)]
    first: list[list[str]] = []
    if len(header) == len(no_header) and all(map(_is_number, header[1:])):
        first, header = [header], list(no_header)
    check_unique([name for name in header if name], path, "columns")
    places = {name: header.index(name) for name in _kept(header, wanted, path)}
    columns: dict[str, list[str]] = {name: [] for name in places}
    row = None
    for row in itertools.chain(first, rows):
        for name, place in places.items():
            columns[name].append(row[place])
    return {} if row is None else dict(columns)


def read_text_columns(path: str | Path) -> dict[str, list[str]]:
    """Read a text table (.csv or tab-separated, maybe .gz) as its columns, cells without blanks.

    A row may stop before its last cells, which are then "".

    Raises:
        BadInput: not such a table, or a column twice.
    """
    rows = read_rows(path, short_rows=True)
    header = [name.strip() for name in next(rows)]
    check_unique([name for name in header if name], path, "columns")
    cells = list(rows)
    return {name: [row[i].strip() for row in cells] for i, name in enumerate(header)}


def _kept(found: Sequence[str], wanted: Sequence[str], path: Path) -> Sequence[str]:
    absent = [name for name in wanted if name not in found]
    if absent:
        raise BadInput(path, "columns", list(found), "also " + ", ".join(absent))
    return wanted or found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parquet_columns(path: Path, wanted: Sequence[str]) -> dict[str, Column]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingDependency(
            f"{path}: Parquet needs the package pyarrow. Fix: pip install 'stflow-graph[parquet]'"
        ) from None
    with check_file(path).open("rb") as raw:
        head = raw.read(4)
    if head != _PARQUET_SIGNATURE:
        raise BadInput(path, "content", head, f"a Parquet file (signature {_PARQUET_SIGNATURE!r})")
    try:
        # opened here: pyarrow would take a path with "=" in a folder for a partition
        with path.open("rb") as raw, pq.ParquetFile(raw) as file:
            names = file.schema_arrow.names
            check_unique(names, path, "columns")
            table = file.read(columns=list(_kept(names, wanted, path)))
        columns = {name: table[name].to_numpy() for name in table.column_names}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno):
            raise
        text = " ".join(str(error).split())
        raise BadInput(path, "content", text, "a whole Parquet file") from None
    return columns if table.num_rows else {}


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
    """Give the rows of a text table, each as long as the first, which mostly names the columns.

    Args:
        path: .csv, or anything else for tab-separated, maybe .gz.
        short_rows: a row may stop before its last cells, which are then empty.

    Raises:
        BadInput: not such a table, an empty one, rows of other lengths.
    """
    path = Path(path)
    name = path.name.lower()
    separator = "," if name.removesuffix(".gz").endswith(".csv") else "\t"
    opened = gzip.open if name.endswith(".gz") else open
    check_file(path)
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            header: list[str] | None = None
            for row in csv.reader(file, delimiter=separator):
                if not row:
                    continue
                header = header or row
                if len(row) < len(header) and short_rows:
                    row += [""] * (len(header) - len(row))
                if len(row) != len(header):
                    cells = unquoted(f"{len(row)} cells in the row of {row[0][:40]!r}")
                    raise BadInput(path, "rows", cells, f"{len(header)}, as in the first row")
                yield row
            if header is None:
                raise BadInput(path, "content", unquoted("an empty file"), "a table")
    except (csv.Error, UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        kind = f"a table of cells separated by {separator!r}"
        raise BadInput(path, "content", f"{type(error).__name__}: {error}", kind) from None
