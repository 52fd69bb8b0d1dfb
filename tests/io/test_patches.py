import h5py
import numpy as np
import pytest
from artefacts import edit_h5

from stflow_graph.errors import BadInput
from stflow_graph.io.patches import open_patches, write_patches

BARCODES = ["a", "bcd"]
COORDS = np.array([[3, 4], [5, 6]])


def write(path):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    with write_patches(
        path, BARCODES, COORDS, size=8, size_level0=16.5, um_per_px=0.5, attrs={"image": "x"}
    ) as writer:
        writer.append(images)
    return images


def test_what_is_written_is_read_with_its_units(tmp_path):
    images = write(tmp_path / "a.h5")
    with open_patches(tmp_path / "a.h5") as result:
        np.testing.assert_array_equal(result.images[()], images)
        np.testing.assert_array_equal(result.coords, COORDS)
        assert result.barcodes == BARCODES
        assert (result.convention, result.um_per_px, len(result)) == ("centre", 0.5, 2)
        assert result.images.attrs["downsample"] == pytest.approx(16.5 / 8)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("img", np.zeros((2, 3, 8, 8), np.uint8), r"\(2, 3, 8, 8\)"),
        ("img", np.zeros((2, 8, 8, 3), np.float32), "float32.*uint8"),
        ("img", np.zeros((3, 8, 8, 3), np.uint8), "3 rows.*2, one per barcode"),
        ("barcode", np.array([b"a", b"a"]), "duplicate"),
        ("coords", np.array([[np.inf, 0], [0, 0]]), "1 of 2"),
    ],
)
def test_bad_content_is_refused(tmp_path, key, value, message):
    write(tmp_path / "a.h5")
    edit_h5(tmp_path / "a.h5", key, value)
    with pytest.raises(BadInput, match=message), open_patches(tmp_path / "a.h5"):
        pass


def test_hest_files_without_a_convention_say_so(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["img"], file["coords"] = np.zeros((2, 8, 8, 3), np.uint8), COORDS
        file["barcode"] = np.array(BARCODES, dtype=object).reshape(2, 1)
        file["img"].attrs["pixel_size"] = 0.25
    with open_patches(tmp_path / "a.h5") as result:
        assert (result.convention, result.um_per_px) == (None, 0.25)
