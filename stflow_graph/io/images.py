"""Reading windows of large H&E images, and patches with sub-pixel corners from them.

A tiled TIFF is read tile by tile, so its size does not matter. Every other image (JPEG, PNG, TIFF
in strips) is decoded once, four bytes a pixel, and never copied whole; :data:`MAX_DECODED_PIXELS`
bounds it. A reader for another format is one subclass of :class:`ImageReader` and one line in
:func:`open_image`.
"""

from __future__ import annotations

import abc
import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from stflow_graph.errors import BadInput, MissingDependency, plain, refusing
from stflow_graph.io.atomic import check_file

# 20,000 x 20,000; Pillow keeps four bytes a pixel, so 1.6 GB
MAX_DECODED_PIXELS = 400_000_000

_LARGEST_TILE = 8192
_FORMATS = ("JPEG", "PNG", "TIFF")
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION = 274  # the EXIF and TIFF tag; 1 is upright
_UPRIGHT_FIX = "save the image upright, so that spot coordinates have one meaning"
_RGB_FIX = "save the image as 8-bit RGB"


class ImageReader(abc.ABC):
    """Windows of one RGB image at full resolution (level 0).

    Pixel ``i`` of an axis covers the interval ``[i, i + 1)``.

    Attributes:
        path: the image file.
        size: width and height, px.
    """

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        self.path = path
        self.size = size

    @abc.abstractmethod
    def _read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Return the pixels of a window inside the image, ``[y1 - y0, x1 - x0, 3]`` uint8."""

    def read_window(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a window as ``[height, width, 3]`` uint8; what is outside the image is white.

        Args:
            x: left edge, px.
            y: top edge, px.
            width: px.
            height: px.
        """
        x0, x1 = (min(max(v, 0), self.size[0]) for v in (x, x + width))
        y0, y1 = (min(max(v, 0), self.size[1]) for v in (y, y + height))
        if (x1 - x0, y1 - y0) == (width, height):
            return self._read(x0, y0, x1, y1)
        window = np.full((height, width, 3), 255, dtype=np.uint8)
        if x1 > x0 and y1 > y0:
            window[y0 - y : y1 - y, x0 - x : x1 - x] = self._read(x0, y0, x1, y1)
        return window

    def read_patch(self, x: float, y: float, edge: float, size: int) -> np.ndarray:
        """Return the square around a point, resampled to ``[size, size, 3]`` uint8.

        The square's corners may lie between pixels. Bicubic resampling (Keys 1981, a = -1/2); the
        kernel widens with the scale when the square shrinks, so nothing aliases.

        Args:
            x: centre, px.
            y: centre, px.
            edge: edge of the square, px of the image.
            size: edge of the result, px.
        """
        margin = 2 * max(1.0, edge / size) + 1  # reach of the bicubic kernel beyond the square
        x0, x1 = _span(x - edge / 2, x + edge / 2, margin, self.size[0])
        y0, y1 = _span(y - edge / 2, y + edge / 2, margin, self.size[1])
        window = Image.fromarray(self.read_window(x0, y0, x1 - x0, y1 - y0))
        left, top = x - edge / 2 - x0, y - edge / 2 - y0
        box = (left, top, left + edge, top + edge)
        return np.asarray(window.resize((size, size), Image.Resampling.BICUBIC, box=box))


def _span(low: float, high: float, margin: float, length: int) -> tuple[int, int]:
    # the margin stops at the image's edge: white beyond it must not bleed into a patch inside
    first = max(math.floor(low - margin), min(0, math.floor(low)))
    last = min(math.ceil(high + margin), max(length, math.ceil(high)))
    return first, last


@contextlib.contextmanager
def open_image(path: str | Path) -> Iterator[ImageReader]:
    """Open an 8-bit RGB image (JPEG, PNG, TIFF); transparency is laid on white.

    Raises:
        BadInput: missing, not such an image, truncated, greyscale, 16-bit, rotated by an
            orientation tag, or over ``MAX_DECODED_PIXELS`` and not tiled.
        MissingDependency: the tiles' compression needs the package imagecodecs.
    """
    path = check_file(path)
    with path.open("rb") as file:
        is_tiff = file.read(4) in _TIFF_SIGNATURES
    with contextlib.ExitStack() as stack:
        reader: ImageReader | None = None
        if is_tiff:
            with refusing(path, "content", "a whole TIFF"):
                tiff = stack.enter_context(tifffile.TiffFile(path))
                if tiff.series[0].levels[0].keyframe.is_tiled:
                    reader = _TiledTiff(path, tiff)
        yield reader or _DecodedImage(path, stack.enter_context(_pillow(path)))


