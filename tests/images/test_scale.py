import logging

import pytest
import tifffile
from foreign import tissue_like, write_svs
from PIL import Image

from stflow_graph.errors import BadInput
from stflow_graph.images.open import open_image
from stflow_graph.images.scale import agreed_scale, scale_of_slide

PIXELS = tissue_like(300, 200)
RGB = {"photometric": "rgb"}
TILED = {**RGB, "tile": (64, 64)}


def scale(path):
    with open_image(path) as image:
        return image.um_per_px


def resolution(x, y=None, unit="CENTIMETER", **options):
    per_unit = {"resolution": (x, x if y is None else y), "resolutionunit": unit}
    return lambda path: tifffile.imwrite(path, PIXELS, **{**TILED, **options}, **per_unit)


def ome(x, y=None, unit=None):
    sizes = {"PhysicalSizeX": x, "PhysicalSizeY": y, "PhysicalSizeXUnit": unit}
    about = {"axes": "YXS", "PhysicalSizeYUnit": unit, **sizes}

    def make(path):
        metadata = {key: value for key, value in about.items() if value is not None}
        tifffile.imwrite(path.with_suffix(".ome.tif"), PIXELS, **TILED, metadata=metadata)
        path.with_suffix(".ome.tif").rename(path)

    return make


def pillow(kind):
    return lambda path: Image.fromarray(PIXELS).save(path, kind, dpi=(50_800, 50_800))


SCALES = {
    "aperio": (lambda path: write_svs(path, PIXELS), 0.499),
    "aperio without": (lambda path: write_svs(path, PIXELS, "unknown"), None),
    "centimetres": (resolution(40_000), 0.25),
    "inches": (resolution(50_800, unit="INCH"), 0.5),
    "strips": (resolution(20_000, tile=None), 0.5),
    "no unit": (resolution(40_000, unit="NONE"), None),
    "printer's": (resolution(300, unit="INCH"), None),
    "one": (resolution(1), None),
    "ome": (ome(0.34, 0.34), 0.34),
    "ome in nm": (ome(250.0, 250.0, "nm"), 0.25),
    "ome in pixels": (ome(1.0, 1.0, "pixel"), None),
    "ome of x alone": (ome(0.5), 0.5),
    "jpeg": (pillow("JPEG"), None),
    "png": (pillow("PNG"), None),
}


@pytest.mark.parametrize("kind", SCALES)
def test_the_scale_is_read_where_it_can_be_trusted(tmp_path, kind):
    make, expected = SCALES[kind]
    make(tmp_path / "image")
    result = scale(tmp_path / "image")
    assert result == (None if expected is None else pytest.approx(expected, rel=1e-4))


@pytest.mark.parametrize("make", [resolution(40_000, 20_000), ome(0.25, 0.5)])
def test_pixels_that_are_not_square_are_refused(tmp_path, make):
    make(tmp_path / "image")
    with pytest.raises(BadInput, match=r"pixel size: found 0.25 x 0.5 µm.*resample"):
        scale(tmp_path / "image")


def test_the_given_scale_wins_and_a_difference_is_said_once(caplog):
    caplog.set_level(logging.WARNING)
    assert agreed_scale("a.svs", None, 0.25) == 0.25
    assert agreed_scale("a.svs", None, None) is None
    assert agreed_scale("a.svs", 0.5, None) == 0.5
    assert agreed_scale("a.svs", 0.26, 0.25) == 0.26
    assert not caplog.records
    assert agreed_scale("a.svs", 0.5, 0.25) == 0.5
    (record,) = caplog.records
    assert "a.svs: um_per_px 0.5 as given overrides" in record.getMessage()
    assert "0.25" in record.getMessage()


@pytest.mark.parametrize(
    ("option", "files", "own", "own_first", "expected"),
    [
        (None, None, None, False, None),
        (0.8, None, 0.5, False, 0.8),  # a warning is enough
        (None, 0.5, 0.6, False, 0.5),
        (None, 1.0, 0.5, True, 0.5),  # a table made by hand is believed less
        (1.0, 1.1, 0.5, False, 1.0),  # the metadata are outvoted
        (0.5, 1.0, 0.5, False, 0.5),
        (1.0, None, 0.5, False, r"1 as given, 0\.5 in the image's metadata.*that of the metadata"),
        (0.2, None, 0.5, True, "0.2 as given"),
        (1.0, 0.5, 0.5, False, "1 as given"),
        (None, 1.0, 0.5, False, r"1 of the spots, 0\.5 in .*--um-per-px"),
    ],
)
def test_scales_that_contradict_each_other_beyond_doubt_are_refused(
    option, files, own, own_first, expected
):
    def scale():
        return scale_of_slide("a.svs", option, files, own, own_first=own_first)

    if isinstance(expected, str):
        with pytest.raises(BadInput, match=f"a.svs: um_per_px: found {expected}"):
            scale()
    else:
        assert scale() == expected
