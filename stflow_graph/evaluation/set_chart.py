"""A chart of a gene set: a dot a slide with its interval, and a diamond a patient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from stflow_graph.evaluation.page import number, render

_WIDTH, _LEFT, _RIGHT, _TOP, _STEP = 340, 116, 12, 8, 20
_N_TICKS = 4


class SetRow(NamedTuple):
    """A row of the chart.

    Attributes:
        name: of a slide or patient.
        mean: NaN where the slide has no gene of the set.
        lower: end of the interval, NaN without one.
        upper: the other end.
        is_patient: of several slides, which follow.
    """

    name: str
    mean: float
    lower: float
    upper: float
    is_patient: bool


def set_chart(rows: Sequence[SetRow], label: str) -> Markup:
    """Return an SVG chart of means with intervals, a row each.

    Args:
        rows: at least one.
        label: description for screen readers.
    """
    values = np.array([[row.mean, row.lower, row.upper] for row in rows])
    ticks = _ticks(values[np.isfinite(values)])
    low, high = ticks[0], ticks[-1]
    bottom = _TOP + _STEP * len(rows)

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low)

    return render(
        "set.svg.jinja",
        label=label,
        width=_WIDTH,
        bottom=bottom,
        top=_TOP,
        ticks=[(tick, x(tick)) for tick in ticks],
        places=max(0, int(np.ceil(-np.log10(ticks[1] - ticks[0])))),
        rows=[
            {
                "name": row.name,
                "hint": _hint(row),
                "y": _TOP + _STEP * (i + 0.5),
                "mean": x(row.mean),
                "low": x(row.lower),
                "high": x(row.upper),
                "is_patient": row.is_patient,
            }
            for i, row in enumerate(rows)
        ],
        left=_LEFT,
    )


def _hint(row: SetRow) -> str:
    if not np.isfinite(row.lower):
        return f"{row.name}: {number(row.mean)}"
    return f"{row.name}: {number(row.mean)}, {number(row.lower)} to {number(row.upper)}"


def _ticks(values: np.ndarray) -> list[float]:
    """Return round numbers around values, about four."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    span = max(high - low, 1e-3 * max(abs(high), 1.0))
    size = 10.0 ** np.floor(np.log10(span / _N_TICKS))
    step = next(size * k for k in (1, 2, 5, 10) if size * k * _N_TICKS >= span)
    first, last = int(np.floor(low / step)), int(np.ceil(high / step))
    return [float(step * i) for i in range(first, max(last, first + 1) + 1)]
