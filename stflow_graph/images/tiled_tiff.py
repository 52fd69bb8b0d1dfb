"""TIFFs decoded window by window: tiled ones (SVS, OME-TIFF, generic pyramids) and large strips.

Colours may be interleaved or in planes. Three grey channels of 8 bits are read as red, green and
blue, with a warning: some programs export H&E without saying that it is RGB.
"""

from __future__ import annotations

import logging
import math
import shlex
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from stflow_graph.errors import BadInput, MissingDependency, as_bad_input, unquoted
from stflow_graph.images.reader import ImageReader, check_declared, on_white, usable_levels
from stflow_graph.images.scale import scale_of_tiff

ORIENTATION = 274  # the EXIF and TIFF tag; 1 is upright
UPRIGHT_FIX = "save the image upright, so that spot coordinates have one meaning"
RGB_FIX = "save the image as 8-bit RGB"
_MAX_TILE = 8192
# a level of the pyramid that is not tiled is decoded strip by strip: fine for a small one
_MAX_IN_STRIPS = 4096
_MAX_STRIP = 2**26  # pixels of a compressed strip, which is decoded whole
_CACHE = 2**28  # bytes of decoded strips that are kept
_PLANES = ("CYX", "SYX")
_GREY = (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.MINISWHITE)

logger = logging.getLogger(__name__)


