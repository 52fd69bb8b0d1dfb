"""Errors for users, with their exit codes on the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

_MAX_LENGTH = 200


def short_repr(value: object) -> str:
    """Return a value as one safe line: repr (so no terminal escapes), cut at 200 characters."""
    text = value if isinstance(value, _Unquoted) else repr(value)
    return text if len(text) <= _MAX_LENGTH else text[: _MAX_LENGTH - 3] + "..."


class _Unquoted(str):
    """Text written by this package, printed without quotes."""


def unquoted(text: str) -> str:
    """Mark text written by this package, which messages print without quotes."""
    return _Unquoted(text)


class StflowError(Exception):
    """An error with a message for the user; the command line returns ``exit_code``."""

    exit_code = 3


class BadInput(StflowError):
    """Input data that cannot be used; the message has the file, the field and a remedy.

    Args:
        file: the file or folder at fault.
        field: the key, column or property in it.
        found: the value there, printed by ``repr`` unless it is :func:`unquoted` text.
        expected: a description of the values that are accepted.
        fix: a remedy, one sentence.
    """

    exit_code = 3

    def __init__(
        self, file: str | Path, field: str, found: object, expected: str, fix: str | None = None
    ) -> None:
        message = f"{_path(file)}: {field}: found {short_repr(found)}, expected {expected}"
        super().__init__(message + (f". Fix: {fix}" if fix else ""))


@contextlib.contextmanager
def as_bad_input(file: str | Path, field: str, expected: str) -> Iterator[None]:
    """Turn errors of decoders on a broken file, which can be of any class, into BadInput.

    Args:
        file: the file that is decoded.
        field: the part of it.
        expected: a description of valid content.

    Raises:
        BadInput: the body raised; errors of this package, of the disk and of memory pass
            unchanged.
    """
    try:
        yield
    except (StflowError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise  # a disk's error, not the file's
        found = unquoted(f"{type(error).__name__}: {' '.join(str(error).split())}")
        raise BadInput(file, field, found, expected) from None


class BadConfig(StflowError):
    """A configuration or checkpoint that does not fit."""

    exit_code = 4


class MissingDependency(StflowError):
    """An optional package is needed and absent."""

    exit_code = 4


class SomeFailed(StflowError):
    """Some slides failed and the others were written."""

    exit_code = 5


class Diverged(StflowError):
    """Training met a loss or gradient that is not finite."""

    exit_code = 6


class StorageFailed(StflowError):
    """Writing failed: disk full, quota, I/O error; earlier files are intact."""

    exit_code = 74


class OutOfMemory(StflowError):
    """The machine's or the device's memory was not enough."""

    exit_code = 75


_Result = TypeVar("_Result")


def attempt_each(work: Sequence[tuple[str, Callable[[], _Result]]]) -> list[_Result]:
    """Run one task per slide; a failing slide does not stop the others.

    Args:
        work: name and task of each slide.

    Returns:
        The results, in order.

    Raises:
        SomeFailed: some of several failed; lists each with its error.
        StflowError: the only one failed, or the machine did (disk, memory).
    """
    results, failures = [], []
    for name, do in work:
        try:
            results.append(do())
        except (BadInput, BadConfig, MissingDependency, SomeFailed) as error:
            if len(work) == 1:
                raise
            failures.append(f"{name}: {error}")
    if failures:
        raise SomeFailed(f"{len(failures)} of {len(work)} slides failed: " + "; ".join(failures))
    return results


def _path(file: str | Path) -> str:
    text = str(file)
    return text if text.isprintable() else repr(text)