class _DecodedImage(ImageReader):
    """An image that Pillow holds decoded in memory."""

    def __init__(self, path: Path, image: Image.Image) -> None:
        super().__init__(path, image.size)
        self._image = image

    def _read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        window = self._image.crop((x0, y0, x1, y1))
        return np.asarray(window if window.mode == "RGB" else _on_white(window))


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


@contextlib.contextmanager
def _pillow(path: Path) -> Iterator[Image.Image]:
    with contextlib.ExitStack() as stack:
        with refusing(path, "content", f"a whole image ({', '.join(_FORMATS)})"):
            with _without_pillows_limit():
                image = stack.enter_context(Image.open(path, formats=_FORMATS))
            _check_pillow(path, image)
            image.load()
        yield image


@contextlib.contextmanager
def _without_pillows_limit() -> Iterator[None]:
    # Pillow warns from 89 million pixels on, which real slides have; we have our own limit
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _check_pillow(path: Path, image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_DECODED_PIXELS:
        found = plain(f"{width} x {height} = {width * height:,} pixels")
        fix = "save it as a tiled TIFF, which is read window by window"
        raise BadInput(path, "size", found, f"at most {MAX_DECODED_PIXELS:,}", fix)
    # Pillow opens 16-bit colour as mode RGB and keeps the high bytes; only the raw mode shows it
    deep = any(";16" in str(tile) for tile in getattr(image, "tile", ()))
    if deep or image.mode not in ("RGB", "RGBA", "P"):
        mode = f"16 bits a channel (mode {image.mode})" if deep else f"mode {image.mode}"
        raise BadInput(path, "colours", plain(mode), "8-bit RGB or RGBA", _RGB_FIX)
    orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation != 1:
        raise BadInput(path, "orientation tag", orientation, "1, upright", _UPRIGHT_FIX)


class _TiledTiff(ImageReader):
    """Level 0 of a tiled TIFF, decoded window by window."""

    def __init__(self, path: Path, tiff: tifffile.TiffFile) -> None:
        import zarr

        level = tiff.series[0].levels[0]
        _check_tiff(path, level)
        super().__init__(path, (level.shape[1], level.shape[0]))
        self._pixels = zarr.open_array(tiff.aszarr(series=0, level=0), mode="r")
        self._read(0, 0, 1, 1)  # a compression that is not supported shows here, not mid-way

    def _read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        with refusing(self.path, f"tiles around ({x0}, {y0})", "tiles that can be decoded"):
            try:
                window = np.asarray(self._pixels[y0:y1, x0:x1])
            except ValueError as error:
                if "imagecodecs" in str(error):
                    raise MissingDependency(
                        f"{self.path}: its tiles are compressed in a way that needs the package "
                        "imagecodecs. Fix: pip install imagecodecs"
                    ) from None
                raise
        return window if window.shape[2] == 3 else np.asarray(_on_white(Image.fromarray(window)))


def _check_tiff(path: Path, level: Any) -> None:
    page = level.keyframe
    rgb = page.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
    shape = level.shape
    if not rgb or level.axes != "YXS" or shape[2] not in (3, 4) or level.dtype != np.uint8:
        found = plain(f"{page.photometric!r}, axes {level.axes} {shape}, {level.dtype}")
        raise BadInput(path, "colours", found, "8-bit RGB or RGBA (axes YXS)", _RGB_FIX)
    orientation = page.tags.valueof(_ORIENTATION, default=1)
    if orientation != 1:
        raise BadInput(path, "orientation tag", int(orientation), "1, upright", _UPRIGHT_FIX)
    if page.tilewidth * page.tilelength > _LARGEST_TILE**2:
        found = plain(f"{page.tilewidth} x {page.tilelength} px")
        raise BadInput(path, "tile", found, f"at most {_LARGEST_TILE} x {_LARGEST_TILE} px")
    stored = path.stat().st_size
    end = max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True)), default=0)
    if end > stored:
        found = plain(f"truncated: {stored:,} of at least {end:,} bytes")
        raise BadInput(path, "content", found, "all tiles", "copy it again")
