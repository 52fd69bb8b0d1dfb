"""Matching the spots of two files by barcode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stflow_graph.errors import BadInput, unquoted


def match_barcodes(
    left: Sequence[str], right: Sequence[str], left_file: str | Path, right_file: str | Path
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of ``left`` that are in ``right``, and their rows in ``right``.

    Raises:
        BadInput: under half of the smaller side matches; says how many and shows three.
    """
    place = {barcode: i for i, barcode in enumerate(right)}
    rows = np.array([i for i, b in enumerate(left) if b in place], dtype=np.int64)
    if 2 * len(rows) < min(len(left), len(right)):
        missing = [b for b in left if b not in place]
        found = unquoted(
            f"{len(rows)} of {len(left)} barcodes in {Path(right_file).name}; "
            f"not there: {missing[:3]}, there: {list(right[:3])}"
        )
        fix = "check that both files are of one slide and that suffixes such as '-1' agree"
        raise BadInput(left_file, "barcodes", found, "the same barcodes in both", fix)
    return rows, np.array([place[left[i]] for i in rows], dtype=np.int64)
