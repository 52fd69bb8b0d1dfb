"""SpatialData .zarr: a table, the shapes that it annotates, and an image of the same coordinates.

Read through the library spatialdata, an extra. With A the affine map of an element to a coordinate
system that both share, a spot's pixel is A_image⁻¹ A_shapes of its shape's centroid.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stflow_graph.errors import BadInput, MissingDependency, as_bad_input, unquoted
from stflow_graph.images.reader import ImageReader
from stflow_graph.io.atomic import check_file, folder_sha256, read_json
from stflow_graph.io.coords import check_coords
from stflow_graph.io.expression import expression_of
from stflow_graph.platforms.source import SlideData, SlideSource, SourceOptions, Sources
from stflow_graph.platforms.tables import SpotTable

if TYPE_CHECKING:
    import anndata
    import spatialdata

_GROUP_MARKS = (".zgroup", "zarr.json")
_METADATA = (".zarray", ".zmetadata", "zarr.json")
_XY = ("x", "y")


def spatialdata_slides(folder: Path, options: SourceOptions) -> Sources:
    """Return the slide of a SpatialData store: a Zarr group with tables and shapes.

    Its units are not micrometres in general, so ``options.um_per_px`` is required.
    ``options.bin_um`` chooses among tables of Visium HD, as spatialdata-io names them.
    """
    is_group = any((folder / mark).is_file() for mark in _GROUP_MARKS)
    if not (is_group and (folder / "tables").is_dir() and (folder / "shapes").is_dir()):
        return {}
    name = options.name or folder.resolve().name.removesuffix(".zarr")
    return {name: partial(_source, folder, name, options.bin_um)}


def _source(folder: Path, name: str, bin_um: int | None) -> SlideSource:
    return SlideSource(
        name,
        {"counts": folder},
        partial(_read, folder, bin_um),
        open_image=partial(_open_image, folder, bin_um),
        hash_input=folder_sha256,
        platform="SpatialData",
        settings={} if bin_um is None else {"bin_um": bin_um},
    )


def _refuse_pickles(folder: Path) -> None:
    """Refuse arrays that Zarr would unpickle, which runs code, and what is not a file."""
    for file in sorted(folder.rglob("*")):
        if not file.is_dir():
            check_file(file)  # Zarr would wait for a FIFO
        if file.name in _METADATA and _names_pickle(read_json(file)):
            raise BadInput(file, "codec", "pickle", "a codec that runs no code")


def _names_pickle(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_names_pickle, value.values()))
    if isinstance(value, list):
        return any(map(_names_pickle, value))
    return isinstance(value, str) and "pickle" in value.lower()


@contextlib.contextmanager
def _library(folder: Path) -> Iterator[Any]:
    """Yield the library; its errors on a broken store become BadInput."""
    _refuse_pickles(folder)
    # the library and its imports warn of deprecations of their own, in half a dozen modules
    with (
        as_bad_input(folder, "content", "a store that spatialdata can read"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            import spatialdata
        except ImportError:
            raise MissingDependency(
                f"{folder}: a SpatialData store needs the package spatialdata. "
                "Fix: pip install 'stflow-graph[spatialdata]'"
            ) from None
        yield spatialdata


def _read(folder: Path, bin_um: int | None) -> SlideData:
    with _library(folder) as library:
        data = library.read_zarr(folder)
        table = _table(data, folder, bin_um)
        region, instances = _annotated(table, folder)
        _, to_pixels = _image(data, region, folder)
        coords = _centroids(data.shapes[region], instances, folder) @ to_pixels[:2, :2].T
        coords = check_coords(coords + to_pixels[:2, 2], folder, region, table.n_obs)
        table.obsm.pop("spatial", None)  # the shapes give the places
        expression = expression_of(table, folder)
    return SlideData(SpotTable(expression.barcodes, coords), expression, None)


def _table(data: spatialdata.SpatialData, folder: Path, bin_um: int | None) -> anndata.AnnData:
    names = list(data.tables)
    chosen = names if bin_um is None else [n for n in names if n.endswith(f"{bin_um:03d}um")]
    if len(chosen) != 1:
        fix = "choose one of Visium HD with --bin-um" if len(names) > 1 else None
        raise BadInput(folder, "tables", names, "one table", fix)
    return data.tables[chosen[0]]


def _annotated(table: anndata.AnnData, folder: Path) -> tuple[str, np.ndarray]:
    """Return the one element that a table annotates, and the shape of each row."""
    attributes = table.uns.get("spatialdata_attrs", {})
    regions, key = attributes.get("region"), attributes.get("instance_key")
    regions = [regions] if isinstance(regions, str) else list(regions or [])
    if len(regions) != 1 or key not in table.obs:
        raise BadInput(folder, "table's region", regions, "one element that the table annotates")
    return regions[0], table.obs[key].to_numpy()


def _centroids(shapes: Any, instances: np.ndarray, folder: Path) -> np.ndarray:
    rows = shapes.index.get_indexer(instances)
    absent = instances[rows < 0]
    if len(absent):
        found = unquoted(
            f"{len(absent)} of {len(instances)} rows without one, {absent[:3].tolist()}"
        )
        raise BadInput(folder, "shapes", found, "a shape for every row of the table")
    centres = shapes.geometry.centroid
    return np.column_stack([centres.x, centres.y])[rows]


def _image(data: spatialdata.SpatialData, region: str, folder: Path) -> tuple[str, np.ndarray]:
    """Return the largest colour image of the shapes' coordinates, and the map to its pixels."""
    from spatialdata.transformations import get_transformation

    if region not in data.shapes:
        raise BadInput(
            folder, "shapes", list(data.shapes), f"{region!r}, which the table annotates"
        )
    systems = get_transformation(data.shapes[region], get_all=True)
    best: tuple[int, str, np.ndarray] | None = None
    for name, element in data.images.items():
        shared = {
            system: matrix
            for system, matrix in get_transformation(element, get_all=True).items()
            if system in systems
        }
        size = _full(element).sizes
        n = size["y"] * size["x"]
        if not shared or size["c"] not in (3, 4) or (best is not None and n <= best[0]):
            continue
        system = next(iter(shared))
        shapes, image = (
            transformation.to_affine_matrix(input_axes=_XY, output_axes=_XY)
            for transformation in (systems[system], shared[system])
        )
        best = n, name, np.linalg.inv(image) @ shapes
    if best is None:
        expected = f"an RGB image in the coordinates of {region!r}"
        raise BadInput(folder, "images", list(data.images), expected)
    return best[1:]


def _full(element: Any) -> Any:
    """Return an image at full resolution: of a pyramid, its first level."""
    return element if hasattr(element, "sizes") and "c" in element.dims else element["scale0"].image


@contextlib.contextmanager
def _open_image(folder: Path, bin_um: int | None) -> Iterator[ImageReader]:
    with _library(folder) as library:
        data = library.read_zarr(folder)
        region, _ = _annotated(_table(data, folder, bin_um), folder)
        name, _ = _image(data, region, folder)
        image = _full(data.images[name])
        if image.dtype != np.uint8:
            raise BadInput(folder, f"images/{name}", str(image.dtype), "8-bit RGB")
    yield _StoredImage(folder / "images" / name, image.transpose("y", "x", "c"))


class _StoredImage(ImageReader):
    """An image whose chunks are read when a window needs them; transparency is left out."""

    def __init__(self, path: Path, pixels: Any) -> None:
        super().__init__(path, [(pixels.sizes["x"], pixels.sizes["y"])])
        self._pixels = pixels

    def _read(self, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        return np.asarray(self._pixels[y0:y1, x0:x1, :3].data)
