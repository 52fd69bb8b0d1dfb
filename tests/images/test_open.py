import struct
import zlib

import numpy as np
import pytest
import tifffile
from foreign import opened_without
from PIL import Image

from stflow_graph.errors import BadInput, StflowError
from stflow_graph.images import open as images
from stflow_graph.images import tiled_tiff
from stflow_graph.images.open import open_image

PIXELS = np.random.default_rng(0).integers(0, 256, (150, 190, 3), dtype=np.uint8)
TILED = {"tile": (64, 48), "compression": "zlib"}
WRITERS = {
    "a.png": lambda path, x: Image.fromarray(x).save(path),
    "strips.tif": lambda path, x: tifffile.imwrite(path, x, photometric="rgb", rowsperstrip=7),
    "tiles.tif": lambda path, x: tifffile.imwrite(path, x, photometric="rgb", **TILED),
    "big.tif": lambda path, x: tifffile.imwrite(path, x, photometric="rgb", bigtiff=True, **TILED),
    "raw.tif": lambda path, x: tifffile.imwrite(path, x, photometric="rgb", tile=(64, 64)),
}


def write(folder, name, pixels=PIXELS):
    WRITERS[name](folder / name, pixels)
    return folder / name


def png(folder, pixels):
    return write(folder, "a.png", np.ascontiguousarray(pixels, dtype=np.uint8))


@pytest.mark.parametrize("name", WRITERS)
def test_a_window_is_the_slice_and_white_outside(tmp_path, name):
    rng = np.random.default_rng(1)
    around = np.pad(PIXELS, ((300, 300), (300, 300), (0, 0)), constant_values=255)
    with open_image(write(tmp_path, name)) as image:
        assert image.size == (190, 150)
        for _ in range(40):
            x, y = rng.integers(-100, 250, 2)
            width, height = rng.integers(1, 120, 2)
            expected = around[300 + y : 300 + y + height, 300 + x : 300 + x + width]
            window = image.read_window(int(x), int(y), int(width), int(height))
            assert window.dtype == np.uint8
            np.testing.assert_array_equal(window, expected)


def test_a_patch_without_scaling_is_a_crop(tmp_path):
    with open_image(png(tmp_path, PIXELS)) as image:
        np.testing.assert_array_equal(image.read_patch(60, 50, 40, 40), PIXELS[30:70, 40:80])


@pytest.mark.parametrize(("edge", "size"), [(20.6, 64), (40.3, 40), (70.9, 16)])
def test_a_linear_ramp_keeps_its_place_between_pixels(tmp_path, edge, size):
    # bicubic resampling reproduces linear functions, so a shift by part of a pixel would show
    rows, columns = np.mgrid[:120, :120]
    ramp = np.stack([2 * columns, 2 * rows, 255 - 2 * columns], axis=2)
    x, y = 61.37, 58.81
    # the centre of pixel i is at i + 1/2
    steps = (np.arange(size) + 0.5) * edge / size - edge / 2
    expected_x, expected_y = 2 * (x + steps - 0.5), 2 * (y + steps - 0.5)
    with open_image(png(tmp_path, ramp)) as image:
        patch = image.read_patch(x, y, edge, size).astype(float)
    # rounded once, as along the other axis nothing changes
    np.testing.assert_allclose(patch[..., 0], np.tile(expected_x, (size, 1)), atol=0.6)
    np.testing.assert_allclose(patch[..., 1], np.tile(expected_y, (size, 1)).T, atol=0.6)
    np.testing.assert_allclose(patch[..., 2], 255 - np.tile(expected_x, (size, 1)), atol=0.6)


@pytest.mark.parametrize("size", [64, 16])
def test_a_patch_from_a_window_is_the_patch_from_the_whole_image(tmp_path, size):
    whole = Image.fromarray(PIXELS)
    rng = np.random.default_rng(2)
    with open_image(write(tmp_path, "tiles.tif")) as image:
        for _ in range(20):
            edge = rng.uniform(10, 90)
            x, y = (rng.uniform(edge / 2, length - edge / 2) for length in image.size)
            box = (x - edge / 2, y - edge / 2, x + edge / 2, y + edge / 2)
            expected = np.asarray(whole.resize((size, size), Image.Resampling.BICUBIC, box=box))
            patch = image.read_patch(x, y, edge, size)
            assert np.abs(patch.astype(int) - expected).max() <= 1


def test_shrinking_does_not_alias(tmp_path):
    checkers = np.indices((160, 160)).sum(axis=0) % 2 * 255
    with open_image(png(tmp_path, np.stack([checkers] * 3, axis=2))) as image:
        patch = image.read_patch(80.3, 79.9, 96, 32).astype(int)
    assert np.abs(patch - 127.5).max() < 3


