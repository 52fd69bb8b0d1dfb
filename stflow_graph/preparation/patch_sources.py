"""Where patches to embed come from: a patch file, or the image itself, a batch at a time.

What reads a batch is sent to other processes, so it opens the file for itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from stflow_graph.images.open import open_image
from stflow_graph.images.reader import ImageReader
from stflow_graph.io.patches import CENTRE, read_images
from stflow_graph.preparation.cut_patches import patch_reader
from stflow_graph.preparation.places import Places

_NO_HASHES: Mapping[str, str] = {}


class PatchSource(Protocol):
    """The patches of a slide.

    Attributes:
        slide: its name.
        file: of the patches or of the image.
        barcodes: N names.
        coords: ``[N, 2]`` level-0 px (x, y).
        convention: of ``coords``, see ``io.patches``.
        um_per_px: micrometres per level-0 pixel, None if unknown.
        edge: of the area that a patch shows, level-0 px, None if unknown.
        hashes: what identifies the patches, by names of attributes of the embedding file.
    """

    @property
    def slide(self) -> str: ...  # noqa: D102
    @property
    def file(self) -> Path: ...  # noqa: D102
    @property
    def barcodes(self) -> list[str]: ...  # noqa: D102
    @property
    def coords(self) -> np.ndarray: ...  # noqa: D102
    @property
    def convention(self) -> str | None: ...  # noqa: D102
    @property
    def um_per_px(self) -> float | None: ...  # noqa: D102
    @property
    def edge(self) -> float | None: ...  # noqa: D102
    @property
    def hashes(self) -> Mapping[str, str]: ...  # noqa: D102

    def reading(self, start: int, stop: int) -> Callable[[], np.ndarray]:
        """Return what reads the patches of some rows, ``[B, P, P, 3]`` uint8, in any process."""
        ...


@dataclasses.dataclass(frozen=True)
class StoredPatches:
    """The patches of a patch file; see :class:`PatchSource`."""

    file: Path
    barcodes: list[str]
    coords: np.ndarray
    convention: str | None = None
    um_per_px: float | None = None
    edge: float | None = None
    hashes: Mapping[str, str] = dataclasses.field(default_factory=lambda: _NO_HASHES)

    @property
    def slide(self) -> str:
        """See :class:`PatchSource`."""
        return self.file.stem

    def reading(self, start: int, stop: int) -> Callable[[], np.ndarray]:
        """See :class:`PatchSource`."""
        return functools.partial(read_images, self.file, start, stop)


@dataclasses.dataclass(frozen=True)
class ImagePatches:
    """Patches that are cut from an image when they are needed; see :class:`PatchSource`.

    Attributes:
        slide: its name.
        file: the image.
        places: its spots.
        size: edge of a patch, px.
        image_sha256: of the image's bytes.
        image: the image, where it is open in this process and all reading is done here; None
            opens it in every process that reads.
    """

    slide: str
    file: Path
    places: Places
    size: int
    image_sha256: str
    image: ImageReader | None = None

    @property
    def barcodes(self) -> list[str]:
        """See :class:`PatchSource`."""
        return self.places.barcodes

    @property
    def coords(self) -> np.ndarray:
        """See :class:`PatchSource`."""
        return self.places.coords

    @property
    def convention(self) -> str:
        """See :class:`PatchSource`."""
        return CENTRE

    @property
    def um_per_px(self) -> float:
        """See :class:`PatchSource`."""
        return self.places.um_per_px

    @property
    def edge(self) -> float:
        """See :class:`PatchSource`."""
        return self.places.edge

    @property
    def hashes(self) -> Mapping[str, str]:
        """See :class:`PatchSource`."""
        places = f"{self.places.digest()}/{self.size}"
        return {"image_sha256": self.image_sha256, "places_sha256": places}

    def reading(self, start: int, stop: int) -> Callable[[], np.ndarray]:
        """See :class:`PatchSource`."""
        centres, edge = self.places.coords[start:stop], self.places.edge
        if self.image is not None:
            read = patch_reader(self.image, centres, edge, self.size)
            return functools.partial(read, 0, len(centres))
        return functools.partial(_cut_from_file, self.file, centres, edge, self.size)


def _cut_from_file(file: Path, centres: np.ndarray, edge: float, size: int) -> np.ndarray:
    return patch_reader(_opened(file), centres, edge, size)(0, len(centres))


@functools.lru_cache(maxsize=1)
def _opened(file: Path) -> ImageReader:
    """Return an image that stays open until another is, or the process ends."""
    _still_open.close()
    return _still_open.enter_context(open_image(file))


_still_open = contextlib.ExitStack()
