"""Mean and standard deviation over seeds of several `stflow-graph eval` results.

usage: python benchmarks/summarise.py EVAL_FOLDER [EVAL_FOLDER ...]
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table


def summarise(folders: Sequence[Path]) -> Table:
    """Return a table of mean PCC ± sd over the folders: a row a model, a column a slide.

    Args:
        folders: what ``eval --out`` wrote, one a seed, of the same slides.
    """
    scores: dict[str, list[list[float]]] = defaultdict(list)
    slides: list[str] = []
    for folder in folders:
        found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        if slides and slides != list(found["protocol"]["slides"]):
            sys.exit(f"{folder}: other slides than in {folders[0]}")
        slides = list(found["protocol"]["slides"])
        for row in found["table"]:
            values = [row["pearson"].get(slide) for slide in slides]
            if None not in values:
                scores[row["name"]].append([*values, float(np.mean(values))])
    table = Table("", title=f"PCC of {found['protocol']['target']}, {len(folders)} seeds")
    for heading in (*slides, "mean"):
        table.add_column(heading, justify="right")
    for name, rows in scores.items():
        cells = [_cell(np.array(column)) for column in zip(*rows, strict=True)]
        table.add_row(name, *cells)
    return table


def _cell(values: np.ndarray) -> str:
    # what does not depend on the seed (or was run once) has no deviation to show
    if np.ptp(values) < 5e-4:
        return f"{values.mean():.3f}"
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    Console().print(summarise([Path(argument) for argument in sys.argv[1:]]))