def test_white_does_not_bleed_into_a_patch_at_the_border(tmp_path):
    with open_image(png(tmp_path, np.zeros((50, 50, 3)))) as image:
        assert (image.read_patch(10, 40, 20, 33) == 0).all()
        over = image.read_patch(0, 25, 20, 20)
    assert (over[:, :9] == 255).all()
    assert (over[:, 12:] == 0).all()


@pytest.mark.parametrize("tiled", [False, True])
def test_transparency_is_laid_on_white(tmp_path, tiled):
    alpha = np.repeat(np.array([0, 128, 255], np.uint8), 20)[None, :, None].repeat(60, axis=0)
    rgba = np.concatenate([PIXELS[:60, :60], alpha], axis=2)
    path = tmp_path / ("a.tif" if tiled else "a.png")
    if tiled:
        kinds = {"extrasamples": ["unassalpha"], "tile": (32, 32)}
        tifffile.imwrite(path, rgba, photometric="rgb", **kinds)
    else:
        Image.fromarray(rgba).save(path)
    share = alpha / 255.0
    expected = PIXELS[:60, :60] * share + 255 * (1 - share)
    with open_image(path) as image:
        np.testing.assert_allclose(image.read_window(0, 0, 60, 60), expected, atol=1)


def test_a_palette_is_expanded(tmp_path):
    image = Image.fromarray(PIXELS[:20, :20]).quantize(4)
    image.save(tmp_path / "p.png")
    with open_image(tmp_path / "p.png") as reader:
        pixels = reader.read_window(0, 0, 20, 20)
    np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))


