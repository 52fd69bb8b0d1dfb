"""Small folders as sequencing platforms write them, on one H&E image."""

import dataclasses
import gzip
import json
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from PIL import Image

from stflow_graph.platforms.detect import find_slides
from stflow_graph.platforms.source import SlideSource, SourceOptions

SIZE = (260, 190)
UM_PER_PX = 4.0
# a symbol that stands twice, and a feature of another type
SYMBOLS = ["ACTB", "GAPDH", "CD3E", "GAPDH", "MS4A1", "IgG"]
IDS = [f"ENSG{i:03d}" for i in range(6)]
TYPES = ["Gene Expression"] * 5 + ["Antibody Capture"]
N_GENES = 5


def only_slide(folder: Path, format: str, **options) -> SlideSource:
    """Return the slide of a folder that holds one."""
    (slide,) = find_slides(folder, SourceOptions(**options), format)
    return slide


def corrupt(path: Path, change) -> None:
    """Damage a file: remove it (None), write text, update a JSON object, or edit its content.

    A function gets the rows of a .csv, named by its first column, and returns others; or it changes
    the AnnData of an .h5ad.
    """
    if change is None:
        path.unlink()
    elif isinstance(change, str):
        path.write_text(change)
    elif isinstance(change, dict):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    elif path.suffix == ".h5ad":
        adata = anndata.read_h5ad(path)
        change(adata)
        adata.write_h5ad(path)
    else:
        change(pd.read_csv(path, index_col=0)).to_csv(path)


def write_image(path: Path, seed: int = 0) -> Path:
    """Write noise of ``SIZE``."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def counts_of(n: int, seed: int = 0, g: int = len(SYMBOLS)) -> np.ndarray:
    """Return raw counts ``[n, g]``, most of them zero."""
    return np.random.default_rng(seed).poisson(0.8, (n, g)).astype(np.int32)


def _write_matrix(group: h5py.Group, counts: np.ndarray, barcodes: list[str]) -> None:
    matrix = sp.csr_matrix(counts)
    group["data"], group["indices"] = matrix.data, matrix.indices.astype(np.int64)
    group["indptr"] = matrix.indptr.astype(np.int64)
    group["shape"] = np.array(counts.shape[::-1], dtype=np.int32)
    group["barcodes"] = np.array(barcodes, dtype="S")


def write_tenx(path: Path, counts: np.ndarray, barcodes: list[str], *, types=TYPES, **attrs):
    """Write a feature-barcode matrix as Cell Ranger 3 and later lay it out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs.update({"filetype": "matrix", **attrs})
        _write_matrix(file.create_group("matrix"), counts, barcodes)
        features = file.create_group("matrix/features")
        features["id"], features["name"] = np.array(IDS, "S"), np.array(SYMBOLS, "S")
        features["feature_type"] = np.array(types, "S")
        features["genome"] = np.array(["GRCh38"] * len(IDS), "S")
        features["_all_tag_keys"] = np.array(["genome"], "S")
    return path


def write_tenx_v2(path: Path, counts: np.ndarray, barcodes: list[str]) -> Path:
    """Write a matrix as Cell Ranger 2 laid it out."""
    with h5py.File(path, "w") as file:
        group = file.create_group("GRCh38")
        _write_matrix(group, counts, barcodes)
        group["genes"], group["gene_names"] = np.array(IDS, "S"), np.array(SYMBOLS, "S")
    return path


def write_tenx_folder(folder: Path, counts: np.ndarray, barcodes: list[str]) -> Path:
    """Write a matrix as the three files of ``filtered_feature_bc_matrix/``."""
    import io

    import scipy.io

    folder.mkdir(parents=True)
    stream = io.BytesIO()
    scipy.io.mmwrite(stream, sp.coo_matrix(counts.T), field="integer")
    rows = ["\t".join(row) for row in zip(IDS, SYMBOLS, TYPES, strict=True)]
    for name, content in (
        ("matrix.mtx.gz", stream.getvalue()),
        ("features.tsv.gz", "\n".join(rows).encode()),
        ("barcodes.tsv.gz", "\n".join(barcodes).encode()),
    ):
        (folder / name).write_bytes(gzip.compress(content))
    return folder


def visium_positions(um_per_px: float = UM_PER_PX) -> pd.DataFrame:
    """Return positions of 7 x 8 spots of a hexagonal array, two of three under tissue."""
    places = [(row, col) for row in range(7) for col in range(row % 2, 16, 2)]
    rows, cols = np.array(places).T
    return pd.DataFrame(
        {
            "barcode": [f"AC{r:02d}{c:02d}-1" for r, c in places],
            "in_tissue": [int(i % 3 != 0) for i in range(len(places))],
            "array_row": rows,
            "array_col": cols,
            "pxl_row_in_fullres": np.rint(rows * 50 * 3**0.5 / um_per_px + 20).astype(int),
            "pxl_col_in_fullres": np.rint(cols * 50 / um_per_px + 30).astype(int),
        }
    )


