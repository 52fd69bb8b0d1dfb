"""Matching the spots of two files by barcode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stflow_graph.errors import BadInput, unquoted


def common_rows(left: Sequence[str], right: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of ``left`` that are in ``right``, in order, and their rows in ``right``."""
    place = {barcode: i for i, barcode in enumerate(right)}
    rows = [i for i, barcode in enumerate(left) if barcode in place]
    return np.array(rows, dtype=np.int64), np.array([place[left[i]] for i in rows], dtype=np.int64)


def match_barcodes(
    left: Sequence[str], right: Sequence[str], left_file: str | Path, right_file: str | Path
) -> tuple[np.ndarray, np.ndarray]:
    """Return :func:`common_rows` of two files that must be of one slide.

    Raises:
        BadInput: under half of the smaller side matches; counts them and shows three.
    """
    rows, right_rows = common_rows(left, right)
    if 2 * len(rows) < min(len(left), len(right)):
        matched = set(rows.tolist())
        missing = [barcode for i, barcode in enumerate(left) if i not in matched]
        found = unquoted(
            f"{len(rows)} of {len(left)} barcodes in {Path(right_file).name}; "
            f"not there: {missing[:3]}, there: {list(right[:3])}"
        )
        fix = "check that both files are of one slide and that suffixes such as '-1' agree"
        raise BadInput(left_file, "barcodes", found, "the same barcodes in both", fix)
    return rows, right_rows


def rows_of(
    barcodes: Sequence[str], stored: Sequence[str], file: str | Path, field: str = "barcodes"
) -> np.ndarray:
    """Return the row of every barcode in those that a file stores.

    Raises:
        BadInput: some are absent; counts them and shows three.
    """
    found, rows = common_rows(barcodes, stored)
    if len(found) < len(barcodes):
        present = set(stored)
        absent = [barcode for barcode in barcodes if barcode not in present]
        text = unquoted(f"{len(absent)} of {len(barcodes)} spots absent, such as {absent[:3]}")
        raise BadInput(file, field, text, "every spot of the slide")
    return rows
