"""Cutting patches out of an open image into a patch file, for spots and for grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.images.reader import ImageReader
from stflow_graph.io.hdf5 import open_h5
from stflow_graph.io.patches import write_patches

# of the area that a patch shows, level-0 px: outside this range, um_per_px is a mistake
_MIN_EDGE, _MAX_EDGE = 8, 8192
_BATCH_BYTES = 16 * 2**20

Progress = Callable[[str, int, int], None]


def check_scale(um_per_px: float | None, patch_um: float, image: str | Path) -> float:
    """Return the micrometres per pixel if patches of ``patch_um`` have a sensible width.

    Raises:
        BadInput: unknown, not positive, or patches under 8 or over 8192 pixels wide.
    """
    if um_per_px is None or not (np.isfinite(um_per_px) and um_per_px > 0):
        fix = "give the micrometres per pixel of this image (--um-per-px)"
        found = unquoted("none in the file") if um_per_px is None else um_per_px
        raise BadInput(image, "um_per_px", found, "a positive number", fix)
    edge = patch_um / um_per_px
    if not _MIN_EDGE <= edge <= _MAX_EDGE:
        found = unquoted(f"{um_per_px:g}, so a patch of {patch_um:g} µm is {edge:.4g} px wide")
        raise BadInput(image, "um_per_px", found, f"{_MIN_EDGE} to {_MAX_EDGE} px")
    return um_per_px


def cut_patches(
    path: str | Path,
    read: Callable[[int, int], np.ndarray],
    barcodes: Sequence[str],
    coords: np.ndarray,
    edge: float,
    record: dict[str, Any],
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> None:
    """Write the patches around points of an image, batch by batch.

    Args:
        path: the patch file.
        read: returns the patches of the points ``first`` to ``last - 1``, ``[B, P, P, 3]``.
        barcodes: N names.
        coords: ``[N, 2]`` centres, level-0 px (x, y).
        edge: of the area that a patch shows, level-0 px.
        record: attributes of the file, for provenance; ``slide``, ``patch_px`` (edge of a stored
            patch) and ``um_per_px`` among them.
        progress: called with the slide's name, the patches written and all its patches.
        check: called when all patches are read; what it raises keeps the file from being written.
    """
    size, n = record["patch_px"], len(barcodes)
    batch = max(1, _BATCH_BYTES // (3 * size**2))
    with write_patches(
        path,
        barcodes,
        coords,
        size=size,
        size_level0=edge,
        um_per_px=record["um_per_px"],
        attrs=record,
    ) as writer:
        for start in range(0, n, batch):
            writer.append(read(start, min(start + batch, n)))
            if progress is not None:
                progress(record["slide"], writer.written, n)
        if check is not None:
            check()


def patch_reader(
    image: ImageReader, coords: np.ndarray, edge: float, size: int
) -> Callable[[int, int], np.ndarray]:
    """Return the ``read`` of :func:`cut_patches` for an open image.

    Args:
        image: the open image.
        coords: ``[N, 2]`` centres, level-0 px (x, y).
        edge: of the area that a patch shows, level-0 px.
        size: edge of a stored patch, px.
    """
    return lambda first, last: np.stack(
        [image.read_patch(x, y, edge, size) for x, y in coords[first:last]]
    )


def up_to_date_record(
    file: Path, read: Callable[[Path], dict[str, Any]], request: dict[str, Any]
) -> dict[str, Any] | None:
    """Return the record of an output that exists and fits the request, None if it does not exist.

    Args:
        file: the output.
        read: reads its record.
        request: the required part of the record: hashes of the inputs, and settings.

    Raises:
        BadInput: it exists and was made in another way.
    """
    if not file.exists():
        return None
    try:
        record = read(file)
    except BadInput:
        record = {}
    # an input that was read then and is missing now makes another slide, too
    hashes = [key for key, value in record.items() if key.endswith("_sha256") and value]
    keys = dict.fromkeys([*request, *hashes])
    changed = [key for key in keys if record.get(key) != request.get(key)]
    if changed:
        found = unquoted("a file made with another " + ", ".join(changed))
        fix = "give --overwrite to replace it, or another --out"
        raise BadInput(file, "output", found, "no file, or one made from these inputs", fix)
    return record


def patches_record(path: Path) -> dict[str, Any]:
    """Return the attributes of a patch file, which record how it was made."""
    with open_h5(path) as file:
        return {key: np.asarray(value).tolist() for key, value in file.attrs.items()}
