"""Tables written in blocks of rows: CSV, maybe .gz, and Parquet."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd

from stflow_graph.errors import MissingDependency
from stflow_graph.io.atomic import atomic_file
from stflow_graph.io.cells import safe_cell
from stflow_graph.io.columns import as_number

if TYPE_CHECKING:
    import pyarrow.parquet as pq

TableFormat = Literal["csv", "parquet"]
TABLE_FORMATS: tuple[TableFormat, ...] = ("csv", "parquet")
Append = Callable[[pd.DataFrame], None]


@contextlib.contextmanager
def table_file(path: str | Path) -> Iterator[Append]:
    """Write a table atomically; yields a function that appends rows with the same columns.

    Text that a spreadsheet would take for a formula is escaped in CSV. The same rows in the same
    blocks give the same bytes.

    Args:
        path: ends in ``.parquet``, ``.gz`` (of CSV), or anything else for CSV.

    Raises:
        MissingDependency: Parquet needs the package pyarrow.
        StorageFailed: a write failed; a file that was at the path stays.
    """
    path = Path(path)
    writing = _parquet_file if path.name.lower().endswith(".parquet") else _csv_file
    with writing(path) as append:
        yield append


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as :func:`table_file` does."""
    with table_file(path) as append:
        append(table)


def missing_package(path: str | Path, package: str, extra: str) -> MissingDependency:
    """Return the error for an output that needs a package of an extra."""
    return MissingDependency(
        f"{path}: needs the package {package}. Fix: pip install 'stflow-graph[{extra}]'"
    )


@contextlib.contextmanager
def _csv_file(path: Path) -> Iterator[Append]:
    zipped = path.name.lower().endswith(".gz")
    # no time stamp and no name inside, so that the same data give the same bytes
    with (
        atomic_file(path) as output,
        gzip.GzipFile("", "wb", 6, output, mtime=0) if zipped else output as packed,
    ):
        header = True

        def append(table: pd.DataFrame) -> None:
            nonlocal header
            options = {"index": False, "float_format": "%.7g", "lineterminator": "\n"}
            packed.write(_escaped(table).to_csv(header=header, **options).encode())
            output.check()
            header = False

        yield append


def _escaped(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose names and cells of text are no formulas."""
    texts = table.select_dtypes(exclude=["number", "bool"])
    escaped = {name: column.map(_safe_text) for name, column in texts.items()}
    return table.assign(**escaped).rename(columns=safe_cell)


def _safe_text(cell: object) -> object:
    # a negative number is no formula
    return safe_cell(cell) if isinstance(cell, str) and as_number(cell) is None else cell


@contextlib.contextmanager
def _parquet_file(path: Path) -> Iterator[Append]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise missing_package(path, "pyarrow", "parquet") from None
    writer: pq.ParquetWriter | None = None
    with atomic_file(path) as output:

        def append(table: pd.DataFrame) -> None:
            nonlocal writer
            rows = pa.Table.from_pandas(table, preserve_index=False)
            writer = writer or pq.ParquetWriter(output, rows.schema)
            writer.write_table(rows)
            output.check()

        try:
            yield append
        finally:
            if writer is not None:
                writer.close()
