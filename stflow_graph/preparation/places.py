"""Spots on an image: those of a table, or a grid over the tissue."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stflow_graph.errors import BadInput, count, unquoted
from stflow_graph.images.overlay import Overview
from stflow_graph.images.reader import ImageReader
from stflow_graph.images.tissue_mask import tissue_mask, tissue_share

logger = logging.getLogger(__name__)

Layout = Literal["square", "hexagonal"]
# of the overview along a patch's edge: the share of tissue is right within a few percent
_OVERVIEW_PX = 16
_MAX_OVERVIEW = 2**24  # pixels; memory must not grow with the slide
_MAX_PATCHES = 10_000_000  # of a grid, before tissue is looked for
# of the spots; more are a mistake of scale or orientation, unless the user knows better
MAX_OUTSIDE = 0.05
# of a patch, and of the spots; and by how much more of them lie on tissue with x and y exchanged
_SOME_TISSUE, _FEW_ON_TISSUE, _CLEARLY_MORE = 0.1, 0.5, 0.1
_ROW = {"square": 1.0, "hexagonal": math.sqrt(3) / 2}  # pitches from one row to the next


@dataclasses.dataclass(frozen=True)
class Places:
    """Spots of a slide, and the squares of the image that their patches show.

    Attributes:
        barcodes: N names.
        coords: ``[N, 2]`` centres, level-0 px (x, y).
        edge: of a square, level-0 px.
        um_per_px: micrometres per level-0 pixel.
        record: what is known of how they came to be.
        overview: of the image, where one was read for them.
    """

    barcodes: list[str]
    coords: np.ndarray
    edge: float
    um_per_px: float
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    overview: Overview | None = None

    def __len__(self) -> int:
        return len(self.barcodes)

    def digest(self) -> str:
        """Return the SHA-256 of names, centres and edge, as hex."""
        numbers = np.array([self.edge, self.um_per_px]).tobytes()
        names = "\n".join(self.barcodes).encode()
        centres = np.ascontiguousarray(self.coords, np.float64).tobytes()
        return hashlib.sha256(names + centres + numbers).hexdigest()


def grid_places(
    image: ImageReader,
    um_per_px: float,
    *,
    patch_um: float,
    pitch_um: float,
    layout: Layout = "square",
    min_tissue: float = 0.1,
) -> Places:
    """Return the points of a grid where there is tissue.

    The grid starts in the top-left corner, and the patches of its points lie inside the image; a
    point is named ``<row>x<column>``. Every other row of a hexagonal grid is shifted by half a
    pitch. Tissue is segmented by ``images.tissue_mask``.

    Args:
        image: the open image.
        um_per_px: micrometres per level-0 pixel.
        patch_um: edge of the area that a patch shows, µm.
        pitch_um: from one point to the next, µm.
        layout: ``"square"`` or ``"hexagonal"``.
        min_tissue: share of a patch that must be tissue, 0 .. 1; 0 keeps all.

    Raises:
        BadInput: an image smaller than a patch or without tissue, or a grid of too many points.
    """
    edge, pitch = patch_um / um_per_px, pitch_um / um_per_px
    steps = np.array([pitch, pitch * _ROW[layout]])
    n_columns, n_rows = (
        int((length - edge) // step) + 1 for length, step in zip(image.size, steps, strict=True)
    )
    if min(n_columns, n_rows) < 1:
        found = unquoted(f"{image.size[0]} x {image.size[1]} px of {um_per_px:.4g} µm")
        fix = "check the scale (--um-per-px)"
        raise BadInput(image.path, "size", found, f"at least one patch of {edge:.0f} px", fix)
    if n_columns * n_rows > _MAX_PATCHES:
        found = unquoted(f"a grid of {n_columns:,} x {n_rows:,} patches")
        fix = "a larger --pitch-um"
        raise BadInput(image.path, "pitch", found, f"at most {_MAX_PATCHES:,}", fix)
    rows, columns = (part.ravel() for part in np.mgrid[:n_rows, :n_columns])
    centres = edge / 2 + steps * np.stack([columns, rows], axis=1)
    if layout == "hexagonal":
        centres[rows % 2 == 1, 0] += pitch / 2
    inside = centres[:, 0] <= image.size[0] - edge / 2
    shrinkage = max(1.0, edge / _OVERVIEW_PX, math.sqrt(math.prod(image.size) / _MAX_OVERVIEW))
    overview = Overview(image.read_overview(shrinkage), shrinkage)
    mask = tissue_mask(overview.pixels, edge / shrinkage)
    share = tissue_share(mask, centres / shrinkage, edge / shrinkage)
    kept = np.flatnonzero(inside & (share >= min_tissue))
    if not len(kept):
        all_patches = count(int(inside.sum()), "patch", "patches")
        found = unquoted(f"0 of {all_patches} with {min_tissue:.0%} of it")
        raise BadInput(image.path, "tissue", found, "at least one", "lower --min-tissue")
    record = {
        "n_rows": n_rows,
        "n_columns": n_columns,
        "n_patches": len(kept),
        "tissue": float(mask.mean()),
    }
    barcodes = [f"{rows[i]}x{columns[i]}" for i in kept]
    return Places(barcodes, centres[kept], edge, um_per_px, record, overview)


def rows_inside(
    coords: np.ndarray,
    size: Sequence[int],
    file: str | Path,
    max_outside: float = MAX_OUTSIDE,
    option: str = "",
) -> np.ndarray:
    """Return the rows of the spots whose centres lie in the image; the others are logged.

    Args:
        coords: ``[N, 2]`` centres, level-0 px (x, y).
        size: width and height of the image, px.
        file: of the spots, for messages.
        max_outside: the share of them that may lie outside.
        option: the option of the command that sets it, for the message; "" if it has none.

    Raises:
        BadInput: a greater share of them lies outside, or all.
    """
    outside = _outside(coords, size)
    n_outside = int(outside.sum())
    if n_outside > max_outside * len(coords) or n_outside == len(coords):
        (left, top), (right, bottom) = coords.min(axis=0), coords.max(axis=0)
        found = unquoted(
            f"{n_outside} of {count(len(coords), 'spot')} outside the image: x {left:.0f} to "
            f"{right:.0f}, y {top:.0f} to {bottom:.0f}, image {size[0]} x {size[1]} px"
        )
        if _outside(coords[:, ::-1], size).any():
            fix = (
                "give positions in pixels of this image; these look like those of another "
                "resolution"
            )
            if option and n_outside < len(coords):
                fix += f"; or leave out more of them with {option}"
        else:
            fix = "swap x and y: exchanged, all lie inside"
        raise BadInput(file, "coordinates", found, "centres inside the image", fix)
    if n_outside:
        logger.warning(
            "%s: %d of %d spots lie outside the image and are left out",
            file,
            n_outside,
            len(coords),
        )
    return np.flatnonzero(~outside)


def warn_of_places(overview: Overview, coords: np.ndarray, edge: float, file: str | Path) -> None:
    """Log a warning where spots lie beside the tissue, or x and y look exchanged.

    Args:
        overview: of the image.
        coords: ``[N, 2]`` centres, level-0 px (x, y).
        edge: of the squares that patches show, level-0 px.
        file: of the spots, for the messages.
    """
    mask = tissue_mask(overview.pixels, edge / overview.shrinkage)

    def on_tissue(centres: np.ndarray) -> float:
        share = tissue_share(mask, centres / overview.shrinkage, edge / overview.shrinkage)
        return float((share >= _SOME_TISSUE).mean())

    share, exchanged = on_tissue(coords), 0.0
    size = overview.shrinkage * np.array(mask.shape[::-1])
    if not _outside(coords[:, ::-1], size.tolist()).any():
        exchanged = on_tissue(coords[:, ::-1])
    if exchanged > share + _CLEARLY_MORE:
        logger.warning(
            "%s: %.0f%% of the spots lie on tissue, %.0f%% with x and y exchanged: see the overlay",
            file,
            100 * share,
            100 * exchanged,
        )
    elif share < _FEW_ON_TISSUE:
        logger.warning(
            "%s: only %.0f%% of the spots lie on tissue: see the overlay", file, 100 * share
        )


def _outside(coords: np.ndarray, size: Sequence[int]) -> np.ndarray:
    return np.any((coords < 0) | (coords > np.array(size)), axis=1)
