import numpy as np
import pandas as pd
import pytest
from platform_files import ALIGNMENT, PIXEL_UM, corrupt, only_slide, write_image, write_xenium

from stflow_graph.errors import BadInput
from stflow_graph.platforms.xenium import read_alignment

CELLS, MATRIX = "cells.csv.gz", "x_he_imagealignment.csv"


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "bundle"
    return folder, write_xenium(folder, parquet=False)


@pytest.mark.parametrize("parquet", [False, True])
def test_cells_lie_where_the_alignment_puts_them_in_the_image(tmp_path, parquet):
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


def _matrix(change) -> str:
    return "\n".join(",".join(map(str, row)) for row in change(ALIGNMENT.copy()))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (CELLS, None, "source: found 'cell_feature_matrix.h5'"),
        ("cell_feature_matrix.h5", None, "source: found 'cells.csv.gz'"),
        (MATRIX, None, "alignment: found no file.*give --alignment, the matrix that Xenium Expl"),
        (CELLS, lambda t: t.drop(columns="x_centroid"), r"'y_centroid'.*expected also x_centroid"),
        (CELLS, lambda t: t[:0], "found 0 cells"),
        (CELLS, lambda t: pd.concat([t, t[:2]]), "cell_id: found 2 duplicates"),
        (CELLS, lambda t: t.assign(x_centroid="nan"), "40 of 40 rows not finite"),
        (CELLS, lambda t: t.assign(x_centroid="left"), "x_centroid: found could not convert"),
        (MATRIX, _matrix(lambda m: m[:2]), "shape: found 2 x 3 numbers, expected 3 x 3"),
        (MATRIX, _matrix(lambda m: m[:, :2]), "shape: found 3 x 2 numbers"),
        (MATRIX, _matrix(lambda m: m + [[0] * 3, [0] * 3, [1, 0, 0]]), "last row: found"),
        (MATRIX, _matrix(lambda m: m * np.nan), "last row: found .*all finite"),
        (MATRIX, _matrix(lambda m: m * [[0, 0, 1], [1, 1, 1], [1, 1, 1]]), "scales by 0 to 2"),
        (MATRIX, _matrix(lambda m: m + [[1, 0, 0], [0] * 3, [0] * 3]), "one scale in all directi"),
        (MATRIX, "a,b,c\n", "row 1: found could not convert"),
        ("experiment.xenium", {"pixel_size": 0}, "pixel_size: found 0"),
        ("experiment.xenium", "[]", "experiment.xenium: content: found 'list'"),
    ],
)
def test_bad_bundles_are_refused(bundle, file, change, message):
    corrupt(bundle[0] / file, change)
    with pytest.raises(BadInput, match=message):
        only_slide(bundle[0], "xenium").read()
