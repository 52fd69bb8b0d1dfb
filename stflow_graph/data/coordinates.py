"""Corner or centre coordinates, detected by comparison with the positions of the same spots.

HEST's patch files hold the top-left corners of patches, its .h5ad files the centres of the same
spots; other tools store centres in both. The difference decides for a slide with both files.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stflow_graph.data.barcodes import common_rows
from stflow_graph.io.expression import read_positions
from stflow_graph.io.patches import CENTRE, TOP_LEFT, PatchFile

_ROUNDING = 2.0  # px; both files are rounded, HEST's to whole halves of a patch

logger = logging.getLogger(__name__)


class Placed(NamedTuple):
    """Coordinates and their convention.

    Attributes:
        coords: ``[N, 2]`` level-0 pixels (x, y).
        convention: ``"centre"``, or None if it is unknown.
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
    """Return coordinates as centres, by comparison with the centres of the same spots.

    The difference must be the same for all spots: none for centres, half a patch along both axes
    for top-left corners. Any other is logged as a warning, and the coordinates stay.

    Args:
        coords: ``[N, 2]`` level-0 pixels (x, y).
        centres: ``[N, 2]`` of the same spots.
        file: source of ``coords``, for the warning.
        other: source of ``centres``.
        size: edge of a patch, level-0 px; None accepts any equal difference along both axes, unless
            the file states centres.
        stated: the convention that the file states; a difference is logged as a warning.
    """
    offset = np.median(centres - coords, axis=0)
    spread = float(np.abs(centres - coords - offset).max())
    tolerance = _ROUNDING if size is None else min(_ROUNDING, size / 8)
    half = offset.mean() if size is None else size / 2
    convention = None
    if spread <= tolerance:
        if np.abs(offset).max() <= tolerance:
            convention = CENTRE
        elif size is None and stated == CENTRE:
            pass  # any shift is possible, and nothing tells half a patch
        elif half > 0 and np.abs(offset - half).max() <= tolerance:
            convention = TOP_LEFT
    if convention is None:
        logger.warning(
            "%s: coords: the spots' centres in %s lie %+.0f, %+.0f px away (median; the others up "
            "to %.0f px from that), neither 0 nor half a patch; they stay as they are",
            *(file, other, *offset, spread),
        )
        return Placed(coords, None)
    if stated in (CENTRE, TOP_LEFT) and stated != convention:
        logger.warning(
            "%s: coords: stated as %s, but the spots' centres in %s lie %+.0f, %+.0f px away, so "
            "they are taken as %s",
            *(file, stated, other, *offset, convention),
        )
    return Placed(coords + offset if convention == TOP_LEFT else coords, CENTRE)


def patch_centres(patches: PatchFile) -> Placed:
    """Return the centres of a file's patches.

    The positions in ``adata/<slide>.h5ad`` beside the folder of the patches decide, or else the
    convention that the file states. Without either the coordinates stay, with a warning.
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
        "%s: coords: unknown whether they are centres or corners of patches; kept as they are "
        "(%s would decide)",
        patches.path,
        expression,
    )
    return Placed(patches.coords, None)


def _measured(patches: PatchFile, expression: Path) -> Placed | None:
    """Return the centres by comparison with the positions of the expression, if it has any."""
    positions = read_positions(expression)
    if positions is None:
        return None
    barcodes, centres = positions
    rows, expression_rows = common_rows(patches.barcodes, barcodes)
    if not len(rows):
        return None
    coords = patches.coords[rows]
    placed = to_centres(
        coords,
        centres[expression_rows],
        file=patches.path,
        other=expression,
        size=patches.size_level0,
        stated=patches.convention,
    )
    # the same step for spots without expression
    step = np.median(placed.coords - coords, axis=0)
    return None if placed.convention is None else Placed(patches.coords + step, CENTRE)
