"""Base class of image readers: windows, patches with sub-pixel corners, pyramid levels."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from stflow_graph.errors import BadInput, unquoted

# minimum reduction of the level that is read: one closer to the result's scale has lost detail that
# the kernel would keep (mean error 2.7 grey values instead of 0.7)
_MIN_SHRINKAGE = 2
_BLOCK = 4096  # edge of the blocks of an overview, px
# pixels per byte: compression reaches a third of it on white, and slides may leave tiles out
_MAX_PIXELS_PER_BYTE = 1700
_SMALL = 2**24  # pixels


class ImageReader(abc.ABC):
    """Windows of one RGB image.

    Pixel ``i`` of an axis covers the interval ``[i, i + 1)``; at a level with downsample s it
    covers ``[s i, s (i + 1))`` of level 0.

    Attributes:
        path: the image file.
        size: width and height at full resolution (level 0), px.
        sizes: width and height of each level, px.
        downsamples: pixels of level 0 per pixel of each level, along x and y.
        um_per_px: micrometres per pixel of level 0 in the metadata, None if absent.
    """

    def __init__(
        self, path: Path, sizes: Sequence[tuple[int, int]], um_per_px: float | None = None
    ) -> None:
        self.path = path
        self.sizes = list(sizes)
        self.size = self.sizes[0]
        self.downsamples = [
            (_downsample(self.size[0], width), _downsample(self.size[1], height))
            for width, height in self.sizes
        ]
        self.um_per_px = um_per_px

    @abc.abstractmethod
    def _read(self, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Return the pixels of a window inside a level, ``[y1 - y0, x1 - x0, 3]`` uint8."""

    def read_window(self, x: int, y: int, width: int, height: int, level: int = 0) -> np.ndarray:
        """Return a window as ``[height, width, 3]`` uint8, white outside the image.

        Args:
            x: left edge, px of the level.
            y: top edge, px of the level.
            width: px of the level.
            height: px of the level.
            level: of the pyramid; 0 is full resolution.
        """
        size = self.sizes[level]
        x0, x1 = (min(max(v, 0), size[0]) for v in (x, x + width))
        y0, y1 = (min(max(v, 0), size[1]) for v in (y, y + height))
        if (x1 - x0, y1 - y0) == (width, height):
            return self._read(level, x0, y0, x1, y1)
        window = np.full((height, width, 3), 255, dtype=np.uint8)
        if x1 > x0 and y1 > y0:
            window[y0 - y : y1 - y, x0 - x : x1 - x] = self._read(level, x0, y0, x1, y1)
        return window

    def read_patch(self, x: float, y: float, edge: float, size: int) -> np.ndarray:
        """Return the square around a point, resampled to ``[size, size, 3]`` uint8.

        The square's corners may lie between pixels. Bicubic resampling (Keys 1981, a = -1/2); the
        kernel widens with the scale when the square shrinks, so nothing aliases. Of a pyramid, this
        reads the smallest level that is at least twice as fine as the result.

        Args:
            x: centre, px of level 0.
            y: centre, px of level 0.
            edge: edge of the square, px of level 0.
            size: edge of the result, px.
        """
        half = edge / 2
        return self._resample((x - half, y - half, x + half, y + half), (size, size))

    def read_overview(
        self, shrinkage: float, box: tuple[int, int, int, int] | None = None
    ) -> np.ndarray:
        """Return the image reduced, ``[height, width, 3]`` uint8, read in blocks.

        Args:
            shrinkage: pixels of level 0 per pixel of the result, at least 1.
            box: left, top, right and bottom edge, level-0 px; None: the whole image.
        """
        x0, y0, x1, y1 = box or (0, 0, *self.size)
        width, height = (math.ceil(length / shrinkage) for length in (x1 - x0, y1 - y0))
        overview = np.empty((height, width, 3), dtype=np.uint8)
        block = max(1, int(_BLOCK * self.downsamples[self._level(shrinkage)][0] / shrinkage))
        for top in range(0, height, block):
            for left in range(0, width, block):
                right, bottom = min(left + block, width), min(top + block, height)
                low = x0 + left * shrinkage, y0 + top * shrinkage
                high = x0 + right * shrinkage, y0 + bottom * shrinkage
                shape = (right - left, bottom - top)
                overview[top:bottom, left:right] = self._resample((*low, *high), shape)
        return overview

    def _resample(
        self, box: tuple[float, float, float, float], shape: tuple[int, int]
    ) -> np.ndarray:
        """Return a box of level 0 (left, top, right, bottom) as an image (width, height)."""
        level = self._level(min((box[2] - box[0]) / shape[0], (box[3] - box[1]) / shape[1]))
        spans, inner = [], []
        for axis in (0, 1):
            low, high = (box[i] / self.downsamples[level][axis] for i in (axis, axis + 2))
            # reach of the bicubic kernel beyond the box
            margin = 2 * max(1.0, (high - low) / shape[axis]) + 1
            first, last = _span(low, high, margin, self.sizes[level][axis])
            spans.append((first, last - first))
            inner.append((low - first, high - first))
        (x, width), (y, height) = spans
        window = Image.fromarray(self.read_window(x, y, width, height, level))
        (left, right), (top, bottom) = inner
        resampled = window.resize(shape, Image.Resampling.BICUBIC, box=(left, top, right, bottom))
        return np.asarray(resampled)

    def _level(self, shrinkage: float) -> int:
        limit = 1.001 * shrinkage / _MIN_SHRINKAGE
        fitting = [i for i, steps in enumerate(self.downsamples) if max(steps) <= limit]
        return max(fitting, key=lambda i: max(self.downsamples[i]), default=0)


def check_declared(path: Path, width: int, height: int) -> None:
    """Refuse an image that states many more pixels than its file can hold.

    Raises:
        BadInput: it does.
    """
    stored = path.stat().st_size
    if width * height > _SMALL + _MAX_PIXELS_PER_BYTE * stored:
        found = unquoted(f"{width} x {height} pixels in {stored:,} bytes")
        raise BadInput(path, "size", found, "an image with content")


def usable_levels(sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Return the levels of a file that show the whole image; 0 is always one.

    Args:
        sizes: width and height of each level, px.
    """
    width, height = sizes[0]
    return [0] + [
        i
        for i, (w, h) in enumerate(sizes)
        if 0 < w < width and h > 0 and abs(height * w / width - h) <= 1 + 0.01 * h
    ]


def _downsample(full: int, part: int) -> float:
    """Return the step that made ``part`` pixels of ``full``; the remainder is cut off or filled."""
    ratio = full / part
    for step in (2 ** round(math.log2(ratio)), round(ratio)):
        if abs(full / step - part) < 1:
            return float(step)
    return ratio


def _span(low: float, high: float, margin: float, length: int) -> tuple[int, int]:
    # the margin stops at the image's edge: white beyond it must not bleed into a patch inside
    first = max(math.floor(low - margin), min(0, math.floor(low)))
    last = min(math.ceil(high + margin), max(length, math.ceil(high)))
    return first, last


def on_white(image: Image.Image) -> np.ndarray:
    """Return an image as ``[height, width, 3]`` uint8, transparency laid on white."""
    if image.mode == "RGB":
        return np.asarray(image)
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return np.asarray(white)
