"""Objects by name: ``"module:Name"`` for parts that live outside the package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from stflow_graph.errors import BadConfig


def resolve(name: str) -> Any:
    """Return the object that ``"module:Name"`` names; the module may be a file beside the user.

    Raises:
        BadConfig: the form is wrong, the module or the name in it does not exist.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise BadConfig(f"{name!r}: expected 'module:Name'")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise BadConfig(f"{name!r}: cannot import {module_name!r}: {error}") from None
    try:
        return getattr(module, attribute)
    except AttributeError:
        known = sorted(n for n in vars(module) if not n.startswith("_"))
        raise BadConfig(f"{name!r}: {module_name} has {', '.join(known[:20])}") from None
