"""The jinja2 environment of the report's templates, with filters for numbers."""

from __future__ import annotations

import functools

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stflow_graph.errors import count
from stflow_graph.io.coords import length_text

# of expression, by target
UNITS = {"log1p": "log1p(count)", "log1p_normalised": "log1p(10⁴ · count / total)"}


def number(value: float | None, places: int = 3, sign: bool = False) -> str:
    """Return a number for display: a true minus, and a dash for None and NaN."""
    if value is None or not np.isfinite(value):
        return "–"
    value = round(value, places) + 0.0  # no minus before a zero
    text = f"{value:+.{places}f}" if sign else f"{value:.{places}f}"
    return text.replace("-", "−")


def interval(ends: tuple[float, float] | None, sign: bool = False) -> str:
    """Return the ends of an interval for display, "" where undefined."""
    if ends is None or not np.isfinite(ends).all():
        return ""
    return f"{number(ends[0], sign=sign)} to {number(ends[1], sign=sign)}"


def percent(value: float) -> str:
    """Return a fraction in percent for display."""
    return f"{value:.0%}" if np.isfinite(value) else "–"


def render(template: str, **values: object) -> Markup:
    """Render a template of this package; values are escaped unless they are markup."""
    return Markup(_environment().get_template(template).render(**values).lstrip())


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("stflow_graph.evaluation", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    for display in (number, interval, percent, count, length_text):
        environment.filters[display.__name__] = display
    environment.tests["finite"] = lambda value: bool(np.isfinite(value))
    return environment