class TiledTiff(ImageReader):
    """The levels of a tiled TIFF; tiles that the file leaves out are white."""

    def __init__(self, path: Path, tiff: tifffile.TiffFile) -> None:
        import zarr

        levels = tiff.series[0].levels
        _check_level(path, levels[0])
        width, height = size_of(levels[0])
        check_declared(path, width, height)
        self._planes = layout_of(levels[0]) == "planes"
        if levels[0].keyframe.photometric in _GREY:
            logger.warning("%s: three grey channels are read as red, green and blue", path)
        same = [level for level in levels if level.axes == levels[0].axes]
        sizes = [size_of(level) for level in same]
        usable = [i for i in usable_levels(sizes) if i == 0 or _is_usable(same[i])]
        for i in usable:
            _check_whole(path, same[i])
        super().__init__(path, [sizes[i] for i in usable], scale_of_tiff(path, tiff))
        places = [next(j for j, level in enumerate(levels) if level is same[i]) for i in usable]
        self._pixels: list[Any] = [
            zarr.open_array(tiff.aszarr(series=0, level=j, fillvalue=255), mode="r") for j in places
        ]
        self._read(0, 0, 0, 1, 1)  # a compression that is not supported shows here, not mid-way

    def _read(self, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        with as_bad_input(self.path, f"tiles around ({x0}, {y0})", "tiles that can be decoded"):
            try:
                window = self._decoded(level, x0, y0, x1, y1)
            except ValueError as error:
                if "imagecodecs" in str(error):
                    raise MissingDependency(
                        f"{self.path}: its tiles are compressed in a way that needs the package "
                        "imagecodecs. Fix: pip install imagecodecs"
                    ) from None
                raise
        return window if window.shape[2] == 3 else on_white(Image.fromarray(window))

    def _decoded(self, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Return the stored channels of a window, ``[y1 - y0, x1 - x0, 3 or 4]``."""
        if self._planes:
            return np.moveaxis(np.asarray(self._pixels[level][:, y0:y1, x0:x1]), 0, 2)
        return np.asarray(self._pixels[level][y0:y1, x0:x1])


class StripedTiff(TiledTiff):
    """A TIFF without tiles that is not decoded whole: mapped into memory, or strip by strip."""

    def __init__(self, path: Path, tiff: tifffile.TiffFile) -> None:
        page = tiff.series[0].levels[0].keyframe
        self._rows = int(page.rowsperstrip)
        self._strips: OrderedDict[int, np.ndarray] = OrderedDict()
        mapped = self._mapped(path)
        if mapped is None and self._rows * page.imagewidth > _MAX_STRIP:
            found = unquoted(f"{page.imagewidth} x {page.imagelength} px in one compressed piece")
            raise BadInput(path, "size", found, "tiles, or strips", tiling_fix(path))
        super().__init__(path, tiff)
        self._is_mapped = mapped is not None
        if mapped is not None:
            self._pixels[0] = mapped

    @staticmethod
    def _mapped(path: Path) -> np.ndarray | None:
        try:
            return tifffile.memmap(path, series=0, level=0, mode="r")
        except ValueError:  # compressed, or its pieces do not lie one after the other
            return None

    def _decoded(self, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        if level > 0 or getattr(self, "_is_mapped", False):
            return super()._decoded(level, x0, y0, x1, y1)
        strips = range(y0 // self._rows, -(-y1 // self._rows))
        rows = np.concatenate([self._strip(i) for i in strips])
        first = strips[0] * self._rows
        return rows[y0 - first : y1 - first, x0:x1]

    def _strip(self, i: int) -> np.ndarray:
        """Return a strip, one of those decoded last or decoded now."""
        if i not in self._strips:
            last = min((i + 1) * self._rows, self.size[1])
            strip = super()._decoded(0, 0, i * self._rows, self.size[0], last)
            while self._strips and (len(self._strips) + 1) * strip.nbytes > _CACHE:
                self._strips.popitem(last=False)
            self._strips[i] = strip
        self._strips.move_to_end(i)
        return self._strips[i]


def tiling_fix(path: Path) -> str:
    """Return the remedy for an image that is too large to be decoded whole."""
    source, target = (shlex.quote(str(p)) for p in (path, path.with_suffix(".tiled.tif")))
    return (
        f"convert it with libvips: vips tiffsave {source} {target} --tile --compression jpeg "
        "--Q 90 --bigtiff"
    )


def size_of(level: Any) -> tuple[int, int]:
    """Return width and height of a level."""
    return int(level.keyframe.imagewidth), int(level.keyframe.imagelength)


def layout_of(level: Any) -> str | None:
    """Return ``"interleaved"`` or ``"planes"`` for a level of 8-bit colours, else None."""
    photometric, shape = level.keyframe.photometric, level.shape
    colour = photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
    if level.dtype != np.uint8 or len(shape) != 3 or not (colour or photometric in _GREY):
        return None
    if level.axes == "YXS" and shape[2] in ((3, 4) if colour else (3,)):
        return "interleaved"
    return "planes" if level.axes in _PLANES and shape[0] == 3 else None


def _check_level(path: Path, level: Any) -> None:
    page = level.keyframe
    if layout_of(level) is None:
        found = unquoted(f"{page.photometric!r}, axes {level.axes} {level.shape}, {level.dtype}")
        raise BadInput(path, "colours", found, "8-bit RGB or RGBA", RGB_FIX)
    orientation = page.tags.valueof(ORIENTATION, default=1)
    if orientation != 1:
        raise BadInput(path, "orientation tag", int(orientation), "1, upright", UPRIGHT_FIX)
    if page.tilewidth * page.tilelength > _MAX_TILE**2:
        found = unquoted(f"{page.tilewidth} x {page.tilelength} px")
        raise BadInput(path, "tile", found, f"at most {_MAX_TILE} x {_MAX_TILE} px")


def _is_usable(level: Any) -> bool:
    page = level.keyframe
    small = page.tilewidth * page.tilelength <= _MAX_TILE**2
    in_strips = max(size_of(level)) <= _MAX_IN_STRIPS
    return layout_of(level) is not None and (small if page.is_tiled else in_strips)


def _check_whole(path: Path, level: Any) -> None:
    """Refuse a level that lacks tiles; those that a file leaves out are in its list, as empty."""
    pages = [page for page in level.pages if page is not None]
    listed = sum(len(page.dataoffsets) for page in pages)
    needed = math.prod(level.keyframe.chunked) * len(level.pages)
    if listed < needed:
        found = unquoted(f"{listed:,} for an image of {needed:,}")
        raise BadInput(path, "tiles", found, "a place for each tile", "copy it again")
    stored = path.stat().st_size
    places = [p for page in pages for p in zip(page.dataoffsets, page.databytecounts, strict=True)]
    end = max(map(sum, places), default=0)
    if end > stored:
        found = unquoted(f"truncated: {stored:,} of at least {end:,} bytes")
        raise BadInput(path, "content", found, "all tiles", "copy it again")
