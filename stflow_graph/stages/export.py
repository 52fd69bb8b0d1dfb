"""The export stage: predictions as CSV and Parquet tables of spots x genes, or SpatialData."""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from stflow_graph.errors import BadConfig, BadInput, MissingDependency, unquoted
from stflow_graph.io.atomic import atomic_file
from stflow_graph.io.cells import safe_cell
from stflow_graph.io.coords import check_coords
from stflow_graph.io.folders import FolderKind, atomic_folder
from stflow_graph.io.hdf5 import check_unique, dataset, open_h5, read_strings
from stflow_graph.io.outputs import check_output_file, check_output_folder
from stflow_graph.io.predictions import chunk_rows, read_provenance

_BLOCK_BYTES = 2**25
_SPOT_COLUMNS = ["barcode", "x", "y"]
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

    file: h5py.File
    slide: str
    barcodes: list[str]
    coords: np.ndarray
    genes: list[str]
    columns: np.ndarray
    values: h5py.Dataset

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield rows and their values ``[n, G]``, whole chunks of the file at a time."""
        n_genes = self.values.shape[1]
        chunk = chunk_rows(n_genes)
        step = chunk * max(1, _BLOCK_BYTES // (4 * n_genes * chunk))
        for start in range(0, len(self.barcodes), step):
            rows = slice(start, min(start + step, len(self.barcodes)))
            yield rows, self.values[rows][:, self.columns]

    def tables(self) -> Iterator[pd.DataFrame]:
        """Yield blocks of rows with barcode, x, y and the genes' values."""
        if clash := set(_SPOT_COLUMNS) & set(self.genes):
            expected = f"no gene of the name of a column ({', '.join(_SPOT_COLUMNS)})"
            raise BadInput(self.file.filename, "var_names", sorted(clash), expected)
        for rows, values in self.blocks():
            spots = pd.DataFrame(self.coords[rows], columns=_SPOT_COLUMNS[1:])
            spots.insert(0, "barcode", self.barcodes[rows])
            yield pd.concat([spots, pd.DataFrame(values, columns=self.genes)], axis=1)


def export(
    prediction: str | Path,
    to: str | Path,
    *,
    genes: Sequence[str] = (),
    layer: str = "mean",
    overwrite: bool = False,
) -> Exported:
    """Write a prediction as a table of spots x genes, with barcode, x and y in level-0 pixels.

    CSV and Parquet are written in blocks of rows, whatever the size of the slide; SpatialData
    needs the exported values in memory.

    Args:
        prediction: a file that ``sample`` wrote.
        to: the output; its ending, ``.csv``, ``.csv.gz``, ``.parquet`` or ``.zarr`` (SpatialData),
            sets the format.
        genes: genes to export, in this order; none means all.
        layer: ``"mean"``, ``"std"`` or ``"sample_<i>"``.
        overwrite: replace an existing output.

    Raises:
        BadInput: no such prediction, layer or gene, or ``to`` exists.
        BadConfig: another ending.
        MissingDependency: the package for the format is not installed.
    """
    to = Path(to)
    write = _writer(to)
    (check_output_folder if write is _write_spatialdata else check_output_file)(to)
    if to.exists() and not overwrite:
        raise BadInput(to, "output", unquoted("a file there"), "a new path", "add --overwrite")
    provenance = read_provenance(prediction)
    with open_h5(prediction) as file:
        source = _open(file, str(provenance["slide"]), genes, layer)
        write(source, to)
        return Exported(to, len(source.barcodes), len(source.genes))


def _writer(to: Path) -> Callable[[_Source, Path], None]:
    name = to.name.lower()
    for ending, write in _WRITERS.items():
        if name.endswith(ending):
            return write
    raise BadConfig(f"{to}: expected a name that ends in {', '.join(_WRITERS)}")


def _open(file: h5py.File, slide: str, chosen: Sequence[str], layer: str) -> _Source:
    barcodes, genes = (_index(file, name) for name in ("obs", "var"))
    check_unique(chosen, file.filename, "genes to export")
    column = {gene: i for i, gene in enumerate(genes)}
    absent = [gene for gene in chosen if gene not in column]
    if absent:
        found = unquoted(f"{len(absent)} of {len(chosen)} genes absent, such as {absent[:3]}")
        raise BadInput(file.filename, "var_names", found, "the genes of the prediction")
    key = "X" if layer == "mean" else f"layers/{layer}"
    values = file.get(key)
    if not isinstance(values, h5py.Dataset) or values.shape != (len(barcodes), len(genes)):
        layers = ["mean", *file.get("layers", {})]
        raise BadInput(file.filename, "layer", layer, f"one of {', '.join(layers)}")
    coords = dataset(file, ["obsm/spatial"])[()]
    return _Source(
        file,
        slide,
        barcodes,
        check_coords(coords, file.filename, "obsm['spatial']", len(barcodes)),
        list(chosen) or genes,
        np.array([column[gene] for gene in chosen or genes]),
        values,
    )


def _index(file: h5py.File, name: str) -> list[str]:
    """Return the names of spots or genes, the index of a stored data frame."""
    return read_strings(dataset(file, [f"{name}/{file[name].attrs.get('_index', '_index')}"]))


def _write_csv(source: _Source, to: Path) -> None:
    zipped = to.name.lower().endswith(".gz")
    # no time stamp and no name inside, so that the same data give the same bytes
    with (
        atomic_file(to) as output,
        gzip.GzipFile("", "wb", 6, output, mtime=0) if zipped else output as packed,
    ):
        for i, table in enumerate(source.tables()):
            table = table.rename(columns=safe_cell).assign(barcode=table["barcode"].map(safe_cell))
            options = {"index": False, "float_format": "%.7g", "lineterminator": "\n"}
            packed.write(table.to_csv(header=i == 0, **options).encode())
            output.check()


def _write_parquet(source: _Source, to: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise _missing(to, "pyarrow", "parquet") from None
    writer: pq.ParquetWriter | None = None
    with atomic_file(to) as output:
        try:
            for frame in source.tables():
                table = pa.Table.from_pandas(frame, preserve_index=False)
                writer = writer or pq.ParquetWriter(output, table.schema)
                writer.write_table(table)
                output.check()
        finally:
            if writer is not None:
                writer.close()


def _write_spatialdata(source: _Source, to: Path) -> None:
    try:
        import spatialdata
    except ImportError:
        raise _missing(to, "spatialdata", "spatialdata") from None
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
    library = source.file.get(f"uns/spatial/{source.slide}")
    if not isinstance(library, h5py.Group):
        return 1.0, None, 1.0
    scales = library["scalefactors"]
    picture = dataset(source.file, [f"{library.name}/images/hires"])[()]
    return (
        float(scales["spot_diameter_fullres"][()]),
        picture,
        float(scales["tissue_hires_scalef"][()]),
    )


def _missing(to: Path, package: str, extra: str) -> MissingDependency:
    return MissingDependency(
        f"{to}: needs the package {package}. Fix: pip install 'stflow-graph[{extra}]'"
    )


_WRITERS: dict[str, Callable[[_Source, Path], None]] = {
    ".csv": _write_csv,
    ".csv.gz": _write_csv,
    ".parquet": _write_parquet,
    ".zarr": _write_spatialdata,
}
