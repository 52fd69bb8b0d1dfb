from __future__ import annotations

import csv
import json
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from artefacts import resealed, write_prediction
from PIL import Image
from scipy.spatial import cKDTree

from stflow_graph.errors import BadConfig, BadInput, MissingDependency
from stflow_graph.images.pictures import read_picture
from stflow_graph.io import prediction_file
from stflow_graph.stages import export as export_module
from stflow_graph.stages.export import export

GENES = ["ACTB", "=cmd|'/c calc'!A1", "G2"]
N = 1000


@pytest.fixture
def written(tmp_path):
    rng = np.random.default_rng(0)
    samples = rng.gamma(2, size=(2, N, 3)).astype(np.float32)
    coords = rng.uniform(0, 300, (N, 2))
    Image.fromarray(rng.integers(0, 255, (300, 300, 3), dtype=np.uint8)).save(tmp_path / "he.png")
    barcodes = ["-1+1", *(f"spot {i}" for i in range(1, N))]
    write_prediction(
        tmp_path / "A.h5ad",
        samples.mean(0),
        barcodes,
        GENES,
        coords,
        provenance={"slide": "A", "target": "log1p"},
        samples=samples,
        picture=read_picture(tmp_path / "he.png", 100),
    )
    return tmp_path / "A.h5ad", samples, coords, barcodes


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(prediction_file, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(prediction_file, "chunk_rows", lambda n_genes: 64)


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".CSV"])
@pytest.mark.parametrize(("layer", "genes"), [("mean", []), ("sample_1", ["G2", "ACTB"])])
def test_csv_holds_every_value_and_no_formula(
    written, tmp_path, small_blocks, ending, layer, genes
):
    file, samples, coords, _ = written
    done = export(file, tmp_path / f"out{ending}", genes=genes, layer=layer)
    assert (done.n_spots, done.n_genes) == (N, len(genes) or 3)
    table = pd.read_csv(done.path)
    wanted = samples.mean(0) if layer == "mean" else samples[1][:, [2, 0]]
    np.testing.assert_allclose(table.iloc[:, 3:], wanted, rtol=1e-6)
    np.testing.assert_allclose(table[["x", "y"]], coords, rtol=1e-6)
    assert table["barcode"][0] == "'-1+1"
    assert list(table.columns[3:]) == (genes or ["ACTB", "'=cmd|'/c calc'!A1", "G2"])
    again = export(file, tmp_path / f"again{ending}", genes=genes, layer=layer)
    assert again.path.read_bytes() == done.path.read_bytes()
    if ending == ".csv":
        with done.path.open(newline="") as text:
            cells = [cell for row in csv.reader(text) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]


