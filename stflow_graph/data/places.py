"""Corners or centres: what a file's coordinates are, told by the places of the same spots.

HEST's patch files hold the top-left corners of patches, its .h5ad files the centres of the same
spots; other tools hold centres in both. Where a slide has both files the difference tells.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stflow_graph.io.expression import read_places
from stflow_graph.io.patches import CENTRE, TOP_LEFT, PatchFile

_ROUNDING = 2.0  # px; both files are rounded, HEST's to whole halves of a patch

logger = logging.getLogger(__name__)


class Placed(NamedTuple):
    """Coordinates and what they are.

    Attributes:
        coords: ``[N, 2]`` level-0 pixels (x, y).
        convention: ``"centre"``, or None where nothing tells.
    """

    coords: np.ndarray
    convention: str | None


def to_centres(
    coords: np.ndarray,
    centres: np.ndarray,
    *,
    file: str | Path,
    other: str | Path,
    size: float | None = None,
    stated: str | None = None,
) -> Placed:
    """Return coordinates as centres, judged by known centres of the same spots.

    The difference must be the same for all spots: none for centres, half a patch along both axes
    for top-left corners. Any other is warned of with its size, and the coordinates stay.

    Args:
        coords: ``[N, 2]`` level-0 pixels (x, y).
        centres: ``[N, 2]`` of the same spots.
        file: where ``coords`` are from, for the warning.
        other: where ``centres`` are from.
        size: edge of a patch, level-0 px; None takes any equal difference along both axes.
        stated: what the file says its coordinates are; only our two words are understood.
    """
    offset = np.median(centres - coords, axis=0)
    spread = float(np.abs(centres - coords - offset).max())
    tolerance = _ROUNDING if size is None else min(_ROUNDING, size / 8)
    half = offset.mean() if size is None else size / 2
    found = None
    if spread <= tolerance:
        if np.abs(offset).max() <= tolerance:
            found = CENTRE
        elif half > 0 and np.abs(offset - half).max() <= tolerance:
            found = TOP_LEFT
    if found is None:
        logger.warning(
            "%s: coords: the spots' centres in %s lie %+.0f, %+.0f px away (median; the others up "
            "to %.0f px from that), neither 0 nor half a patch; they stay as they are",
            *(file, other, *offset, spread),
        )
        return Placed(coords, None)
    if stated in (CENTRE, TOP_LEFT) and stated != found:
        logger.warning(
            "%s: coords: stated as %s, but the spots' centres in %s lie %+.0f, %+.0f px away, so "
            "they are taken as %s",
            *(file, stated, other, *offset, found),
        )
    return Placed(coords + offset if found == TOP_LEFT else coords, CENTRE)


def patch_centres(patches: PatchFile) -> Placed:
    """Return the centres of a file's patches.

    What is in ``adata/<slide>.h5ad`` beside the folder of the patches decides, then what the
    file says of itself. Where nothing tells, the coordinates stay and a warning says so.

    Args:
        patches: the open file.
    """
    expression = patches.path.parent.parent / "adata" / f"{patches.path.stem}.h5ad"
    measured = _measured(patches, expression) if expression.is_file() else None
    if measured is not None:
        return measured
    if patches.convention == CENTRE:
        return Placed(patches.coords, CENTRE)
    if patches.convention == TOP_LEFT and patches.size_level0 is not None:
        return Placed(patches.coords + patches.size_level0 / 2, CENTRE)
    logger.warning(
        "%s: coords: nothing tells whether they are centres or corners of patches; kept as they "
        "are (%s would tell)",
        patches.path,
        expression,
    )
    return Placed(patches.coords, None)


def _measured(patches: PatchFile, expression: Path) -> Placed | None:
    """Return the centres if the places of the expression tell them."""
    places = read_places(expression)
    if places is None:
        return None
    barcodes, centres = places
    row = {barcode: i for i, barcode in enumerate(barcodes)}
    common = [i for i, barcode in enumerate(patches.barcodes) if barcode in row]
    if not common:
        return None
    coords = patches.coords[common]
    placed = to_centres(
        coords,
        centres[[row[patches.barcodes[i]] for i in common]],
        file=patches.path,
        other=expression,
        size=patches.size_level0,
        stated=patches.convention,
    )
    # the same step for spots without expression
    step = np.median(placed.coords - coords, axis=0)
    return None if placed.convention is None else Placed(patches.coords + step, CENTRE)