def test_an_image_over_pillows_limit_is_read_and_the_limit_put_back(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with open_image(png(tmp_path, PIXELS[:20, :20])) as image:
        assert image.size == (20, 20)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_images_over_our_limit_are_read_in_tiles_or_strips_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_DECODED_PIXELS", 1000)
    command = r"vips tiffsave \S+/a.png \S+/a.tiled.tif --tile"
    with (
        pytest.raises(BadInput, match=f"190 x 150 = 28,500.*at most 1,000.*{command}"),
        open_image(write(tmp_path, "a.png")),
    ):
        pass
    for name in ("tiles.tif", "strips.tif"):
        with open_image(write(tmp_path, name)) as image:
            assert image.size == (190, 150)


STRIPS = {
    "mapped": {"rowsperstrip": 7},
    "in one strip": {},
    "compressed": {"rowsperstrip": 7, "compression": "zlib"},
    "rgba": {"rowsperstrip": 16, "compression": "zlib", "extrasamples": ["unassalpha"]},
}


@pytest.mark.parametrize("kind", STRIPS)
def test_a_large_tiff_is_read_strip_by_strip(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(images, "MAX_DECODED_PIXELS", 1000)
    monkeypatch.setattr(tiled_tiff, "_CACHE", 20_000)  # of some strips
    opaque = np.concatenate([PIXELS, np.full((150, 190, 1), 255, np.uint8)], axis=2)
    pixels = opaque if kind == "rgba" else PIXELS
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", **STRIPS[kind])
    with open_image(tmp_path / "a.tif") as image:
        for x, y, width, height in ((0, 0, 190, 150), (30, 13, 50, 40), (100, 140, 90, 10)):
            expected = PIXELS[y : y + height, x : x + width]
            np.testing.assert_array_equal(image.read_window(x, y, width, height), expected)
        patch = image.read_patch(60, 70, 48, 24)
    with open_image(write(tmp_path, "tiles.tif")) as image:
        np.testing.assert_array_equal(patch, image.read_patch(60, 70, 48, 24))


def test_a_large_tiff_in_one_compressed_piece_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_DECODED_PIXELS", 1000)
    monkeypatch.setattr(tiled_tiff, "_MAX_STRIP", 1000)
    path = tmp_path / "one piece.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", compression="zlib", rowsperstrip=150)
    message = r"190 x 150 px in one compressed piece.*vips tiffsave '\S+/one piece.tif'"
    with pytest.raises(BadInput, match=message), open_image(path):
        pass


PLANES = np.moveaxis(PIXELS, 2, 0)
LAYOUTS = {
    "planes in tiles": (PLANES, {"photometric": "rgb", "planarconfig": "separate"}, TILED),
    "planes in strips": (PLANES, {"photometric": "rgb", "planarconfig": "separate"}, {}),
    "grey planes in tiles": (PLANES, {"photometric": "minisblack", "ome": True}, TILED),
    "grey planes in strips": (PLANES, {"photometric": "minisblack", "ome": True}, {}),
    "grey samples in tiles": (PIXELS, {"photometric": "minisblack"}, TILED),
    "grey samples in strips": (PIXELS, {"photometric": "minisblack"}, {}),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_planes_and_three_grey_channels_are_colours(tmp_path, kind, caplog):
    pixels, layout, storage = LAYOUTS[kind]
    if layout.get("ome"):
        storage = {**storage, "metadata": {"axes": "CYX", "PhysicalSizeX": 0.5}}
    elif layout["photometric"] == "minisblack":
        layout = {**layout, "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, **layout, **storage)
    with open_image(tmp_path / "a.ome.tif") as image:
        assert image.size == (190, 150)
        np.testing.assert_array_equal(image.read_window(0, 0, 190, 150), PIXELS)
        np.testing.assert_array_equal(image.read_window(70, 60, 9, 8), PIXELS[60:68, 70:79])
        assert image.um_per_px == (0.5 if layout.get("ome") else None)
    said = "three grey channels are read as red, green and blue" in caplog.text
    assert said == (layout["photometric"] == "minisblack")


def _rotated(path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(PIXELS).save(path, exif=exif)


def _sixteen_bit_png(path):
    def chunk(name, data):
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    data = zlib.compress((b"\0" + b"\1\2" * 12) * 4)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def _tiff(pixels, **options):
    return lambda path: tifffile.imwrite(path, pixels, **options)


def _truncated(name, keep=0.67):
    def make(path):
        whole = write(path.parent, name).read_bytes()
        path.write_bytes(whole[: int(len(whole) * keep)])

    return make


def _wider(path):
    """Write tiles of an image that its size makes a hundred times wider."""
    write(path.parent, "tiles.tif").rename(path)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["ImageWidth"].overwrite(190 * 100)


WIDE = PIXELS.astype(np.uint16)
RGB = {"photometric": "rgb"}
TILE, LARGE = {"tile": (64, 64)}, {"tile": (16384, 8192), "compression": "zlib"}
GREY = {"photometric": "minisblack"}
FOUR = np.concatenate([PIXELS, PIXELS[..., :1]], axis=2)
ORIENTED = {"extratags": [(274, "H", 1, 6, True)]}
BAD = {
    "grey": (lambda p: Image.fromarray(PIXELS[..., 0]).save(p, "PNG"), "mode L.*8-bit RGB"),
    "cmyk": (lambda p: Image.new("CMYK", (9, 9)).save(p, "JPEG"), "mode CMYK"),
    "16-bit png": (_sixteen_bit_png, "16 bits a channel"),
    "16-bit strips": (_tiff(WIDE, **RGB), "16 bits a channel"),
    "16-bit grey": (_tiff(WIDE[..., 0]), "16 bits a channel"),
    "16-bit tiles": (_tiff(WIDE, **RGB, **TILE), "uint16.*8-bit RGB"),
    "grey tiles": (_tiff(PIXELS[..., 0], **TILE), "MINISBLACK"),
    "four planes": (_tiff(np.moveaxis(FOUR, 2, 0), **GREY, **TILE), "axes QYX"),
    "16-bit planes": (_tiff(np.moveaxis(WIDE, 2, 0), **GREY, **TILE), "uint16"),
    "rotated": (lambda p: _rotated(p.with_suffix(".jpg")) or p.with_suffix(".jpg").rename(p), "6"),
    "rotated tiles": (_tiff(PIXELS, **RGB, **TILE, **ORIENTED), "orientation tag: found 6"),
    "text": (lambda p: p.write_text("x, y\n1, 2\n"), "no image, expected .*JPEG, PNG, TIFF"),
    "empty": (lambda p: p.write_bytes(b""), "no image"),
    "folder": (lambda p: p.mkdir(), "a folder"),
    "missing": (lambda p: None, "No such file"),
    "large tiles": (_tiff(PIXELS, **RGB, **LARGE), "8192 x 16384 px.*at most"),
    "truncated png": (_truncated("a.png"), "content: found"),
    "truncated tiles": (_truncated("tiles.tif"), "content: found"),
    "cut tiles": (_truncated("raw.tif", 0.95), "truncated: .* of at least"),
    "too few tiles": (_wider, r"tiles: found \d+ for an image of \d,?\d+, expected a place"),
    "tiff head": (lambda p: p.write_bytes(b"II*\0"), "content: found"),
    "gif": (lambda p: Image.new("RGB", (9, 9)).save(p, "GIF"), "no image"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_read_right_is_refused(tmp_path, kind):
    make, message = BAD[kind]
    make(tmp_path / "image")
    with pytest.raises(BadInput, match=message), open_image(tmp_path / "image"):
        pass


def test_a_compression_that_needs_another_package_names_it(tmp_path):
    path = write(tmp_path, "tiles.tif")
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["Compression"].overwrite(5)  # LZW
    assert "pip install imagecodecs" in opened_without("imagecodecs", path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "strips.tif", "tiles.tif"])
def test_a_damaged_image_is_read_or_refused(tmp_path, name):
    path = tmp_path / name
    if name == "a.jpg":
        Image.fromarray(PIXELS[:60, :60]).save(path)
    else:
        WRITERS[name](path, PIXELS[:60, :60])
    whole = path.read_bytes()
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 700), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            with open_image(path) as image:
                assert image.read_patch(30, 30, 20, 8).shape == (8, 8, 3)
        except StflowError:
            refused += 1
    assert refused > 10
