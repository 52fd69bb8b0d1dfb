"""Options of the command line to names of the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def parse_settings(options: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return dotted names of the configuration for the options given and for ``--set``.

    Args:
        options: the command's parameters; those that are None or not settings are left out.
        assignments: ``section.name=value`` strings, which win over the options.
    """
    from stflow_graph.config import OPTIONS, parse_assignments

    settings = {
        name: options[option]
        for option, name in OPTIONS.items()
        if options[option] is not None and options[option] != []
    }
    return {**settings, **parse_assignments(assignments)}
