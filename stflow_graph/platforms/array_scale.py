"""Micrometres per pixel from the known geometry of an array of spots."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.coords import median_pitch
from stflow_graph.platforms.tables import SpotTable

# µm of one step along an axis of a legacy array. Of the 2k array, spots fill the positions whose
# x + y is even, or odd: neighbours are 141 µm apart.
LEGACY_ARRAYS = {"1k": 200.0, "2k": 100.0}
_LONGEST_1K = 36  # of its 33 x 35 positions, and some that are counted from 0
_MIN_SPOTS = 10  # under which one parity may be chance


def legacy_array(places: np.ndarray, file: str | Path) -> str:
    """Return the kind of a legacy array, a key of ``LEGACY_ARRAYS``, from the places of its spots.

    Args:
        places: ``[N, 2]`` positions on the array.
        file: the table, for messages.

    Raises:
        BadInput: the places fit neither array.
    """
    span = int(np.ptp(places, axis=0).max()) if len(places) else 0
    parities = np.unique(places.sum(axis=1) % 2)
    if len(places) >= _MIN_SPOTS and len(parities) == 1:
        return "2k"
    if span <= _LONGEST_1K:
        return "1k"
    found = unquoted(f"{span + 1} positions along an axis, neighbouring ones of them filled")
    expected = f"at most {_LONGEST_1K} (1k), or every second one filled (2k)"
    fix = "give the micrometres per pixel (--um-per-px)"
    raise BadInput(file, "array", found, expected, fix)


def um_per_px_of_array(spots: SpotTable, steps: tuple[float, float]) -> float | None:
    """Return the µm/px of the least-squares map from array places to pixels.

    With p the place in µm and x the pixels, x = A p + b, and µm/px is 1 / √|det A|: a rotated or
    mirrored array has the same scale. Every spot counts, so rounding to whole pixels cancels.

    Args:
        spots: their array places and pixels.
        steps: µm between neighbouring columns and rows of the array.

    Returns:
        None without array places, or where all spots lie on one line.
    """
    if spots.array is None or len(spots.array) < 3:
        return None
    places = spots.array * np.array(steps)
    design = np.column_stack([places - places.mean(axis=0), np.ones(len(places))])
    if np.linalg.matrix_rank(design) < 3:
        return None
    fitted = np.linalg.lstsq(design, spots.coords, rcond=None)[0][:2]
    area = abs(np.linalg.det(fitted))
    return float(1 / np.sqrt(area)) if area > 0 else None


def um_per_px_of_pitch(coords: np.ndarray, pitch_um: float) -> float | None:
    """Return the µm/px at which the median nearest neighbour lies ``pitch_um`` away.

    None for a lone spot, or where most spots share their place with another.
    """
    pitch = median_pitch(coords)
    return pitch_um / pitch if pitch > 0 else None


def positive(value: object, file: str | Path, field: str) -> float:
    """Return a number of a JSON file if it can be a length.

    Raises:
        BadInput: it is no number, or not positive and finite.
    """
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else 0
    if not 0 < number <= sys.float_info.max:  # JSON has larger integers
        raise BadInput(file, field, value, "a positive number")
    return float(number)


def check_scale(
    measured: float, stated: float, max_ratio: float, file: str | Path, stated_by: str
) -> None:
    """Check that places are pixels of the resolution that the stated scale refers to.

    Raises:
        BadInput: the two µm/px differ by more than the factor ``max_ratio``.
    """
    if not 1 / max_ratio <= measured / stated <= max_ratio:
        found = unquoted(f"{measured:.4g} µm/px from the spots' distances")
        expected = f"{stated:.4g} µm/px as in {stated_by}"
        fix = "give places in pixels of the full-resolution image"
        raise BadInput(file, "coordinates", found, expected, fix)
