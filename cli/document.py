"""The JSON document that a command prints with ``--json``: its records, for other programs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stflow_graph.version import __version__


class Document:
    """What a command did, collected while it runs.

    Args:
        command: its name; None if there is no such command.

    Attributes:
        results: a record of each output, in the order in which they were finished.
        next: the command that usually follows; None if there is none.
        failure: why the command ends with another exit code than 0 without an error.
    """

    def __init__(self, command: str | None) -> None:
        self._command = command
        self.results: list[dict[str, Any]] = []
        self.next: str | None = None
        self.failure = ""

    def add(self, record: object, **more: object) -> None:
        """Add a record: a dataclass or a mapping, and further fields."""
        self.results.append({**as_json(record), **as_json(more)})

    def text(self, error: Mapping[str, object] | None = None) -> str:
        """Return the document as one line of ASCII; with the error if the command failed."""
        head = {"command": self._command, "version": __version__, "ok": error is None}
        outcome = {"next": self.next} if error is None else {"error": as_json(error)}
        # ASCII: names that are not text, and terminals of any encoding
        return json.dumps({**head, "results": self.results, **outcome}, allow_nan=False)


def as_json(value: Any) -> Any:
    """Return a value as JSON has it: paths as text, arrays as lists, NaN and infinities as None.

    Dataclasses become objects of their fields, or of what their method ``record`` gives; data
    frames become lists of rows.
    """
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_json(_fields(value))
    # told apart by what they can do: importing pandas and numpy takes a second
    if hasattr(value, "to_dict"):
        table = value if value.index.name is None else value.reset_index()
        return as_json(table.to_dict("records"))
    if hasattr(value, "tolist"):
        return as_json(value.tolist())
    return value


def _fields(value: Any) -> Mapping[str, object]:
    if hasattr(value, "record"):
        return value.record()
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
