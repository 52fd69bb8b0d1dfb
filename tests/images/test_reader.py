import numpy as np
import pytest
import tifffile
from foreign import halved, tissue_like, write_svs
from PIL import Image

from stflow_graph.images import reader as image_reader
from stflow_graph.images.open import open_image
from stflow_graph.images.reader import usable_levels

# odd sizes: the levels of a pyramid lose the remainder
PIXELS = tissue_like(1501, 1283)


def write_pyramid(path, pixels=PIXELS):
    """Levels as SubIFDs, each half as wide: what tifffile, bioformats and libvips write."""
    with tifffile.TiffWriter(path) as tiff:
        options = {"photometric": "rgb", "tile": (256, 256), "compression": "zlib"}
        tiff.write(pixels, **options, subifds=3)
        for _ in range(3):
            pixels = halved(pixels)
            tiff.write(pixels, **options, subfiletype=1)
    return path


WRITERS = {"pyramid.tif": (write_pyramid, [1, 2, 4, 8]), "a.svs": (write_svs, [1, 4, 16])}


@pytest.mark.parametrize("name", WRITERS)
def test_levels_are_found_with_their_downsample(tmp_path, name):
    write, steps = WRITERS[name]
    with open_image(write(tmp_path / name, PIXELS)) as image:
        assert image.size == (1501, 1283)
        assert image.downsamples == [(step, step) for step in steps]
        np.testing.assert_array_equal(image.read_window(0, 0, 1501, 1283), PIXELS)
        if steps[1] == 4:
            result = image.read_window(10, 20, 100, 90, level=1)
            np.testing.assert_array_equal(result, halved(halved(PIXELS))[20:110, 10:110])


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("edge", [150.0, 301.7, 600.3, 1199.0])
def test_a_patch_from_a_level_is_the_average_of_level_0(tmp_path, name, edge):
    size, rng = 48, np.random.default_rng(0)
    whole = Image.fromarray(PIXELS)
    with open_image(WRITERS[name][0](tmp_path / name, PIXELS)) as image:
        for _ in range(4):
            x, y = (rng.uniform(edge / 2, length - edge / 2) for length in image.size)
            box = (x - edge / 2, y - edge / 2, x + edge / 2, y + edge / 2)
            average = np.asarray(whole.resize((size, size), Image.Resampling.BOX, box=box))
            smooth = np.asarray(whole.resize((size, size), Image.Resampling.BICUBIC, box=box))
            patch = image.read_patch(x, y, edge, size).astype(float)
            # the same filter at level 0: what reading a level changes
            assert np.abs(patch - smooth).mean() < 1
            assert np.abs(patch - smooth).max() < 9
            assert np.abs(patch - average).mean() < 6
            # no shift: neighbouring pixels differ by much more
            for axis in (0, 1):
                shifted = np.roll(smooth, 1, axis=axis).astype(float)
                assert np.abs(patch - shifted).mean() > 6


def test_a_level_is_read_only_where_it_has_all_the_detail(tmp_path, monkeypatch):
    read = []
    with open_image(write_pyramid(tmp_path / "a.tif")) as image:
        original = image.read_window
        monkeypatch.setattr(image, "read_window", lambda *a: read.append(a[4]) or original(*a))
        for edge in (50, 99, 100, 199, 200, 399, 400, 1200):
            image.read_patch(700, 600, edge, 50)
    assert read == [0, 0, 0, 0, 1, 1, 2, 3]


@pytest.mark.parametrize("block", [64, 4096])
@pytest.mark.parametrize("name", ["a.svs", "a.png"])
def test_an_overview_is_the_image_made_smaller(tmp_path, monkeypatch, block, name):
    monkeypatch.setattr(image_reader, "_BLOCK", block)
    if name == "a.png":
        Image.fromarray(PIXELS).save(tmp_path / name)
    else:
        write_svs(tmp_path / name, PIXELS)
    with open_image(tmp_path / name) as image:
        overview = image.read_overview(20.0)
    assert overview.shape == (65, 76, 3)
    whole = Image.fromarray(PIXELS).resize((75, 64), Image.Resampling.BICUBIC, (0, 0, 1500, 1280))
    assert np.abs(overview[:64, :75].astype(float) - np.asarray(whole)).mean() < 1
    beyond = overview[64, :75].astype(float)  # 3 of its 20 rows are in the image
    assert beyond.mean() > 230


def test_what_is_no_level_of_the_image_is_left_out():
    sizes = [(1000, 800), (500, 400), (300, 300), (250, 200), (1000, 800), (8, 6), (0, 0)]
    assert usable_levels(sizes) == [0, 1, 3, 5]