def test_parquet_holds_every_value(written, tmp_path, small_blocks):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pip install .[parquet]")
    file, samples, _, barcodes = written
    export(file, tmp_path / "out.parquet", layer="std")
    table = pd.read_parquet(tmp_path / "out.parquet")
    assert list(table.columns) == ["barcode", "x", "y", *GENES]
    assert list(table["barcode"]) == barcodes
    np.testing.assert_allclose(table[GENES], samples.std(0), rtol=1e-5)
    assert table[GENES].dtypes.eq(np.float32).all()
    assert parquet.ParquetFile(tmp_path / "out.parquet").num_row_groups == -(-N // 64)


def check_qupath(feature: dict) -> None:
    """Check what QuPath's ``QuPathTypeAdapters`` and ``ROITypeAdapters`` read of a feature."""
    assert set(feature) == {"type", "geometry", "properties"}
    geometry, properties = feature["geometry"], feature["properties"]
    assert properties.keys() == {"objectType", "name", "measurements"}
    # any other type becomes an annotation, which QuPath handles a thousand of, not a million
    assert (feature["type"], properties["objectType"]) == ("Feature", "detection")
    assert isinstance(properties["name"], str)
    for name, value in properties["measurements"].items():  # a Map<String, Double>
        assert isinstance(name, str)
        assert isinstance(value, float | int)
        assert np.isfinite(value)
    assert geometry.keys() - {"isEllipse"} == {"type", "coordinates"}
    assert geometry.get("isEllipse", True) is True
    if geometry["type"] == "Point":
        assert len(geometry["coordinates"]) == 2
        return
    (ring,) = geometry["coordinates"]
    assert geometry["type"] == "Polygon"
    assert {len(place) for place in ring} == {2}
    assert len(ring) >= 4
    assert ring[0] == ring[-1]  # or JTS refuses the ring


@pytest.mark.parametrize("shape", ["circle", "square", "point"])
def test_qupath_reads_a_detection_for_every_spot(written, tmp_path, small_blocks, shape):
    file, samples, coords, barcodes = written
    done = export(file, tmp_path / "A.geojson", shape=shape)
    content = json.loads(done.path.read_text())
    assert (content["type"], len(content["features"])) == ("FeatureCollection", N)
    for feature in content["features"]:
        check_qupath(feature)
    properties = [feature["properties"] for feature in content["features"]]
    assert [each["name"] for each in properties] == barcodes
    measured = [list(each["measurements"].values()) for each in properties]
    np.testing.assert_allclose(measured, samples.mean(0), rtol=1e-5)
    assert list(properties[0]["measurements"]) == GENES
    geometries = [feature["geometry"] for feature in content["features"]]
    places = np.array([each["coordinates"] for each in geometries])
    if shape == "point":
        np.testing.assert_allclose(places, coords, atol=0.006)
        return
    corners = places[:, 0, :4]
    np.testing.assert_allclose(corners.mean(1), coords, atol=0.006)
    width = np.ptp(corners, axis=1)
    nearest = cKDTree(coords).query(coords, k=2)[0][:, 1]
    factor = 0.55 if shape == "circle" else 1.0
    np.testing.assert_allclose(width, max(1.0, factor * np.median(nearest)), atol=0.02)
    assert all(("isEllipse" in each) == (shape == "circle") for each in geometries)


def test_geojson_is_the_same_whatever_the_blocks(written, tmp_path, monkeypatch):
    whole = export(written[0], tmp_path / "whole.geojson").path.read_bytes()
    monkeypatch.setattr(prediction_file, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(prediction_file, "chunk_rows", lambda n_genes: 64)
    monkeypatch.setattr(export_module, "_FEATURES", 7)
    assert export(written[0], tmp_path / "parts.geojson").path.read_bytes() == whole


def test_another_shape_is_refused(written, tmp_path):
    with pytest.raises(BadConfig, match="one of circle, square, point"):
        export(written[0], tmp_path / "A.geojson", shape="hexagon")
    assert not (tmp_path / "A.geojson").exists()


def test_loupe_gets_levels_of_equally_many_spots(written, tmp_path, small_blocks, monkeypatch):
    file, samples, _, _ = written
    done = export(file, tmp_path / "A.loupe.csv", genes=["G2", "ACTB"])
    table = pd.read_csv(done.path, dtype=str)
    assert list(table.columns) == ["Barcode", "G2", "ACTB"]
    assert table["Barcode"][1] == "spot 1"
    for gene, values in (("G2", samples.mean(0)[:, 2]), ("ACTB", samples.mean(0)[:, 0])):
        levels = table[gene]
        assert sorted(levels.unique())[0].startswith("1: ")
        assert levels.value_counts().tolist() == [N // 5] * 5
        rank = levels.str[0].astype(int).to_numpy()
        assert (np.diff(rank[np.argsort(values)]) >= 0).all()
        ends = levels.str[3:].str.split(" to ", expand=True).astype(float).to_numpy()
        assert (ends[:, 0] <= values * 1.01).all()
        assert (values <= ends[:, 1] * 1.01).all()
    monkeypatch.setattr(export_module, "_GROUP_BYTES", 1)
    again = export(file, tmp_path / "B.loupe.csv", genes=["G2", "ACTB"])
    assert again.path.read_bytes() == done.path.read_bytes()


def test_a_gene_called_like_a_column_is_refused(tmp_path):
    arrays = np.ones((3, 1), np.float32), list("abc"), ["Barcode"], np.zeros((3, 2))
    write_prediction(tmp_path / "A.h5ad", *arrays, provenance={"slide": "A", "target": "log1p"})
    with pytest.raises(BadInput, match="no gene of the name of a column"):
        export(tmp_path / "A.h5ad", tmp_path / "A.loupe.csv")
    export(tmp_path / "A.h5ad", tmp_path / "A.csv")


def test_spatialdata_reads_table_spots_and_image(written, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its packages warn when they are imported, and it itself
        spatialdata = pytest.importorskip("spatialdata", reason="needs pip install .[spatialdata]")
        export(written[0], tmp_path / "out.zarr", genes=["G2"])
        found = spatialdata.read_zarr(tmp_path / "out.zarr")
        extent = spatialdata.get_extent(found["he"], coordinate_system="global")
        joined = spatialdata.join_spatialelement_table(
            sdata=found, spatial_element_names="spots", table_name="predictions"
        )
    _, samples, coords, barcodes = written
    table = found["predictions"]
    np.testing.assert_allclose(table.X, samples.mean(0)[:, [2]], rtol=1e-6)
    assert list(table.obs_names) == barcodes
    circles = found["spots"].geometry
    np.testing.assert_allclose(np.stack([circles.x, circles.y], 1), coords)
    assert joined[1].n_obs == N
    assert tuple(map(round, extent["x"])) == (0, 300)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.csv", "add --overwrite"),
        ("out.parquet", "add --overwrite"),
        ("out.zarr", "found a file, expected a folder"),
    ],
)
def test_what_is_there_stays(written, tmp_path, name, message):
    (tmp_path / name).write_text("mine")
    with pytest.raises(BadInput, match=message):
        export(written[0], tmp_path / name)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("entries", "foreign"),
    [
        (("tables/predictions", "shapes/spots", "images/he", "zarr.json"), ""),
        (("tables/predictions", "tables/.zgroup", ".zattrs"), ""),
        (("tables/predictions", "tables/clusters"), "other entries, such as ['tables/clusters']"),
        (("tables/predictions", "labels/nuclei"), "other entries, such as ['labels/nuclei']"),
        (("tables/predictions", "notes.txt"), "other entries, such as ['notes.txt']"),
        (("zarr.json",), "no table of predictions"),
    ],
)
def test_of_stores_only_those_that_export_writes_are_replaced(tmp_path, entries, foreign):
    for name in entries:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if "/" in name and "." not in name else path.write_text("{}")
    assert export_module._STORE.foreign(tmp_path) == foreign


def test_overwrite_replaces(written, tmp_path):
    (tmp_path / "out.csv").write_text("mine")
    export(written[0], tmp_path / "out.csv", overwrite=True)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == N + 1


def test_what_is_not_there_is_named(written, tmp_path):
    file = written[0]
    for options, message in [
        ({"genes": ["G2", "TP53"]}, r"1 of 2 genes absent, such as \['TP53'\].*it has ACTB,"),
        ({"genes": ["G2", "G22"]}, r"such as \['G22'\].*did you mean G2\b"),
        ({"genes": ["G2", "g2"]}, "1 duplicate"),
        ({"layer": "median"}, "one of mean, sample_0, sample_1, std"),
    ]:
        with pytest.raises(BadInput, match=message):
            export(file, tmp_path / "out.csv", **options)
    with pytest.raises(BadConfig, match=r"ends in .loupe.csv, .csv, .csv.gz, .parquet, .zarr"):
        export(file, tmp_path / "out.xlsx")
    (tmp_path / "x.h5ad").write_bytes(file.read_bytes())
    with resealed(tmp_path / "x.h5ad") as other:
        del other["uns/stflow_graph"]
    with pytest.raises(BadInput, match="stflow-graph sample"):
        export(tmp_path / "x.h5ad", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(("ending", "package"), [("parquet", "pyarrow"), ("zarr", "spatialdata")])
def test_a_package_that_is_missing_is_named(written, tmp_path, monkeypatch, ending, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=rf"needs the package {package}. Fix: pip install"):
        export(written[0], tmp_path / f"out.{ending}")
    assert not (tmp_path / f"out.{ending}").exists()
