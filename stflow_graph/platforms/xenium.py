"""Xenium's output bundle: its cells, their counts, and their places in an aligned H&E image.

Xenium Explorer's alignment matrix M maps pixels u of the H&E image to pixels of the morphology
image, which are ``pixel_size`` µm wide. Cells are at x in µm, so u = M⁻¹ (x / pixel_size), and the
H&E image has pixel_size √|det M| µm/px. (10x Genomics' page "How can I convert coordinates between
H&E image and Xenium data?"; spatialdata-io applies the matrix in the same direction.)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from stflow_graph.errors import BadInput, one_line, unquoted
from stflow_graph.io.atomic import read_object, required_file
from stflow_graph.io.columns import numbers, read_columns, read_rows, texts
from stflow_graph.io.coords import check_coords
from stflow_graph.io.hdf5 import check_unique
from stflow_graph.platforms.array_scale import positive
from stflow_graph.platforms.source import SlideData, SlideSource, SourceOptions, Sources
from stflow_graph.platforms.tables import SpotTable
from stflow_graph.platforms.tenx import read_tenx, tenx_files

_CELLS = ("cells.parquet", "cells.csv.gz", "cells.csv")
_COUNTS = ("cell_feature_matrix.h5", "cell_feature_matrix")
_SPECIFICATION = "experiment.xenium"
_ALIGNMENT = "*he_imagealignment.csv"
_IMAGE = "*he_image.ome.tif"
# of the morphology image, without experiment.xenium
_PIXEL_UM = 0.2125
_MAX_SHEAR = 0.05


def xenium_slides(folder: Path, options: SourceOptions) -> Sources:
    """Return the slide of a bundle with cells and their counts."""
    if not all(any((folder / name).exists() for name in names) for names in (_CELLS, _COUNTS)):
        return {}
    name = options.name or folder.resolve().name
    return {name: partial(_source, folder, name, options)}


def _source(folder: Path, name: str, options: SourceOptions) -> SlideSource:
    counts = required_file(folder, "counts", _COUNTS)
    alignment = options.alignment or _only(folder, _ALIGNMENT)
    if alignment is None:
        fix = (
            "give --alignment, the matrix that Xenium Explorer exports (the identity for an image "
            "in the pixels of the morphology image)"
        )
        raise BadInput(folder, "alignment", unquoted("no file"), _ALIGNMENT, fix)
    cells = required_file(folder, "cells", _CELLS)
    inputs = {**tenx_files(counts), "spots": cells, "alignment": alignment}
    if image := _only(folder, _IMAGE):
        inputs["image"] = image
    platform, specification = "Xenium", folder / _SPECIFICATION
    if specification.is_file():
        inputs["specification"] = specification
        release = one_line(str(read_object(specification).get("analysis_sw_version", "")))
        platform = f"Xenium, {release.split('-')[1]}" if release.count("-") else platform
    return SlideSource(
        name,
        inputs,
        partial(_read, counts, inputs, options.gene_names),
        platform=platform,
        unit="cells",
        settings={"gene_names": options.gene_names},
    )


def _only(folder: Path, pattern: str) -> Path | None:
    files = list(folder.glob(pattern))
    return files[0] if len(files) == 1 else None


def _read(counts: Path, inputs: Mapping[str, Path], gene_names: str) -> SlideData:
    pixel_um = _PIXEL_UM
    if "specification" in inputs:
        file = inputs["specification"]
        pixel_um = positive(read_object(file).get("pixel_size", _PIXEL_UM), file, "pixel_size")
    barcodes, places_um = _cells(inputs["spots"])
    matrix = read_alignment(inputs["alignment"])
    inverse = np.linalg.inv(matrix)
    coords = places_um / pixel_um @ inverse[:2, :2].T + inverse[:2, 2]
    scale = pixel_um * np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    return SlideData(SpotTable(barcodes, coords), read_tenx(counts, gene_names), float(scale))


def _cells(path: Path) -> tuple[list[str], np.ndarray]:
    """Return the cells' ids and their centres in µm."""
    axes = ("x_centroid", "y_centroid")
    columns = read_columns(path, ("cell_id", *axes))
    barcodes = texts(columns["cell_id"])
    if not barcodes:
        raise BadInput(path, "rows", unquoted("0 cells"), "at least one cell")
    check_unique(barcodes, path, "cell_id")
    places = np.stack([numbers(columns[axis], path, axis) for axis in axes], axis=1)
    return barcodes, check_coords(places, path, ", ".join(axes), len(barcodes))


def read_alignment(path: str | Path) -> np.ndarray:
    """Read an alignment matrix, 3 x 3 numbers in a .csv without header, float64.

    Raises:
        BadInput: another shape, a last row that is not 0, 0, 1, or a map that is not a similarity
            (turn, mirror, scale, shift) within 5%, for which one µm/px does not exist.
    """
    rows = list(read_rows(path))
    cells = [numbers(row, path, f"row {i + 1}") for i, row in enumerate(rows)]
    if len(cells) != 3 or any(len(row) != 3 for row in cells):
        found = unquoted(f"{len(cells)} x {len(cells[0])} numbers")
        raise BadInput(path, "shape", found, "3 x 3 numbers")
    matrix = np.stack(cells)
    if not np.isfinite(matrix).all() or not np.allclose(matrix[2], (0, 0, 1)):
        raise BadInput(path, "last row", matrix[2].tolist(), "0, 0, 1, all finite")
    largest, smallest = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    if not smallest > (1 - _MAX_SHEAR) * largest:
        found = unquoted(f"a map that scales by {smallest:.4g} to {largest:.4g}")
        raise BadInput(path, "matrix", found, "one scale in all directions")
    return matrix