def write_visium(folder: Path, release: int = 2) -> pd.DataFrame:
    """Write ``outs/`` of Space Ranger 1 or 2; return the positions of the spots under tissue."""
    outs, positions = folder / "outs", visium_positions()
    (outs / "spatial").mkdir(parents=True)
    name = "tissue_positions.csv" if release > 1 else "tissue_positions_list.csv"
    positions.to_csv(outs / "spatial" / name, index=False, header=release > 1)
    scales = {"spot_diameter_fullres": 65 / UM_PER_PX, "tissue_hires_scalef": 0.1}
    (outs / "spatial/scalefactors_json.json").write_text(json.dumps(scales))
    inside = positions[positions.in_tissue == 1]
    # Space Ranger orders barcodes by letters, positions by place
    barcodes = sorted(inside.barcode, reverse=True)
    write_tenx(outs / "filtered_feature_bc_matrix.h5", counts_of(len(barcodes)), barcodes)
    return inside


def write_visium_hd(folder: Path, sizes=(8, 16)) -> pd.DataFrame:
    """Write ``outs/binned_outputs/``; return the positions of the bins of the first size."""
    pytest.importorskip("pyarrow", reason="Parquet is an extra")
    um_per_px, first = 0.5, None
    for size in sizes:
        part = folder / f"outs/binned_outputs/square_{size:03d}um"
        (part / "spatial").mkdir(parents=True)
        rows, cols = (axis.ravel() for axis in np.mgrid[:6, :9])
        names = [f"s_{size:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(rows, cols, strict=True)]
        positions = pd.DataFrame({"barcode": names, "in_tissue": (rows + cols > 2).astype(int)})
        positions["array_row"], positions["array_col"] = rows, cols
        positions["pxl_row_in_fullres"] = (rows + 0.5) * 8 / um_per_px
        positions["pxl_col_in_fullres"] = (cols + 0.5) * 8 / um_per_px
        positions.to_parquet(part / "spatial/tissue_positions.parquet", index=False)
        scales = {
            "bin_size_um": float(size),
            "microns_per_pixel": um_per_px * size / 8,
            "spot_diameter_fullres": 8 / um_per_px,
        }
        (part / "spatial/scalefactors_json.json").write_text(json.dumps(scales))
        inside = positions[positions.in_tissue == 1]
        barcodes, path = list(inside.barcode), part / "filtered_feature_bc_matrix.h5"
        write_tenx(path, counts_of(len(barcodes)), barcodes, software_version="spaceranger-3.1.2")
        first = inside if first is None else first
    return first


# of the H&E image to the morphology image: a quarter turn and 2.0 times larger, as Explorer exports
ALIGNMENT = np.array([[0.0, 2.0, 40.0], [-2.0, 0.0, 700.0], [0, 0, 1]])
PIXEL_UM = 0.2125


def write_xenium(folder: Path, *, parquet: bool = True) -> np.ndarray:
    """Write a bundle of 40 cells; return their places, pixels of the H&E image."""
    folder.mkdir(parents=True)
    places = np.random.default_rng(3).uniform(20, 170, (40, 2))
    centroids = PIXEL_UM * (places @ ALIGNMENT[:2, :2].T + ALIGNMENT[:2, 2])
    barcodes = [f"aaaa{i:02d}-1" for i in range(40)]
    cells = pd.DataFrame({"cell_id": barcodes, "transcript_counts": 1})
    cells["x_centroid"], cells["y_centroid"] = centroids.T
    if parquet:
        pytest.importorskip("pyarrow", reason="Parquet is an extra")
        cells.to_parquet(folder / "cells.parquet", index=False)
    else:
        cells.to_csv(folder / "cells.csv.gz", index=False)
    types = [*TYPES[:5], "Negative Control Probe"]
    write_tenx(folder / "cell_feature_matrix.h5", counts_of(40), barcodes, types=types)
    specification = {"analysis_sw_version": "xenium-2.0.0.6-35-ga7e17149a", "pixel_size": PIXEL_UM}
    (folder / "experiment.xenium").write_text(json.dumps(specification))
    np.savetxt(folder / "x_he_imagealignment.csv", ALIGNMENT, delimiter=",")
    return places


def write_hest(folder: Path, name: str = "TENX1", seed: int = 0) -> anndata.AnnData:
    """Write a sample of 24 spots as HEST-1k keeps it: patches of half its spots, by corners."""
    xs, ys = (axis.ravel() for axis in np.meshgrid(np.arange(6), np.arange(4)))
    coords = np.column_stack([30 + 40 * xs, 30 + 40 * ys]).astype(float)
    names = [f"{x:03d}x{y:03d}" for x, y in zip(xs, ys, strict=True)]
    adata = anndata.AnnData(
        sp.csr_matrix(counts_of(24, seed, N_GENES).astype(np.float32)),
        obs=pd.DataFrame({"in_tissue": 1}, index=names),
        var=pd.DataFrame(index=["ACTB", "GAPDH", "CD3E", "GAPDH-1", "MS4A1"]),
    )
    adata.obsm["spatial"] = coords
    for part in ("st", "wsis", "metadata", "patches"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(folder / "st" / f"{name}.h5ad")
    image = np.asarray(Image.open(write_image(folder / "wsis" / f"{name}.tif", seed)))
    metadata = {"pixel_size_um_estimated": 1.0, "pixel_size_um_embedded": 1.1, "id": name}
    (folder / "metadata" / f"{name}.json").write_text(json.dumps(metadata))
    corners = (coords[::2] - 10).astype(int)
    with h5py.File(folder / "patches" / f"{name}.h5", "w") as file:
        file["img"] = np.stack([image[y : y + 20, x : x + 20] for x, y in corners])
        file["img"].attrs.update({"patch_size_src": 20, "patch_size_target": 20, "pixel_size": 1.0})
        file["coords"], file["barcode"] = corners, [[name] for name in adata.obs_names[::2]]
    return adata


LEGACY_HEADER = "x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected\n"


def write_legacy_st(folder: Path, name: str = "B4") -> None:
    """Write 12 spots 50 px apart of a legacy array, the first at (30, 40) px."""
    folder.mkdir(exist_ok=True)
    places = [(x, y) for y in range(3) for x in range(4)]
    rows = [f"{x}\t{y}\t{x}\t{y}\t{30 + 50 * x}\t{40 + 50 * y}\t1\n" for x, y in places]
    (folder / f"{name}_selection.tsv").write_text(LEGACY_HEADER + "".join(rows))
    counts = [f"{x}x{y}\t{x}\t{y}\n" for x, y in places]
    (folder / f"{name}.tsv").write_text("\tA\tB\n" + "".join(counts))


def write_stimage(folder: Path, name: str, platform: str = "ST") -> pd.DataFrame:
    """Write one slide of legacy ST or Visium as published; return its coordinates."""
    if platform == "ST":
        ys, xs = (axis.ravel() for axis in np.mgrid[1:5, 1:6])
        names = [f"{x}x{y}" for x, y in zip(xs, ys, strict=True)]
        ys, xs = 40 * np.array([ys, xs]) + np.random.default_rng(0).normal(0, 0.6, (2, len(xs)))
        radius = 50 / 5
    else:
        names, _, _, _, ys, xs = visium_positions().to_numpy().T
        radius = 32.5 / UM_PER_PX
    barcodes = [f"{name}_{barcode}" for barcode in names]
    coords = pd.DataFrame({"yaxis": ys, "xaxis": xs, "r": radius}, index=barcodes)
    coords = coords.astype(float)
    for part in ("coord", "gene_exp", "image"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    coords.to_csv(folder / "coord" / f"{name}_coord.csv")
    counts = pd.DataFrame(counts_of(len(coords)), index=barcodes, columns=SYMBOLS)
    counts.to_csv(folder / "gene_exp" / f"{name}_count.csv")
    write_image(folder / "image" / f"{name}.png")
    return coords


@dataclasses.dataclass
class Stored:
    """What :func:`write_spatialdata` wrote: places in the image, counts, the image."""

    pixels: np.ndarray
    counts: np.ndarray
    image: np.ndarray


def write_spatialdata(
    folder: Path,
    *,
    system: str = "global",
    instances: np.ndarray | None = None,
    negative: bool = False,
    tables: int = 1,
    dtype: type = np.uint8,
) -> Stored:
    """Write a store of 12 circles, their counts, an image and a smaller one, as the library does.

    The image is scaled by 2 and shifted, and the circles by 0.5, to the shared coordinates.
    """
    spatialdata = pytest.importorskip("spatialdata", reason="SpatialData is an extra")
    import geopandas
    from shapely import Point
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Scale, Sequence, Translation

    rng = np.random.default_rng(0)
    xs, ys = np.meshgrid([20, 50, 80, 110], [30, 60, 90])
    pixels = np.column_stack([xs.ravel(), ys.ravel()]).astype(float)
    axes = ("x", "y")
    to_shared = Sequence([Scale([2, 2], axes), Translation([100, -40], axes)])
    places = (2 * pixels + [100, -40]) / 0.5
    image = rng.integers(0, 256, (120, 140, 3)).astype(dtype)
    images = {}
    for name, part in (("he", image), ("small", image[::4, ::4])):
        images[name] = Image2DModel.parse(
            part.transpose(2, 0, 1), dims=("c", "y", "x"), transformations={"global": to_shared}
        )
    geometry = geopandas.GeoDataFrame(
        {"radius": [3.0] * 12}, geometry=[Point(*p) for p in places[::-1]]
    )
    shapes = ShapesModel.parse(geometry, transformations={system: Scale([0.5, 0.5], axes)})
    counts = counts_of(12, g=5)
    adata = anndata.AnnData(sp.csr_matrix((counts - negative).astype(np.float32)))
    adata.obs_names, adata.var_names = [f"s{i}-1" for i in range(12)], SYMBOLS[:3] + IDS[3:5]
    adata.obs["instance"] = np.arange(12)[::-1] if instances is None else instances
    adata.obs["region"] = pd.Categorical(["spots"] * 12)
    table = TableModel.parse(adata, region="spots", region_key="region", instance_key="instance")
    named = {f"table{i or ''}": table for i in range(tables)}
    spatialdata.SpatialData(images=images, shapes={"spots": shapes}, tables=named).write(folder)
    return Stored(pixels, counts, image)
