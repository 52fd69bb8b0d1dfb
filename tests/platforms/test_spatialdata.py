import json
import sys

import numpy as np
import pytest
from platform_files import write_spatialdata

from stflow_graph.errors import BadInput, MissingDependency
from stflow_graph.io.expression import read_expression
from stflow_graph.io.patches import open_patches
from stflow_graph.platforms.detect import find_slides
from stflow_graph.platforms.source import SourceOptions
from stflow_graph.stages.prepare import prepare

pytestmark = pytest.mark.filterwarnings("ignore")  # the library that writes warns of its future
ONE = SourceOptions(um_per_px=0.5)


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "slide.zarr"
    return folder, write_spatialdata(folder)


def test_centroids_become_pixels_of_the_image(store, tmp_path):
    folder, stored = store
    (source,) = find_slides(folder, ONE)
    assert (source.name, source.platform) == ("slide", "SpatialData")
    data = source.read()
    np.testing.assert_allclose(data.spots.coords, stored.pixels, atol=1e-9)
    np.testing.assert_array_equal(data.expression.counts.toarray(), stored.counts)
    (done,) = prepare(folder, tmp_path / "out", ONE, patch_px=10, patch_um=5.0)
    np.testing.assert_allclose(read_expression(done.adata).coords, stored.pixels)
    with open_patches(done.patches) as patches:
        for shown, (x, y) in zip(patches.images, stored.pixels.astype(int), strict=True):
            np.testing.assert_array_equal(shown, stored.image[y - 5 : y + 5, x - 5 : x + 5])
    (again,) = prepare(folder, tmp_path / "out", ONE, patch_px=10, patch_um=5.0)
    assert again.up_to_date


def test_a_scale_has_to_be_given(store, tmp_path):
    with pytest.raises(BadInput, match="um_per_px: found none in the file"):
        prepare(store[0], tmp_path / "out")


def test_a_store_that_would_be_unpickled_is_refused(store):
    folder, _ = store
    # the escape is JSON's for the letter p
    codec = '{"filters": [{"id": "\\u0070ickle", "protocol": 5}]}'
    (folder / "tables/.zarray").write_text(codec)
    assert json.loads(codec)["filters"][0]["id"] == "pickle"
    with pytest.raises(BadInput, match="codec: found 'pickle', expected a codec that runs no code"):
        find_slides(folder, ONE)[0].read()


def test_a_broken_store_is_refused(store):
    folder, _ = store
    for chunk in sorted((folder / "tables/table/X").rglob("*")):
        if chunk.is_file() and chunk.name != "zarr.json":
            chunk.write_bytes(b"\xff" * 40)
    with pytest.raises(BadInput):
        find_slides(folder, ONE)[0].read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"system": "other"},
            r"images: found \['he', 'small'\], expected an RGB image in the coord",
        ),
        (
            {"instances": np.arange(12) + 3},
            r"shapes: found 3 of 12 rows without one, \[12, 13, 14\]",
        ),
        ({"negative": True}, "X: found .* values negative"),
        ({"tables": 2}, r"tables: found \['table', 'table1'\], expected one table"),
        ({"dtype": np.uint16}, "images/he: found 'uint16', expected 8-bit RGB"),
    ],
)
def test_bad_stores_are_refused(tmp_path, change, message):
    write_spatialdata(tmp_path / "s.zarr", **change)
    with pytest.raises(BadInput, match=message):
        prepare(tmp_path / "s.zarr", tmp_path / "out", ONE, patch_px=10, patch_um=5.0)
    assert not (tmp_path / "out").exists()


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "spatialdata", None)
    (tmp_path / "zarr.json").write_text("{}")
    for part in ("tables", "shapes"):
        (tmp_path / part).mkdir()
    (source,) = find_slides(tmp_path, ONE)
    with pytest.raises(MissingDependency, match=r"pip install 'stflow-graph\[spatialdata\]'"):
        source.read()
