"""Cutting patches out of an open image: what ``prepare`` and ``tissue_grid`` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stflow_graph.errors import BadInput, plain
from stflow_graph.io.image_reader import ImageReader
from stflow_graph.io.patches import write_patches

# of the area that a patch shows, level-0 px: beyond these, um_per_px is a mistake
_LEAST_EDGE, _LARGEST_EDGE = 8, 8192
_BATCH_BYTES = 16 * 2**20

Progress = Callable[[str, int, int], None]


def check_scale(um_per_px: float | None, patch_um: float, image: str | Path) -> float:
    """Return the micrometres per pixel if patches of ``patch_um`` have a sensible width.

    Raises:
        BadInput: unknown, not positive, or patches under 8 or over 8192 pixels wide.
    """
    if um_per_px is None or not (np.isfinite(um_per_px) and um_per_px > 0):
        fix = "give the micrometres per pixel of this image"
        raise BadInput(image, "um_per_px", um_per_px, "a positive number", fix)
    edge = patch_um / um_per_px
    if not _LEAST_EDGE <= edge <= _LARGEST_EDGE:
        found = plain(f"{um_per_px:g}, so a patch of {patch_um:g} µm is {edge:.4g} px wide")
        raise BadInput(image, "um_per_px", found, f"{_LEAST_EDGE} to {_LARGEST_EDGE} px")
    return um_per_px


def cut_patches(
    path: str | Path,
    reader: ImageReader,
    barcodes: Sequence[str],
    coords: np.ndarray,
    edge: float,
    record: dict[str, Any],
    progress: Progress | None = None,
) -> None:
    """Write the patches around the given points of an image, batch by batch.

    Args:
        path: the patch file.
        reader: the image.
        barcodes: N names.
        coords: ``[N, 2]`` centres, level-0 px (x, y).
        edge: of the area that a patch shows, level-0 px.
        record: attributes of the file, for provenance; ``slide``, ``patch_px`` (edge of a stored
            patch) and ``um_per_px`` among them.
        progress: called with the slide's name, the patches written and all its patches.
    """
    size = record["patch_px"]
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
        for start in range(0, len(coords), batch):
            centres = coords[start : start + batch]
            writer.append(np.stack([reader.read_patch(x, y, edge, size) for x, y in centres]))
            if progress is not None:
                progress(record["slide"], writer.written, len(coords))
