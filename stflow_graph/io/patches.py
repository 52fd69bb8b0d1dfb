"""Patch files in HEST-bench's layout: ``img``, ``barcode``, ``coords``."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from stflow_graph.errors import BadInput
from stflow_graph.io.hdf5 import dataset, number_of, open_h5
from stflow_graph.io.spot_rows import RowWriter, read_positions, write_rows

FORMAT = "stflow_graph.patches/1"
CENTRE = "centre"
TOP_LEFT = "top-left"


@dataclasses.dataclass(frozen=True)
class PatchFile:
    """An open patch file; images are read by slices.

    Attributes:
        path: the file.
        images: dataset ``[N, P, P, 3]`` uint8.
        barcodes: N names.
        coords: ``[N, 2]`` float64, level-0 pixels (x, y).
        convention: of ``coords``: ``"centre"``, ``"top-left"``, or None if not stated.
        um_per_px: micrometres per level-0 pixel, None if unknown.
        size_level0: edge of a patch, level-0 pixels, None if unknown.
    """

    path: Path
    images: h5py.Dataset
    barcodes: list[str]
    coords: np.ndarray
    convention: str | None
    um_per_px: float | None
    size_level0: float | None = None

    def __len__(self) -> int:
        return len(self.barcodes)


@contextlib.contextmanager
def open_patches(path: str | Path) -> Iterator[PatchFile]:
    """Open and validate a patch file.

    Raises:
        BadInput: keys missing, shapes that do not fit, images that are not ``[N, P, P, 3]`` uint8,
            zero spots, duplicated barcodes, coordinates not finite.
    """
    with open_h5(path) as file:
        images = dataset(file, ["img"])
        if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
            raise BadInput(path, "img", images.shape, "(N, height, width, 3)")
        if images.dtype != np.uint8:
            raise BadInput(path, "img", str(images.dtype), "uint8")
        barcodes, coords = read_positions(file, "img", len(images))
        yield PatchFile(
            Path(path),
            images,
            barcodes,
            coords,
            _convention(file),
            _positive(images, "um_per_px_level0", "pixel_size"),
            _positive(images, "patch_size_src"),
        )


def read_images(path: str | Path, start: int, stop: int) -> np.ndarray:
    """Read consecutive images of a patch file, which is opened for them: for prefetching workers.

    Returns:
        ``[B, P, P, 3]`` uint8.
    """
    with open_h5(path, check=False) as file:
        return dataset(file, ["img"])[start:stop]


def _convention(file: h5py.File) -> str | None:
    text = str({**file.attrs, **file["coords"].attrs}.get("convention", "")).lower()
    if "cent" in text:
        return CENTRE
    return TOP_LEFT if "left" in text or "corner" in text else None


def _positive(images: h5py.Dataset, *keys: str) -> float | None:
    """Return the first of several attributes that is a positive number."""
    for key in keys:
        value = number_of(images.attrs, key)
        if value is not None and value > 0:
            return value
    return None


@contextlib.contextmanager
def write_patches(
    path: str | Path,
    barcodes: Sequence[str],
    coords: np.ndarray,
    *,
    size: int,
    size_level0: float,
    um_per_px: float,
    attrs: dict[str, str | float] | None = None,
) -> Iterator[RowWriter]:
    """Write a patch file atomically; the body appends all N images in order.

    Args:
        path: the final path.
        barcodes: N names.
        coords: ``[N, 2]`` patch centres in level-0 pixels (x, y).
        size: edge of a stored patch, px.
        size_level0: edge of a patch, level-0 px.
        um_per_px: micrometres per level-0 pixel.
        attrs: further attributes of the file, for provenance.

    Raises:
        RuntimeError: the body appended fewer or more than N images.
    """
    with write_rows(
        path,
        barcodes,
        coords,
        keys=("barcode", "img"),
        row_shape=(size, size, 3),
        format=FORMAT,
        dtype=np.uint8,
        chunks=(1, size, size, 3),
        compression="gzip",
        compression_opts=1,
    ) as writer:
        writer.file["coords"].attrs["convention"] = CENTRE
        writer.file["img"].attrs.update(
            patch_size_src=size_level0,
            patch_size_target=size,
            downsample=size_level0 / size,
            pixel_size=um_per_px,
        )
        writer.attrs.update(attrs or {})
        yield writer
