"""Reading the text tables of a raw kit: its manifest, spot tables and counts."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from stflow_graph.errors import BadInput, plain
from stflow_graph.io.atomic import check_file, check_name
from stflow_graph.io.expression import Expression, read_expression
from stflow_graph.io.hdf5 import check_coords, check_unique

_BARCODE = ("barcode", "barcodes", "spot", "spot_id", "")
# pairs are (x, y), so (column, row): Visium names rows first
_PIXELS = (("pixel_x", "pixel_y"), ("pxl_col_in_fullres", "pxl_row_in_fullres"))
_ARRAY = ("array_col", "array_row")
_XY = ("x", "y")
_SELECTED = ("selected", "in_tissue")


@dataclasses.dataclass(frozen=True)
class SpotTable:
    """Where the spots of one slide are.

    Attributes:
        barcodes: N names.
        coords: ``[N, 2]`` float64 centres in level-0 pixels (x, y).
        selected: ``[N]`` bool, None if the table does not say.
        array: ``[N, 2]`` int64 places on the array (column, row), None if the table does not say.
    """

    barcodes: list[str]
    coords: np.ndarray
    selected: np.ndarray | None = None
    array: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class KitSlide:
    """One row of a kit's manifest.

    Attributes:
        id: the slide's name.
        image: the H&E image.
        counts: table of spots x genes, or .h5ad.
        spots: spot table; None where an .h5ad of counts has the coordinates.
        um_per_px: micrometres per level-0 pixel.
        patient: the patient's name, "" if unknown.
    """

    id: str
    image: Path
    counts: Path
    spots: Path | None
    um_per_px: float
    patient: str = ""


def read_manifest(path: str | Path) -> list[KitSlide]:
    """Read a kit's manifest: columns ``id, image, counts, spots, um_per_px`` and maybe ``patient``.

    Paths are relative to the manifest's folder. Other columns are ignored, and a row may stop
    before its last cells. ``spots`` may be empty where ``counts`` is an .h5ad.

    Raises:
        BadInput: columns missing, no slides, an id twice or unsafe as a file name, a path that
            leaves the folder, µm/px not a positive number, patients of some slides only.
    """
    path = Path(path)
    header, rows = _table(path, short_rows=True)
    missing = [c for c in ("id", "image", "counts", "spots", "um_per_px") if c not in header]
    if missing:
        raise BadInput(path, "columns", header, "also " + ", ".join(missing))
    slides = [_kit_slide(path, dict(zip(header, row, strict=True))) for row in rows]
    if not slides:
        raise BadInput(path, "rows", plain("0 slides"), "at least one")
    # outputs are files named after slides, and some file systems ignore case
    check_unique([slide.id.casefold() for slide in slides], path, "id")
    unknown = [slide.id for slide in slides if not slide.patient]
    if 0 < len(unknown) < len(slides):
        found = plain(f"none for {unknown[:3]}")
        raise BadInput(path, "patient", found, "a patient for every slide or for none")
    return slides


def _kit_slide(path: Path, row: dict[str, str]) -> KitSlide:
    name = check_name(row["id"], path, "id")
    try:
        um_per_px = float(row["um_per_px"])
    except ValueError:
        um_per_px = np.nan
    if not (np.isfinite(um_per_px) and um_per_px > 0):
        raise BadInput(path, f"um_per_px of {name}", row["um_per_px"], "a positive number")
    spots = row["spots"]
    if not spots and not row["counts"].endswith(".h5ad"):
        raise BadInput(path, f"spots of {name}", spots, "a spot table, as counts is no .h5ad")
    return KitSlide(
        name,
        _inside(path, name, "image", row["image"]),
        _inside(path, name, "counts", row["counts"]),
        _inside(path, name, "spots", spots) if spots else None,
        um_per_px,
        row.get("patient", "").strip(),
    )


def _inside(manifest: Path, name: str, column: str, text: str) -> Path:
    folder = manifest.parent
    target = folder / text
    field = f"{column} of {name}"
    try:
        inside = target.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # NUL bytes, too long, a loop of links
        inside = False
    if not text or not inside:
        raise BadInput(manifest, field, text, "a path inside the kit's folder")
    return target


def read_spots(path: str | Path) -> SpotTable:
    """Read a spot table (.csv or tab-separated, maybe .gz), in one of two layouts.

    Legacy ST: ``x, y, pixel_x, pixel_y`` and maybe ``selected``; a spot's barcode is ``XxY``.
    Otherwise ``barcode`` and pixels as ``pixel_x, pixel_y``, as Visium's ``pxl_col_in_fullres,
    pxl_row_in_fullres`` or as ``x, y``; maybe ``array_col, array_row`` and ``in_tissue``.

    Raises:
        BadInput: columns missing, zero spots, a barcode twice, numbers that are not.
    """
    path = Path(path)
    columns = _columns(*_table(path))
    header = list(columns)
    if not any(columns.values()):
        raise BadInput(path, "rows", plain("0 spots"), "at least one spot")
    barcode = next((columns[name] for name in _BARCODE if name in columns), None)
    pixels = next((pair for pair in _PIXELS if columns.keys() >= set(pair)), None)
    array = _ARRAY if columns.keys() >= set(_ARRAY) else None
    if columns.keys() >= set(_XY):
        if pixels is not None:
            array = array or _XY
        elif barcode is not None:
            pixels = _XY
    if pixels is None or (barcode is None and array is None):
        expected = "barcode (or array places x, y) and pixels pixel_x, pixel_y"
        raise BadInput(path, "columns", header, expected)
    places = None if array is None else _integers(columns, array, path)
    if barcode is None:
        assert places is not None
        barcode = [f"{x}x{y}" for x, y in places]
    check_unique(barcode, path, "barcodes")
    coords = np.stack([_numbers(columns[name], path, name) for name in pixels], axis=1)
    coords = check_coords(coords, path, ", ".join(pixels), len(barcode))
    return SpotTable(barcode, coords, _selected(columns, path), places)


def _selected(columns: dict[str, list[str]], path: Path) -> np.ndarray | None:
    name = next((name for name in _SELECTED if name in columns), None)
    if name is None:
        return None
    values = _numbers(columns[name], path, name)
    wrong = ~np.isin(values, (0, 1))
    if wrong.any():
        raise BadInput(path, name, values[wrong][:3].tolist(), "0 or 1")
    return values == 1


def _integers(columns: dict[str, list[str]], names: Sequence[str], path: Path) -> np.ndarray:
    values = np.stack([_numbers(columns[name], path, name) for name in names], axis=1)
    wrong = ~((values == np.rint(values)) & (np.abs(values) < 2**31)).all(axis=1)
    if wrong.any():
        raise BadInput(path, ", ".join(names), values[wrong][0].tolist(), "whole array places")
    return values.astype(np.int64)


def read_counts(path: str | Path) -> Expression:
    """Read raw counts from an .h5ad or a table of spots x genes (.csv, tab-separated, maybe .gz).

    A table's first row names the genes and its first column the spots. It is read row by row, so
    memory follows the counts that are not zero. Genes keep their names; a gene that stands twice
    is refused, as nothing says whether its counts should be summed.

    Raises:
        BadInput: not such a file, a barcode or gene twice, no spots or genes, values that are
            not whole numbers >= 0.
    """
    path = Path(path)
    if path.suffix == ".h5ad":
        return read_expression(path)
    rows = _rows(path)
    genes = next(rows)[1:]
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
        found = plain(f"{len(barcodes)} spots, {len(genes)} genes in this table")
        raise BadInput(path, "rows", found, "spots in rows, genes in columns")
    check_unique(barcodes, path, "barcodes")
    starts = np.concatenate([[0], np.cumsum([len(row) for row in columns])])
    counts = sp.csr_matrix(
        (np.concatenate(values), np.concatenate(columns), starts), (len(barcodes), len(genes))
    )
    total = np.asarray(counts.sum(axis=1), dtype=np.float64).reshape(-1)
    return Expression(counts, barcodes, genes, total, coords=None, um_per_px=None)


def _row_of_counts(cells: list[str], genes: Sequence[str], barcode: str, path: Path) -> np.ndarray:
    row = _numbers(cells, path, f"counts of spot {barcode!r}")
    wrong = np.flatnonzero(~(np.isfinite(row) & (row >= 0) & (row == np.rint(row))))
    if len(wrong):
        field = f"counts of spot {barcode!r}, gene {genes[wrong[0]]!r}"
        raise BadInput(path, field, cells[wrong[0]], "a raw count: a whole number >= 0")
    return row


def _numbers(cells: Sequence[str], path: Path, field: str) -> np.ndarray:
    try:
        return np.array(cells, dtype=np.float64)
    except ValueError as error:
        raise BadInput(path, field, plain(str(error)), "numbers") from None


def read_columns(path: str | Path) -> dict[str, list[str]]:
    """Read a text table (.csv or tab-separated, maybe .gz) as its columns, cells without blanks.

    A row may stop before its last cells, which are then "".

    Raises:
        BadInput: not such a table, or a column twice.
    """
    columns = _columns(*_table(Path(path), short_rows=True))
    return {name: [cell.strip() for cell in cells] for name, cells in columns.items()}


def _columns(header: list[str], rows: list[list[str]]) -> dict[str, list[str]]:
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def _table(path: Path, *, short_rows: bool = False) -> tuple[list[str], list[list[str]]]:
    rows = _rows(path, short_rows=short_rows)
    header = [name.strip() for name in next(rows)]
    check_unique([name for name in header if name], path, "columns")
    return header, list(rows)


def _rows(path: Path, *, short_rows: bool = False) -> Iterator[list[str]]:
    """Give the header and then the rows of a text table, each as long as the header."""
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
                    cells = plain(f"{len(row)} cells in the row of {row[0][:40]!r}")
                    raise BadInput(path, "rows", cells, f"{len(header)}, as in the first row")
                yield row
            if header is None:
                raise BadInput(path, "content", plain("an empty file"), "a table")
    except (csv.Error, UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        kind = f"a table of cells separated by {separator!r}"
        raise BadInput(path, "content", f"{type(error).__name__}: {error}", kind) from None
