"""Objects by name: ``"module:Name"`` for parts that live outside the package."""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stflow_graph.errors import BadConfig


def resolve(name: str) -> Any:
    """Return the object ``"module:Name"``; the module may be a file in the working directory.

    ``sys.path`` is restored after the import, so the module has to import its own neighbours at
    its top, not later inside functions.

    Raises:
        BadConfig: the name has another form, or the module or its attribute does not exist, or
            the module fails when it is imported.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise BadConfig(f"{name!r}: expected 'module:Name'")
    try:
        with _working_directory_importable():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        place = f", expected {module_name}.py in {Path.cwd()}" if error.name == module_name else ""
        raise BadConfig(f"{name!r}: cannot import {module_name!r}: {error}{place}") from None
    except Exception as error:  # whatever the user's module raises
        reason = f"{type(error).__name__}: {error}"
        raise BadConfig(f"{name!r}: cannot import {module_name!r}: {reason}") from None
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = sorted(n for n in vars(module) if not n.startswith("_"))
        raise BadConfig(f"{name!r}: {module_name} has {', '.join(public[:20])}") from None


def code_file(name: str) -> Path | None:
    """Return the file that :func:`resolve` would run for ``"module:Name"``, which it does not run.

    None where the search path holds no such file, in so far as it can be known without importing.
    """
    folders: list[str] | None = [str(Path.cwd()), *sys.path]
    spec = None
    parts = name.partition(":")[0].split(".")
    for i in range(len(parts)):
        try:
            # only this finder is asked, which looks into folders; others may import
            spec = importlib.machinery.PathFinder.find_spec(".".join(parts[: i + 1]), folders)
        except (ImportError, ValueError, OSError):  # no name of a module
            return None
        if spec is None:
            return None
        folders = list(spec.submodule_search_locations or [])
    return Path(spec.origin) if spec is not None and spec.origin else None


@contextlib.contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Put the working directory at the front of ``sys.path``, unless it is there, and undo it."""
    folder = str(Path.cwd())
    if folder in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the module may have removed it itself
            sys.path.remove(folder)
