"""The export stage: predictions as tables, SpatialData, or files for QuPath and Loupe."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from stflow_graph.errors import BadConfig, BadInput, count, unquoted
from stflow_graph.io.atomic import atomic_file
from stflow_graph.io.coords import median_pitch
from stflow_graph.io.folders import FolderKind, atomic_folder
from stflow_graph.io.gene_names import places_of, similar_genes
from stflow_graph.io.geojson import BEGIN, END, SHAPES, FeatureWriter, Shape
from stflow_graph.io.hdf5 import check_unique, dataset, number_of
from stflow_graph.io.loupe import level_edges, level_names
from stflow_graph.io.outputs import check_output_file, check_output_folder
from stflow_graph.io.picture import spot_diameter
from stflow_graph.io.prediction_file import PredictionFile, open_prediction
from stflow_graph.io.tables import missing_package, table_file

_SPOT_COLUMNS = ["barcode", "x", "y"]
_LOUPE_BARCODE = "Barcode"
_GROUP_BYTES = 2**27
_FEATURES = 2**12  # of GeoJSON, that are in memory as text
# elements of the SpatialData stores that are written here, by kind
_ELEMENTS = {"tables": {"predictions"}, "shapes": {"spots"}, "images": {"he"}}
_ZARR = {"zarr.json", ".zgroup", ".zattrs", ".zmetadata"}


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported file, and its numbers of spots and genes."""

    path: Path
    n_spots: int
    n_genes: int


@dataclasses.dataclass(frozen=True)
class _Source:
    """An open prediction, and the genes and values to export."""

    prediction: PredictionFile
    genes: list[str]
    columns: np.ndarray
    layer: str
    shape: Shape

    @property
    def barcodes(self) -> list[str]:
        return self.prediction.barcodes

    @property
    def coords(self) -> np.ndarray:
        return self.prediction.coords

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield rows and their values ``[n, G]``, whole chunks of the file at a time."""
        for rows, values in self.prediction.blocks(self.layer):
            yield rows, values[:, self.columns]

    def tables(self) -> Iterator[pd.DataFrame]:
        """Yield blocks of rows with barcode, x, y and the genes' values."""
        self.check_names(_SPOT_COLUMNS)
        for rows, values in self.blocks():
            spots = pd.DataFrame(self.coords[rows], columns=_SPOT_COLUMNS[1:])
            spots.insert(0, "barcode", self.barcodes[rows])
            yield pd.concat([spots, pd.DataFrame(values, columns=self.genes)], axis=1)

    def check_names(self, others: Sequence[str]) -> None:
        """Check that no gene has the name of another column."""
        if clash := set(others) & set(self.genes):
            expected = f"no gene of the name of a column ({', '.join(others)})"
            raise BadInput(self.prediction.path, "var_names", sorted(clash), expected)


def export(
    prediction: str | Path,
    to: str | Path,
    *,
    genes: Sequence[str] = (),
    layer: str = "mean",
    shape: Shape = "circle",
    overwrite: bool = False,
) -> Exported:
    """Write a prediction for another tool, with positions in level-0 pixels.

    The ending of the output sets the format: ``.csv``, ``.csv.gz`` and ``.parquet`` are tables of
    spots x genes with barcode, x and y; ``.zarr`` is SpatialData; ``.geojson`` has a detection of
    QuPath for each spot; ``.loupe.csv`` has categories for Loupe Browser, each gene's values in
    five levels of equally many spots. All but SpatialData are written in blocks of rows, whatever
    the size of the slide.

    Args:
        prediction: a file that ``sample`` wrote.
        to: the output.
        genes: genes to export, in this order and in letters of any case; none means all.
        layer: ``"mean"``, ``"std"`` or ``"sample_<i>"``.
        shape: of spots in GeoJSON: circles of 0.55 of the distance between spots, or as large as
            in the prediction's picture; squares of that distance; or points.
        overwrite: replace an existing output.

    Raises:
        BadInput: no such prediction, layer or gene, or ``to`` exists.
        BadConfig: another ending or shape.
        MissingDependency: the package for the format is not installed.
    """
    to = Path(to)
    write = _writer(to)
    if shape not in SHAPES:
        raise BadConfig(f"shape {shape!r}: expected one of {', '.join(SHAPES)}")
    (check_output_folder if write is _write_spatialdata else check_output_file)(to)
    if to.exists() and not overwrite:
        raise BadInput(to, "output", unquoted("a file there"), "a new path", "add --overwrite")
    with open_prediction(prediction) as file:
        source = _select(file, genes, layer, shape)
        write(source, to)
        return Exported(to, len(source.barcodes), len(source.genes))


def _writer(to: Path) -> Callable[[_Source, Path], None]:
    name = to.name.lower()
    for ending, write in _WRITERS.items():
        if name.endswith(ending):
            return write
    raise BadConfig(f"{to}: expected a name that ends in {', '.join(_WRITERS)}")


def _select(file: PredictionFile, chosen: Sequence[str], layer: str, shape: Shape) -> _Source:
    places = places_of(chosen, file.genes) if chosen else [*range(len(file.genes))]
    absent = [gene for gene, i in zip(chosen, places, strict=False) if i is None]
    if absent:
        found = unquoted(
            f"{len(absent)} of {count(len(chosen), 'gene')} absent, such as {absent[:3]}"
        )
        expected = f"genes of the prediction; {similar_genes(absent[0], file.genes)}"
        raise BadInput(file.path, "var_names", found, expected)
    columns = np.array(places, dtype=np.int64)
    genes = [file.genes[i] for i in columns]
    check_unique(genes, file.path, "genes to export")
    file.layer(layer)  # refused before anything is written
    return _Source(file, genes, columns, layer, shape)


