"""Escaping of table cells: control characters and spreadsheet formulas."""

from __future__ import annotations

_FORMULA = ("=", "+", "-", "@")


def safe_cell(name: str) -> str:
    """Return a name that spreadsheets do not take for a formula."""
    name = printable(name)
    return f"'{name}" if name.startswith(_FORMULA) else name


def printable(name: str) -> str:
    """Return a name from a file with its control characters escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
