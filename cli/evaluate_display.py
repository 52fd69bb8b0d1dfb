"""The tables of ``stflow-graph eval``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from stflow_graph.evaluation.records import Evaluation

_MOST_SLIDES = 6
_MEASURES = {
    "pearson_pooled": "pooled",
    "spearman": "Spearman",
    "mse": "MSE",
    "r2": "R²",
    "moran_difference": "Δ Moran",
    "relative_variation": "RVD",
    "gene_correlation_distance": "gene-gene",
    "crps": "CRPS",
    "energy_score": "energy",
    "coverage_80": "80% cov.",
    "width_80": "80% width",
}
_STYLES = {"model": "bold", "baseline": "", "reference": "dim"}


def score_table(evaluation: Evaluation) -> Table:
    """Return the mean correlations: models, baselines, noise ceiling."""
    names = [slide.name for slide in evaluation.slides]
    of_slides = names[0] if len(names) == 1 else f"mean of {len(names)} slides"
    table = _table(f"PCC of {evaluation.target}, mean over genes, {of_slides}")
    compared = evaluation.best_baseline is not None
    for heading in ("PCC", "95%", "ceiling", *(["− best baseline"] if compared else [])):
        table.add_column(heading, justify="right")
    for row in evaluation.rows:
        cells = [_number(row.mean), _interval(row.interval)]
        cells += ["–" if math.isnan(row.of_ceiling) else f"{row.of_ceiling:.0%}"]
        if compared and row.difference is not None:
            ends = _interval(row.difference_interval)
            cells += [f"{_number(row.difference, sign=True)} ({ends})"]
        table.add_row(Text(row.name), *cells, style=_STYLES[row.kind])
    return table


def slide_table(evaluation: Evaluation) -> Table | None:
    """Return the mean correlation of every slide; None where one slide or too many are there."""
    names = [slide.name for slide in evaluation.slides]
    if not 1 < len(names) <= _MOST_SLIDES:
        return None
    table = _table("PCC of each slide")
    for name in names:
        table.add_column(Text(name), justify="right")
    for row in evaluation.rows:
        cells = [_number(row.slides.get(name)) for name in names]
        table.add_row(Text(row.name), *cells, style=_STYLES[row.kind])
    return table


def measure_table(evaluation: Evaluation) -> Table:
    """Return the further measures that some row has, as means over slides."""
    rows = [row for row in evaluation.rows if row.others]
    known = {name for row in rows for name, v in row.others.items() if not math.isnan(v)}
    shown = [name for name in _MEASURES if name in known]
    table = _table("further measures, means over slides")
    for name in shown:
        table.add_column(_MEASURES[name], justify="right")
    for row in rows:
        cells = [_number(row.others[name], sign=name == "moran_difference") for name in shown]
        table.add_row(Text(row.name), *cells, style=_STYLES[row.kind])
    return table


def _table(title: str) -> Table:
    return Table(
        "",
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )


def _number(value: float | None, sign: bool = False) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:+.3f}" if sign else f"{value:.3f}"


def _interval(ends: tuple[float, float] | None) -> str:
    if ends is None or math.isnan(ends[0]):
        return ""
    return f"{_number(ends[0])} to {_number(ends[1])}"