def _write_table(source: _Source, to: Path) -> None:
    with table_file(to) as append:
        for table in source.tables():
            append(table)


def _write_loupe(source: _Source, to: Path) -> None:
    source.check_names([_LOUPE_BARCODE])
    edges: list[np.ndarray] = []
    step = max(1, _GROUP_BYTES // (8 * len(source.barcodes)))
    for start in range(0, len(source.columns), step):
        columns = source.columns[start : start + step]
        edges += level_edges(source.prediction.columns(columns, source.layer))
    with table_file(to) as append:
        for rows, values in source.blocks():
            levels = {
                gene: level_names(values[:, i], edges[i]) for i, gene in enumerate(source.genes)
            }
            append(pd.DataFrame({_LOUPE_BARCODE: source.barcodes[rows], **levels}))


def _write_geojson(source: _Source, to: Path) -> None:
    pitch = median_pitch(source.coords) or 1.0
    size = pitch if source.shape == "square" else _drawing(source)[0]
    writer = FeatureWriter(source.genes, source.shape, size)
    with atomic_file(to) as output:
        output.write(BEGIN.encode())
        separator = ""
        for rows, values in source.blocks():
            features = writer.features(source.barcodes[rows], source.coords[rows], values)
            while some := list(itertools.islice(features, _FEATURES)):
                output.write((separator + ",\n".join(some)).encode())
                separator = ",\n"
            output.check()
        output.write(END.encode())


def _write_spatialdata(source: _Source, to: Path) -> None:
    try:
        import spatialdata
    except ImportError:
        raise missing_package(to, "spatialdata", "spatialdata") from None
    from anndata import AnnData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Scale

    values = np.concatenate([block for _, block in source.blocks()])
    obs = pd.DataFrame({"region": pd.Categorical(["spots"] * len(source.barcodes))})
    obs["spot"] = np.arange(len(obs))
    obs.index = pd.Index(source.barcodes, dtype=object)
    table = AnnData(values, obs=obs, var=pd.DataFrame(index=pd.Index(source.genes, dtype=object)))
    table.obsm["spatial"] = source.coords
    diameter, picture, scale = _drawing(source)
    parts: dict[str, dict[str, object]] = {
        "tables": {
            "predictions": TableModel.parse(
                table, region="spots", region_key="region", instance_key="spot"
            )
        },
        "shapes": {
            "spots": ShapesModel.parse(
                source.coords, geometry=0, radius=diameter / 2, index=obs["spot"].to_numpy()
            )
        },
    }
    if picture is not None:
        to_pixels = {"global": Scale([1 / scale, 1 / scale], axes=("x", "y"))}
        image = Image2DModel.parse(
            picture.transpose(2, 0, 1), dims=("c", "y", "x"), transformations=to_pixels
        )
        parts["images"] = {"he": image}
    with atomic_folder(to, _STORE) as temporary:
        store = temporary / "store"
        spatialdata.SpatialData(**parts).write(store)
        for child in store.iterdir():
            child.rename(temporary / child.name)
        store.rmdir()


def _foreign_to_store(folder: Path) -> str:
    foreign = []
    for entry in folder.iterdir():
        if entry.name not in _ZARR:
            inside = {child.name for child in entry.iterdir()} if entry.is_dir() else {""}
            others = inside - _ZARR - _ELEMENTS.get(entry.name, set())
            foreign += [f"{entry.name}/{name}".rstrip("/") for name in others]
    if foreign:
        return f"other entries, such as {sorted(foreign)[:3]}"
    return "" if (folder / "tables/predictions").is_dir() else "no table of predictions"


_STORE = FolderKind("a SpatialData store of a prediction", _foreign_to_store)


def _drawing(source: _Source) -> tuple[float, np.ndarray | None, float]:
    """Return the spots' diameter, and the prediction's picture with its scale, if any."""
    file, slide = source.prediction.file, source.prediction.slide
    library = file.get(f"uns/spatial/{slide}")
    if not isinstance(library, h5py.Group):
        return spot_diameter(source.coords), None, 1.0
    numbers = {}
    for name in ("spot_diameter_fullres", "tissue_hires_scalef"):
        data = dataset(library, [f"scalefactors/{name}"])
        number = number_of({name: data[()]}, name)
        if number is None or number <= 0:
            raise BadInput(source.prediction.path, data.name, data[()], "a positive number")
        numbers[name] = number
    picture = dataset(library, ["images/hires"])
    if picture.ndim != 3 or picture.dtype != np.uint8:
        found = f"{picture.dtype} {picture.shape}"
        raise BadInput(source.prediction.path, picture.name, found, "an image of 8 bits")
    return numbers["spot_diameter_fullres"], picture[()], numbers["tissue_hires_scalef"]


# of several endings that fit, the first
_WRITERS: dict[str, Callable[[_Source, Path], None]] = {
    ".loupe.csv": _write_loupe,
    ".csv": _write_table,
    ".csv.gz": _write_table,
    ".parquet": _write_table,
    ".zarr": _write_spatialdata,
    ".geojson": _write_geojson,
}
