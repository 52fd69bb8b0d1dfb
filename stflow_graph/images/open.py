"""Opening H&E images of any format; see ``images.reader`` for the readers' methods.

Tiled TIFFs and whole slides are read tile by tile, so their size does not matter, and TIFFs of over
:data:`MAX_DECODED_PIXELS` strip by strip. Every other image (JPEG, PNG, TIFF in strips) is decoded
once, at four bytes per pixel, and never copied whole; that constant bounds it. A reader for another
format is one subclass of ``ImageReader`` and one line in :func:`open_image`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError
from tifffile import PHOTOMETRIC

from stflow_graph.errors import BadInput, as_bad_input, unquoted
from stflow_graph.images.reader import ImageReader, check_declared, on_white
from stflow_graph.images.scale import scale_of_tiff
from stflow_graph.images.tiled_tiff import (
    ORIENTATION,
    RGB_FIX,
    UPRIGHT_FIX,
    StripedTiff,
    TiledTiff,
    layout_of,
    size_of,
    tiling_fix,
)
from stflow_graph.images.whole_slide import needs_openslide, open_whole_slide
from stflow_graph.io.atomic import check_file

# 20,000 x 20,000; Pillow keeps four bytes a pixel, so 1.6 GB
MAX_DECODED_PIXELS = 400_000_000

_FORMATS = ("JPEG", "PNG", "TIFF")
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@contextlib.contextmanager
def open_image(path: str | Path) -> Iterator[ImageReader]:
    """Open an 8-bit RGB image or whole slide; transparency is laid on white.

    Raises:
        BadInput: missing, not such an image, truncated, greyscale, 16-bit, rotated by an
            orientation tag, with pixels that are not square, or over ``MAX_DECODED_PIXELS`` in one
            piece.
        MissingDependency: the tiles' compression needs the package imagecodecs, or the format
            OpenSlide.
    """
    with contextlib.ExitStack() as stack:
        yield _reader(stack, check_file(path), decode=True)


def check_image(path: str | Path) -> float | None:
    """Return the micrometres per pixel of an image that can be opened, None if unknown.

    Its pixels are not decoded, so this takes no time, however large the image.

    Raises:
        BadInput: as :func:`open_image` does, but for pixels that cannot be decoded.
        MissingDependency: as :func:`open_image` does.
    """
    with contextlib.ExitStack() as stack:
        return _reader(stack, check_file(path), decode=False).um_per_px


def _reader(stack: contextlib.ExitStack, path: Path, *, decode: bool) -> ImageReader:
    with path.open("rb") as file:
        is_tiff = file.read(4) in _TIFF_SIGNATURES
    if needs_openslide(path):
        return stack.enter_context(open_whole_slide(path))
    um_per_px = None
    if is_tiff:
        with as_bad_input(path, "content", "a whole TIFF"):
            tiff = stack.enter_context(tifffile.TiffFile(path))
            level = tiff.series[0].levels[0]
            if level.keyframe.is_tiled:
                return TiledTiff(path, tiff)
            if _in_strips(level):
                return StripedTiff(path, tiff)
            um_per_px = scale_of_tiff(path, tiff)
    return _DecodedImage(path, stack.enter_context(_pillow(path, decode=decode)), um_per_px)


def _in_strips(level: Any) -> bool:
    """Return whether a level without tiles is larger than, or of colours that, Pillow decodes."""
    layout = layout_of(level)
    width, height = size_of(level)
    grey = level.keyframe.photometric not in (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR)
    large = width * height > MAX_DECODED_PIXELS
    return layout == "planes" or (layout is not None and (grey or large))


class _DecodedImage(ImageReader):
    """An image that Pillow holds decoded in memory."""

    def __init__(self, path: Path, image: Image.Image, um_per_px: float | None) -> None:
        super().__init__(path, [image.size], um_per_px)
        self._image = image

    def _read(self, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        return on_white(self._image.crop((x0, y0, x1, y1)))


@contextlib.contextmanager
def _pillow(path: Path, *, decode: bool) -> Iterator[Image.Image]:
    with contextlib.ExitStack() as stack:
        with as_bad_input(path, "content", f"a whole image ({', '.join(_FORMATS)})"):
            try:
                with _without_pillows_limit():
                    image = stack.enter_context(Image.open(path, formats=_FORMATS))
            except UnidentifiedImageError:
                found, expected = unquoted("no image"), f"an image ({', '.join(_FORMATS)})"
                raise BadInput(path, "content", found, expected) from None
            _check_pillow(path, image)
            if decode:
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
        found = unquoted(f"{width} x {height} = {width * height:,} pixels")
        expected = f"at most {MAX_DECODED_PIXELS:,}, or a TIFF of tiles or strips"
        raise BadInput(path, "size", found, expected, tiling_fix(path))
    check_declared(path, width, height)
    # Pillow opens 16-bit colour as mode RGB and keeps the high bytes; only the raw mode shows it
    deep = any(";16" in str(tile) for tile in getattr(image, "tile", ()))
    if deep or image.mode not in ("RGB", "RGBA", "P"):
        mode = f"16 bits a channel (mode {image.mode})" if deep else f"mode {image.mode}"
        raise BadInput(path, "colours", unquoted(mode), "8-bit RGB or RGBA", RGB_FIX)
    orientation = image.getexif().get(ORIENTATION, 1)
    if orientation != 1:
        raise BadInput(path, "orientation tag", orientation, "1, upright", UPRIGHT_FIX)
