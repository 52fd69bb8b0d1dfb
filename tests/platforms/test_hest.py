import json

import numpy as np
import pytest
from platform_files import corrupt, only_slide, write_hest

from stflow_graph.errors import BadInput
from stflow_graph.platforms.detect import find_slides

METADATA, ADATA = "metadata/TENX1.json", "st/TENX1.h5ad"


def test_every_sample_is_found_with_its_files(tmp_path):
    samples = {name: write_hest(tmp_path, name, seed) for seed, name in enumerate(("A1", "B2"))}
    sources = find_slides(tmp_path)
    assert [source.name for source in sources] == ["A1", "B2"]
    for source in sources:
        assert set(source.inputs) == {"counts", "image", "metadata", "patches"}
        data, adata = source.read(), samples[source.name]
        assert data.um_per_px == 1.0
        assert data.spots.barcodes == list(adata.obs_names)
        np.testing.assert_array_equal(data.spots.coords, adata.obsm["spatial"])
        np.testing.assert_array_equal(data.expression.counts.toarray(), adata.X.toarray())
    assert only_slide(tmp_path, "hest", name="B2").name == "B2"


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"pixel_size_um_embedded": 0.25}, 0.25),
        ({"pixel_size_um_estimated": None, "pixel_size_um_embedded": 0.25}, 0.25),
        ({}, None),
    ],
)
def test_the_estimated_scale_is_trusted_most(tmp_path, metadata, expected):
    write_hest(tmp_path)
    (tmp_path / METADATA).write_text(json.dumps(metadata))
    assert only_slide(tmp_path, "hest").read().um_per_px == expected


def _negative(adata):
    adata.X = adata.X - 1 * (adata.X != 0) * 2


def _nan(adata):
    adata.obsm["spatial"][3] = np.nan


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (METADATA, {"pixel_size_um_estimated": 0}, "pixel_size_um_estimated: found 0"),
        (METADATA, {"pixel_size_um_estimated": "1"}, "found '1', expected a positive"),
        (METADATA, "{", "TENX1.json: content: found .*expected JSON"),
        (METADATA, "3", "found 'int', expected a JSON object"),
        (ADATA, lambda a: a.obsm.pop("spatial"), r"obsm\['spatial'\]: found nothing"),
        (ADATA, _nan, "1 of 24 rows not finite"),
        (ADATA, _negative, "values negative"),
        (ADATA, "x", "expected an HDF5 file"),
    ],
)
def test_bad_samples_are_refused(tmp_path, file, change, message):
    write_hest(tmp_path)
    corrupt(tmp_path / file, change)
    with pytest.raises(BadInput, match=message):
        only_slide(tmp_path, "hest").read()


def test_a_sample_without_image_and_patches_is_refused(tmp_path):
    write_hest(tmp_path)
    (tmp_path / "wsis/TENX1.tif").unlink()
    assert "image" not in only_slide(tmp_path, "hest").inputs
    (tmp_path / "patches/TENX1.h5").unlink()
    with pytest.raises(
        BadInput, match=r"image of TENX1: found no file, expected wsis/TENX1\.tif or"
    ):
        only_slide(tmp_path, "hest")
