"""Matching the spots of two files by barcode, which is unique in each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from stflow_graph.errors import BadInput, count, unquoted


def common_rows(left: Sequence[str], right: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of ``left`` that are in ``right``, in order, and their rows in ``right``."""
    rows = pd.Index(right, dtype=object).get_indexer(pd.Index(left, dtype=object))
    return np.flatnonzero(rows >= 0), rows[rows >= 0]


def match_barcodes(
    left: Sequence[str], right: Sequence[str], left_file: str | Path, right_file: str | Path
) -> tuple[np.ndarray, np.ndarray]:
    """Return :func:`common_rows` of two files that must be of one slide.

    Raises:
        BadInput: under half of the smaller side matches; counts them and shows three.
    """
    rows, right_rows = common_rows(left, right)
    if 2 * len(rows) < min(len(left), len(right)):
        found = unquoted(
            f"{len(rows)} of {len(left)} barcodes in {Path(right_file).name}; "
            f"not there: {_first_absent(left, right)}, there: {list(right[:3])}"
        )
        fix = "check that both files are of one slide and that suffixes such as '-1' agree"
        raise BadInput(left_file, "barcodes", found, "the same barcodes in both", fix)
    return rows, right_rows


def rows_of(
    barcodes: Sequence[str], stored: Sequence[str], file: str | Path, field: str = "barcodes"
) -> np.ndarray:
    """Return the rows of all ``barcodes`` in those that a file stores.

    Raises:
        BadInput: some are absent; counts them and shows three.
    """
    present, rows = common_rows(barcodes, stored)
    if n_absent := len(barcodes) - len(present):
        absent = _first_absent(barcodes, stored)
        found = unquoted(f"{n_absent} of {count(len(barcodes), 'spot')} absent, such as {absent}")
        raise BadInput(file, field, found, "every spot of the slide")
    return rows


def _first_absent(left: Sequence[str], right: Sequence[str]) -> list[str]:
    present = set(right)
    return [barcode for barcode in left if barcode not in present][:3]
