from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from platform_files import ALIGNMENT, PIXEL_UM, only_slide, write_image, write_xenium

from stflow_graph.errors import StflowError
from stflow_graph.platforms.xenium import read_alignment


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "bundle"
    return folder, write_xenium(folder, parquet=False)


@pytest.mark.parametrize("parquet", [False, True])
def test_cells_lie_where_the_alignment_puts_them_in_the_image(tmp_path, parquet):
    if parquet:
        pytest.importorskip("pyarrow", reason="Parquet is an extra")
    places = write_xenium(tmp_path / "x", parquet=parquet)
    source = only_slide(tmp_path / "x", "xenium")
    assert (source.name, source.platform, source.unit) == ("x", "Xenium, 2.0.0.6", "cells")
    data = source.read()
    np.testing.assert_allclose(data.spots.coords, places, atol=1e-6)
    assert data.um_per_px == pytest.approx(PIXEL_UM * 2)
    assert data.expression.barcodes == data.spots.barcodes
    # the control probe is no gene
    assert data.expression.genes == ["ACTB", "GAPDH", "CD3E", "GAPDH-1", "MS4A1"]


def test_10xs_own_example_of_an_alignment(tmp_path):
    # the page that xenium.py names: the corner of the H&E image, in morphology pixels
    text = (
        "0.011071028838929093,1.2895790134339569,807.9788953065927\n"
        "-1.2895790134339569,0.011071028838929093,73097.655174759\n0,0,1\n"
    )
    path = tmp_path / "m.csv"
    path.write_text(text)
    matrix = read_alignment(path)
    np.testing.assert_allclose(matrix @ [0, 0, 1], [807.9788953065927, 73097.655174759, 1])
    # an objective of 40x
    assert PIXEL_UM * np.sqrt(np.linalg.det(matrix[:2, :2])) == pytest.approx(0.274, abs=0.001)


def test_without_a_specification_the_pixel_is_the_instruments(bundle):
    folder, places = bundle
    (folder / "experiment.xenium").unlink()
    source = only_slide(folder, "xenium")
    assert source.platform == "Xenium"
    np.testing.assert_allclose(source.read().spots.coords, places, atol=1e-6)


def test_the_image_and_the_alignment_may_be_named_or_lie_there(bundle, tmp_path):
    folder, places = bundle
    image = write_image(folder / "s_he_image.ome.tif")
    assert only_slide(folder, "xenium").inputs["image"] == image
    matrix = (folder / "x_he_imagealignment.csv").rename(tmp_path / "m.csv")
    options = {"alignment": matrix, "image": tmp_path / "other.tif", "name": "S"}
    source = only_slide(folder, "xenium", **options)
    assert (source.name, source.inputs["image"]) == ("S", tmp_path / "other.tif")
    np.testing.assert_allclose(source.read().spots.coords, places, atol=1e-6)


def _cells(change):
    def edit(folder):
        path = folder / "cells.csv.gz"
        change(pd.read_csv(path)).to_csv(path, index=False)

    return edit


def _matrix(change):
    def edit(folder):
        changed = change(ALIGNMENT.copy())
        np.savetxt(folder / "x_he_imagealignment.csv", changed, delimiter=",")

    return edit


def _write(name, text):
    return lambda folder: (folder / name).write_text(text)


REFUSED = {
    "no cells": (lambda f: (f / "cells.csv.gz").unlink(), "source: found 'cell_feature_matrix.h5'"),
    "no counts": (
        lambda f: (f / "cell_feature_matrix.h5").unlink(),
        "source: found 'cells.csv.gz'",
    ),
    "no alignment": (
        lambda f: (f / "x_he_imagealignment.csv").unlink(),
        "alignment: found no file.*give --alignment, the matrix that Xenium Explorer exports",
    ),
    "no column": (
        _cells(lambda t: t.drop(columns="x_centroid")),
        r"columns: found .*'y_centroid'.*expected also x_centroid",
    ),
    "no rows": (_cells(lambda t: t[:0]), "found 0 cells"),
    "cell twice": (_cells(lambda t: pd.concat([t, t[:2]])), "cell_id: found 2 duplicates"),
    "nan": (_cells(lambda t: t.assign(x_centroid="nan")), "40 of 40 rows not finite"),
    "text": (_cells(lambda t: t.assign(x_centroid="left")), "x_centroid: found could not convert"),
    "2 x 3": (_matrix(lambda m: m[:2]), "shape: found 2 x 3 numbers, expected 3 x 3"),
    "3 x 2": (_matrix(lambda m: m[:, :2]), "shape: found 3 x 2 numbers"),
    "projective": (_matrix(lambda m: m + [[0] * 3, [0] * 3, [1, 0, 0]]), "last row: found"),
    "nan matrix": (_matrix(lambda m: m * np.nan), "last row: found .*all finite"),
    "singular": (_matrix(lambda m: m * [[0, 0, 1], [1, 1, 1], [1, 1, 1]]), "scales by 0 to 2"),
    "sheared": (
        _matrix(lambda m: m + [[1, 0, 0], [0] * 3, [0] * 3]),
        "one scale in all directions",
    ),
    "words": (_write("x_he_imagealignment.csv", "a,b,c\n"), "row 1: found could not convert"),
    "pixel size": (
        _write("experiment.xenium", json.dumps({"pixel_size": 0})),
        "pixel_size: found 0",
    ),
    "no object": (_write("experiment.xenium", "[]"), "experiment.xenium: content: found 'list'"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_bundles_are_refused(bundle, kind):
    folder, _ = bundle
    corrupt, message = REFUSED[kind]
    corrupt(folder)
    with pytest.raises(StflowError, match=message):
        only_slide(folder, "xenium").read()
