"""Whole-slide images of scanners' own formats (MRXS, NDPI, SCN, ...), read by OpenSlide.

SVS, OME-TIFF and other tiled TIFFs are read without it, see ``images.tiled_tiff``, so their pixels
do not depend on whether OpenSlide is installed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from stflow_graph.errors import MissingDependency, as_bad_input
from stflow_graph.images.reader import ImageReader, on_white, usable_levels
from stflow_graph.images.scale import scale_of_openslide

if TYPE_CHECKING:
    import openslide

# formats that only OpenSlide reads here
_SUFFIXES = (".mrxs", ".ndpi", ".vms", ".vmu", ".scn", ".svslide", ".bif", ".czi", ".dcm")
_PLAIN_TIFF = (None, "aperio", "generic-tiff")


class WholeSlide(ImageReader):
    """The levels of an open slide; regions without a scan are white.

    Coordinates are OpenSlide's: of an MRXS file they count from the corner of the whole glass.
    """

    def __init__(self, path: Path, slide: openslide.OpenSlide) -> None:
        self._slide = slide
        self._levels = usable_levels(slide.level_dimensions)
        sizes = [slide.level_dimensions[i] for i in self._levels]
        super().__init__(path, sizes, scale_of_openslide(path, slide.properties))

    def _read(self, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        stored = self._levels[level]
        step = self._slide.level_downsamples[stored]  # OpenSlide's own, by which it finds pixels
        corner = (round(x0 * step), round(y0 * step))
        with as_bad_input(self.path, f"region at {corner}", "a region that can be decoded"):
            return on_white(self._slide.read_region(corner, stored, (x1 - x0, y1 - y0)))


def needs_openslide(path: Path) -> bool:
    """Return whether an image is of a scanner's own format.

    Raises:
        MissingDependency: by its name it is, and OpenSlide is not installed.
    """
    openslide = _openslide()
    if openslide is None:
        if path.suffix.lower() not in _SUFFIXES:
            return False
        raise MissingDependency(
            f"{path}: {path.suffix} slides are read by OpenSlide. "
            "Fix: pip install 'stflow-graph[wsi]', or convert the slide to a tiled TIFF"
        )
    with as_bad_input(path, "content", "an image"):
        return openslide.OpenSlide.detect_format(path) not in _PLAIN_TIFF


@contextlib.contextmanager
def open_whole_slide(path: Path) -> Iterator[WholeSlide]:
    """Open a slide for which :func:`needs_openslide` holds.

    Raises:
        BadInput: damaged, or its pixels are not square.
    """
    openslide = _openslide()
    assert openslide is not None
    with contextlib.ExitStack() as stack:
        with as_bad_input(path, "content", "a whole slide that OpenSlide can read"):
            slide = stack.enter_context(openslide.OpenSlide(path))
        yield WholeSlide(path, slide)


def _openslide() -> ModuleType | None:
    try:
        import openslide
    except (ImportError, OSError):  # OSError: the package without its library
        return None
    return openslide
