"""Reading the tables of a raw slide: the places of its spots and their counts."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from stflow_graph.errors import BadInput, count, unquoted
from stflow_graph.io.columns import (
    Column,
    numbers,
    read_columns,
    read_rows,
    texts,
    whole_numbers,
)
from stflow_graph.io.coords import check_coords
from stflow_graph.io.expression import Expression, numbered, read_expression, totals
from stflow_graph.io.hdf5 import check_unique

# names in lower case: tables spell them as they like
_BARCODE = ("barcode", "barcodes", "spot", "spot_id", "spot_barcode", "cell_id", "")
# pairs are (x, y), so (column, row): Visium names rows first
_PIXELS = (
    ("pixel_x", "pixel_y"),
    ("pxl_col_in_fullres", "pxl_row_in_fullres"),
    ("xaxis", "yaxis"),
    ("x_pixel", "y_pixel"),
    ("pxl_col", "pxl_row"),
    ("imagecol", "imagerow"),  # Seurat, stlearn
)
_ARRAYS = (("array_col", "array_row"), ("col", "row"))
_XY = ("x", "y")
_USUAL = (*_PIXELS[:3], _XY)
_SELECTED = ("selected", "in_tissue")
# Space Ranger 1's tissue_positions_list.csv names no columns
_POSITIONS = (
    *("barcode", "in_tissue", "array_row", "array_col"),
    *("pxl_row_in_fullres", "pxl_col_in_fullres"),
)


logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SpotTable:
    """The places of a slide's spots.

    Attributes:
        barcodes: N names.
        coords: ``[N, 2]`` float64 centres in level-0 pixels (x, y).
        selected: ``[N]`` bool, None without such a column.
        array: ``[N, 2]`` int64 places on the array (column, row), None without such columns.
    """

    barcodes: list[str]
    coords: np.ndarray
    selected: np.ndarray | None = None
    array: np.ndarray | None = None


def read_spots(path: str | Path) -> SpotTable:
    """Read a spot table (.csv, tab-separated, maybe .gz, or .parquet), in one of two layouts.

    Legacy ST: ``x, y, pixel_x, pixel_y`` and maybe ``selected``; a spot's barcode is ``XxY``.
    Otherwise ``barcode`` and pixels as ``pixel_x, pixel_y``, as Visium's ``pxl_col_in_fullres,
    pxl_row_in_fullres``, as STimage-1K4M's ``xaxis, yaxis``, as Seurat's ``imagecol, imagerow`` or
    as ``x, y``; maybe ``array_col, array_row`` and ``in_tissue``. Space Ranger's positions may lack
    the names of their columns. Upper and lower case are the same; columns taken for pixels under
    another name than these tools' usual ones are logged.

    Raises:
        BadInput: columns missing, zero spots, a barcode twice, numbers that are not.
        MissingDependency: Parquet needs the package pyarrow.
    """
    path = Path(path)
    named = read_columns(path, no_header=_POSITIONS)
    # a name in lower case wins over others of the same letters
    columns = {name.lower(): column for name, column in named.items()} | dict(named)
    barcode = next((columns[name] for name in _BARCODE if name in columns), None)
    pixels = next((pair for pair in _PIXELS if columns.keys() >= set(pair)), None)
    array = next((pair for pair in (*_ARRAYS, _XY) if columns.keys() >= set(pair)), None)
    if pixels is None and barcode is not None and columns.keys() >= set(_XY):
        pixels, array = _XY, None if array == _XY else array
    if pixels is None or (barcode is None and array is None):
        expected = "barcode (or array places x, y) and pixels pixel_x, pixel_y"
        raise BadInput(path, "columns", list(named), expected)
    if pixels not in _USUAL or not named.keys() >= set(pixels):
        spelled = [next(name for name in named if name.lower() == part) for part in pixels]
        logger.warning("%s: columns %s, %s are taken as pixels x, y", path, *spelled)
    places = None
    if array is not None:
        places = np.stack([whole_numbers(columns[n], path, n) for n in array], axis=1)
        barcode = [f"{x}x{y}" for x, y in places] if barcode is None else barcode
    assert barcode is not None
    barcodes = texts(barcode)
    if not barcodes:
        raise BadInput(path, "rows", unquoted("0 spots"), "at least one spot")
    check_unique(barcodes, path, "barcodes")
    coords = np.stack([numbers(columns[name], path, name) for name in pixels], axis=1)
    coords = check_coords(coords, path, ", ".join(pixels), len(barcodes))
    return SpotTable(barcodes, coords, _selected(columns, path), places)


def _selected(columns: dict[str, Column], path: Path) -> np.ndarray | None:
    name = next((name for name in _SELECTED if name in columns), None)
    if name is None:
        return None
    values = numbers(columns[name], path, name)
    wrong = ~np.isin(values, (0, 1))
    if wrong.any():
        raise BadInput(path, name, values[wrong][:3].tolist(), "0 or 1")
    return values == 1


def check_orientation(spots: SpotTable, counts: Expression, path: str | Path) -> None:
    """Check that a count table has spots in rows: with genes there, no barcode would fit.

    Args:
        spots: the spot table of the same slide.
        counts: as read from ``path``.
        path: the count table.

    Raises:
        BadInput: its columns are the spots.
    """
    names = set(spots.barcodes)
    if names.isdisjoint(counts.barcodes) and not names.isdisjoint(counts.genes):
        found = unquoted(f"genes, such as {counts.barcodes[:3]}; the columns are spots")
        raise BadInput(
            path, "rows", found, "spots in rows, genes in columns", "transpose the table"
        )


def read_counts(path: str | Path, *, number_duplicates: bool = False) -> Expression:
    """Read raw counts from an .h5ad or a table of spots x genes (.csv, tab-separated, maybe .gz).

    A table's first row names the genes and its first column the spots. It is read row by row, so
    memory follows the counts that are not zero. Genes keep their names; a gene that stands twice
    in a table is refused, as it is not clear whether its counts should be summed. In an .h5ad,
    which scanpy reads so from 10x's files, both are kept.

    Args:
        path: the file.
        number_duplicates: keep both of a gene that stands twice in a table, see
            ``io.expression.numbered``.

    Raises:
        BadInput: not such a file, a barcode or gene twice, no spots or genes, values that are
            not whole numbers >= 0.
    """
    path = Path(path)
    if path.suffix == ".h5ad":
        return read_expression(path, number_duplicates=True)
    rows = read_rows(path)
    genes = next(rows)[1:]
    if number_duplicates:
        genes = numbered(genes)
    check_unique(genes, path, "genes")
    barcodes: list[str] = []
    columns: list[np.ndarray] = []
    values: list[np.ndarray] = []
    for barcode, *cells in rows:
        row = _row_of_counts(cells, genes, barcode, path)
        nonzero = np.flatnonzero(row)
        barcodes.append(barcode)
        columns.append(nonzero)
        values.append(row[nonzero].astype(np.float32))
    if not barcodes or not genes:
        found = unquoted(
            f"{count(len(barcodes), 'spot')}, {count(len(genes), 'gene')} in this table"
        )
        raise BadInput(path, "rows", found, "spots in rows, genes in columns")
    check_unique(barcodes, path, "barcodes")
    starts = np.concatenate([[0], np.cumsum([len(row) for row in columns])])
    counts = sp.csr_matrix(
        (np.concatenate(values), np.concatenate(columns), starts), (len(barcodes), len(genes))
    )
    return Expression(counts, barcodes, genes, totals(counts))


def _row_of_counts(cells: list[str], genes: Sequence[str], barcode: str, path: Path) -> np.ndarray:
    row = numbers(cells, path, f"counts of spot {barcode!r}")
    wrong = np.flatnonzero(~(np.isfinite(row) & (row >= 0) & (row == np.rint(row))))
    if len(wrong):
        field = f"counts of spot {barcode!r}, gene {genes[wrong[0]]!r}"
        raise BadInput(path, field, cells[wrong[0]], "a raw count: a whole number >= 0")
    return row
