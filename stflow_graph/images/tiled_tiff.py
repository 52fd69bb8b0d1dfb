"""Tiled TIFFs (SVS, OME-TIFF and generic pyramids too), decoded window by window."""

from __future__ import annotations

import math
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


class TiledTiff(ImageReader):
    """The levels of a tiled TIFF; tiles that the file leaves out are white."""

    def __init__(self, path: Path, tiff: tifffile.TiffFile) -> None:
        import zarr

        levels = tiff.series[0].levels
        _check_level(path, levels[0])
        check_declared(path, levels[0].shape[1], levels[0].shape[0])
        sizes = [(level.shape[1], level.shape[0]) for level in levels if level.axes == "YXS"]
        usable = [i for i in usable_levels(sizes) if i == 0 or _is_usable(levels[i])]
        for i in usable:
            _check_whole(path, levels[i].keyframe)
        super().__init__(path, [sizes[i] for i in usable], scale_of_tiff(path, tiff))
        self._pixels = [
            zarr.open_array(tiff.aszarr(series=0, level=i, fillvalue=255), mode="r") for i in usable
        ]
        self._read(0, 0, 0, 1, 1)  # a compression that is not supported shows here, not mid-way

    def _read(self, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        with as_bad_input(self.path, f"tiles around ({x0}, {y0})", "tiles that can be decoded"):
            try:
                window = np.asarray(self._pixels[level][y0:y1, x0:x1])
            except ValueError as error:
                if "imagecodecs" in str(error):
                    raise MissingDependency(
                        f"{self.path}: its tiles are compressed in a way that needs the package "
                        "imagecodecs. Fix: pip install imagecodecs"
                    ) from None
                raise
        return window if window.shape[2] == 3 else on_white(Image.fromarray(window))


def _check_level(path: Path, level: Any) -> None:
    page = level.keyframe
    if not _is_rgb(level):
        found = unquoted(f"{page.photometric!r}, axes {level.axes} {level.shape}, {level.dtype}")
        raise BadInput(path, "colours", found, "8-bit RGB or RGBA (axes YXS)", RGB_FIX)
    orientation = page.tags.valueof(ORIENTATION, default=1)
    if orientation != 1:
        raise BadInput(path, "orientation tag", int(orientation), "1, upright", UPRIGHT_FIX)
    if page.tilewidth * page.tilelength > _MAX_TILE**2:
        found = unquoted(f"{page.tilewidth} x {page.tilelength} px")
        raise BadInput(path, "tile", found, f"at most {_MAX_TILE} x {_MAX_TILE} px")


def _is_rgb(level: Any) -> bool:
    rgb = level.keyframe.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
    return bool(
        rgb and level.axes == "YXS" and level.shape[2] in (3, 4) and level.dtype == np.uint8
    )


def _is_usable(level: Any) -> bool:
    page = level.keyframe
    small = page.tilewidth * page.tilelength <= _MAX_TILE**2
    in_strips = max(level.shape[:2]) <= _MAX_IN_STRIPS
    return _is_rgb(level) and (small if page.is_tiled else in_strips)


def _check_whole(path: Path, page: Any) -> None:
    """Refuse a level that lacks tiles; those that a file leaves out are in its list, as empty."""
    listed, needed = len(page.dataoffsets), math.prod(page.chunked)
    if listed < needed:
        found = unquoted(f"{listed:,} for an image of {needed:,}")
        raise BadInput(path, "tiles", found, "a place for each tile", "copy it again")
    stored = path.stat().st_size
    end = max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True)), default=0)
    if end > stored:
        found = unquoted(f"truncated: {stored:,} of at least {end:,} bytes")
        raise BadInput(path, "content", found, "all tiles", "copy it again")
