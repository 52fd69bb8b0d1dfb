"""Coordinates and other rows of numbers from files: checks, and the pitch of spots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from stflow_graph.errors import BadInput, count, unquoted

_MAX_AT_ONE_PLACE = 1000  # all of them are neighbours: their edges grow with the square
_MAX_PLACE = 1e9  # a thousand times the longest slides, whose squares are exact


_MANY = 64  # spots of an array most of which are not at its border
_BAR_UM = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
_BAR_SHARE = 0.25  # of the spots' width, at most


def check_coords(coords: np.ndarray, path: str | Path, field: str, n: int) -> np.ndarray:
    """Return coordinates as float64 ``[N, 2]``.

    Raises:
        BadInput: wrong shape or length, or numbers that are not finite or no image's pixels; the
            message counts the rows at fault.
    """
    coords = np.asarray(coords)  # of a scalar dataset it is a number
    if coords.ndim != 2 or coords.shape[1] != 2:
        raise BadInput(path, field, coords.shape, f"({n}, 2)")
    if len(coords) != n:
        raise BadInput(
            path, field, unquoted(count(len(coords), "row")), f"{count(n, 'row')}, one per barcode"
        )
    if coords.dtype.kind not in "iuf":
        raise BadInput(path, field, str(coords.dtype), "numbers")
    coords = coords.astype(np.float64)
    check_finite(coords, path, field, n)
    if len(coords) and np.abs(coords).max() > _MAX_PLACE:
        found = unquoted(f"places up to {np.abs(coords).max():g}")
        raise BadInput(path, field, found, f"pixels of an image, at most {_MAX_PLACE:g}")
    return coords


def check_spread(coords: np.ndarray, path: str | Path, field: str) -> None:
    """Check that spots have places of their own; a few may share one.

    Args:
        coords: ``[N, 2]``.
        path: the file, for messages.
        field: the key in it.

    Raises:
        BadInput: more than 1,000 spots are at one place.
    """
    if len(coords) <= _MAX_AT_ONE_PLACE:
        return
    places, counts = np.unique(coords[:, 0] + 1j * coords[:, 1], return_counts=True)
    most = int(counts.argmax())
    if counts[most] > _MAX_AT_ONE_PLACE:
        place = f"({places[most].real:g}, {places[most].imag:g})"
        found = unquoted(f"{counts[most]:,} of {len(coords):,} spots at {place}")
        fix = "write the pixels of each spot's centre"
        raise BadInput(path, field, found, f"at most {_MAX_AT_ONE_PLACE:,} at one place", fix)


def check_finite(
    values: np.ndarray, path: str | Path, field: str, n: int, first_row: int = 0
) -> None:
    """Check a block of rows for NaN and infinity.

    Args:
        values: ``[B, ...]``, all of the rows or a block of them.
        path: the file, for messages.
        field: the key in it.
        n: number of all rows.
        first_row: of the block.

    Raises:
        BadInput: numbers that are not finite; the message counts the rows and names the first.
    """
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        rows = (bad[:3] + first_row).tolist()
        found = unquoted(f"{len(bad)} of {count(n, 'row')} not finite, first rows {rows}")
        raise BadInput(path, field, found, "finite numbers")


def median_pitch(coords: np.ndarray) -> float:
    """Return the median distance of a spot to its nearest other one, 0 for a single spot.

    Args:
        coords: ``[N, 2]``.
    """
    return _median_distance(coords, 1)


def array_pitch(coords: np.ndarray) -> float:
    """Return the distance of neighbouring spots of an array, 0 for a single spot.

    It is the median distance to the four nearest others, which are neighbours on square and
    hexagonal arrays; to the nearest alone it is too short where places vary. Of few spots, most of
    them at the border, the nearest alone counts.

    Args:
        coords: ``[N, 2]``.
    """
    return _median_distance(coords, 4 if len(coords) >= _MANY else 1)


def scale_bar_um(coords: np.ndarray, um_per_px: float) -> int | None:
    """Return the length of the scale bar of a picture of spots, µm; None where none fits.

    It is the longest of 1, 2, 5, 10, ... µm up to a quarter of the spots' width, so that all
    pictures of a slide have the same.

    Args:
        coords: ``[N, 2]`` level-0 px (x, y).
        um_per_px: micrometres per level-0 pixel.
    """
    width = np.ptp(coords[:, 0]) * um_per_px if len(coords) else 0.0
    fitting = [um for um in _BAR_UM if um <= _BAR_SHARE * width]
    return fitting[-1] if fitting else None


def length_text(um: float) -> str:
    """Return a length with its unit, for the label of a scale bar."""
    return f"{um:g} µm" if um < 1000 else f"{um / 1000:g} mm"


def _median_distance(coords: np.ndarray, n_nearest: int) -> float:
    if len(coords) < 2:
        return 0.0
    return float(np.median(cKDTree(coords).query(coords, k=n_nearest + 1)[0][:, 1:]))
