"""The table of ``stflow-graph probe``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from stflow_graph.evaluation.encoder_probe import Cell, ProbeSettings


def score_tables(cells: Sequence[Cell], encoders: Sequence[str], settings: ProbeSettings) -> Group:
    """Return data sets by encoders, mean over folds ± its deviation, the best of a row in bold.

    The folds of a single data set follow.
    """
    from stflow_graph.evaluation.hest_results import average_encoders

    scores: dict[str, dict[str, tuple[float, float]]] = {}
    for cell in cells:
        scores.setdefault(cell.dataset, {})[cell.encoder] = (cell.mean, cell.std)
    table = _table("data set", encoders)
    for dataset, of_encoders in scores.items():
        table.add_row(Text(dataset), *_row(of_encoders, encoders))
    if len(scores) > 1:
        averages = {name: (mean, math.nan) for name, mean in average_encoders(scores).items()}
        table.add_section()
        table.add_row("average", *_row(averages, encoders))
    title = f"PCC of {settings.target}, mean over genes, {_described(settings)}"
    heading, note = Text(title, style="italic"), Text("mean ± deviation over folds", style="dim")
    folds = [_fold_table(cells, encoders)] if len(scores) == 1 else []
    return Group(heading, table, note, *folds)


def _fold_table(cells: Sequence[Cell], encoders: Sequence[str]) -> Table:
    table = _table("fold", encoders)
    for i, fold in enumerate(cells[0].fold_numbers):
        row = {cell.encoder: (float(cell.folds[i]), math.nan) for cell in cells}
        table.add_row(str(fold), *_row(row, encoders))
    return table


def _table(first: str, encoders: Sequence[str]) -> Table:
    table = Table(first, box=SIMPLE_HEAD, show_edge=False)
    for name in encoders:
        table.add_column(Text(name), justify="right")
    return table


def _described(settings: ProbeSettings) -> str:
    if settings.n_components is None:
        return f"{settings.method} on the embeddings as they are"
    return f"{settings.method} on {settings.n_components} principal components"


def _row(scores: dict[str, tuple[float, float]], encoders: Sequence[str]) -> list[Text]:
    best = max((mean for mean, _ in scores.values() if not math.isnan(mean)), default=math.nan)
    cells = []
    for mean, std in (scores.get(name, (math.nan, math.nan)) for name in encoders):
        text = "–" if math.isnan(mean) else f"{mean:.3f}"
        text += "" if math.isnan(std) else f" ± {std:.3f}"
        cells.append(Text(text, style="bold" if mean == best else ""))
    return cells
