"""Errors for users, with their exit codes on the command line."""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

_MAX_LENGTH = 200
_MAX_PATH = 500
_MAX_LINE = 2000
# how libraries say that memory is short, whatever the class of their error
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",  # torch
    "out of memory",  # CUDA
    "CUBLAS_STATUS_ALLOC_FAILED",
    "could not create a primitive",  # oneDNN
    "emory allocation failed",  # HDF5
    "Unable to allocate",  # numpy
    "Cannot allocate memory",
    "bad_alloc",  # C++
    "failed to map segment",  # the loader of shared libraries
)
# HDF5 says this of damaged data, and of data for which there was no memory
_OF_DATA_OR_MEMORY = ("filter returned failure", "can't be opened", "unable to read raw data chunk")
# of decoders that met data of another form: their texts speak of the decoder's code
_OF_PYTHON = (TypeError, AttributeError, IndexError, AssertionError, RecursionError)
_SPARE = 2**26  # bytes that a machine with memory can spare
# the machine's errors, which the next slide would meet as well
_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_OF_THE_MACHINE |= {errno.EMFILE, errno.ENFILE, errno.EPIPE}
# errors of a path that the user gave, not of a disk that failed
OF_A_PATH = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
OF_A_PATH |= {errno.ELOOP, errno.EACCES, errno.EPERM}


def short_repr(value: object) -> str:
    """Return a value as one safe line: repr (so no terminal escapes), cut at 200 characters."""
    if isinstance(value, _Unquoted):
        return one_line(value, _MAX_LENGTH)
    try:
        return one_line(repr(value), _MAX_LENGTH)
    except (ValueError, RecursionError):  # an integer of 5,000 digits, a list 1,000 deep
        return f"a value ({type(value).__name__}) too long to show"


def one_line(text: str, max_length: int = _MAX_LINE) -> str:
    """Return text as one line of at most ``max_length`` characters, control characters escaped."""
    # cut first: the rest can be megabytes
    text = " ".join(text[: max_length + 1].splitlines())
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= max_length else text[: max_length - 3] + "..."


def count(n: int, noun: str, plural: str = "") -> str:
    """Return a number of things, "1 slide" or "1,200 slides"; the plural where it has no s."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def reason_of(error: BaseException) -> str:
    """Return the reason that a library states, as one line without the class of its error."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyError):
        return f"no entry {text}"
    if isinstance(error, UnicodeDecodeError):
        return f"no {error.encoding.upper()} text"
    return text or "no reason stated"


class _Unquoted(str):
    """Text written by this package, printed without quotes."""


def unquoted(text: str) -> str:
    """Mark text written by this package, which messages print without quotes."""
    return _Unquoted(text)


class StflowError(Exception):
    """An error with a message for the user; the command line returns ``exit_code``.

    Args:
        message: kept as one line, as :func:`one_line` does: libraries quote what files hold.
    """

    exit_code = 3

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep the message, whatever the arguments were: workers' errors are pickled."""
        return _with_message, (type(self), str(self))


def _with_message(kind: type[StflowError], message: str) -> StflowError:
    error = kind.__new__(kind)
    StflowError.__init__(error, message)
    return error


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
        field = one_line(field, _MAX_LENGTH)
        message = f"{_path(file)}: {field}: found {short_repr(found)}, expected {expected}"
        super().__init__(message + (f". Fix: {fix}" if fix else ""))


@contextlib.contextmanager
def as_bad_input(file: str | Path, field: str, expected: str, fix: str = "") -> Iterator[None]:
    """Turn errors of decoders on a broken file, which can be of any class, into BadInput.

    Args:
        file: the file that is decoded.
        field: the part of it.
        expected: a description of valid content.
        fix: a remedy, one sentence.

    Raises:
        BadInput: the body raised; errors of this package, of the disk and of memory pass
            unchanged.
    """
    try:
        yield
    except StflowError:
        raise
    except Exception as error:
        # a damaged offset makes the system refuse the seek
        of_disk = isinstance(error, OSError) and error.errno not in (None, 0, errno.EINVAL)
        if is_out_of_memory(error) or of_disk:
            raise
        reason = "" if isinstance(error, _OF_PYTHON) else f" ({reason_of(error)})"
        raise BadInput(
            file, field, unquoted(f"damaged or other data{reason}"), expected, fix
        ) from None


class BadModel(BadInput):
    """A model's folder that is damaged or was changed; see :func:`as_bad_model`."""

    exit_code = 4


@contextlib.contextmanager
def as_bad_model() -> Iterator[None]:
    """Give bad input in the body, of a model's folder, the exit code of checkpoints.

    Raises:
        BadModel: the body raised BadInput; the message is the same.
    """
    try:
        yield
    except BadInput as error:
        raise _with_message(BadModel, str(error)) from error.__cause__


class BadConfig(StflowError):
    """A configuration or checkpoint that does not fit."""

    exit_code = 4


class MissingDependency(StflowError):
    """An optional package is needed and absent."""

    exit_code = 4


class SomeFailed(StflowError):
    """Some slides failed and the others were written.

    Args:
        message: one line on all of them.
        lines: a line on each, after the first without them, for a terminal; () prints the message.
        failed: each slide and its error, "" of those beyond the first hundred.
    """

    exit_code = 5

    def __init__(
        self,
        message: str = "",
        lines: Sequence[str] = (),
        failed: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.lines = tuple(one_line(line) for line in lines)
        self.failed = tuple(failed)


class Diverged(StflowError):
    """Training met a loss or gradient that is not finite."""

    exit_code = 6


class StorageFailed(StflowError):
    """Writing failed: disk full, quota, I/O error; earlier files are intact."""

    exit_code = 74


class OutOfMemory(StflowError):
    """The machine's or the device's memory was not enough."""

    exit_code = 75


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, of whatever library, says that memory was not enough."""
    if isinstance(error, StflowError):
        return isinstance(error, OutOfMemory)
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, Exception) and any(sign in str(error) for sign in _OUT_OF_MEMORY))
        or (any(sign in str(error) for sign in _OF_DATA_OR_MEMORY) and not _memory_is_there())
    )


def _memory_is_there() -> bool:
    try:
        bytearray(_SPARE)
    except MemoryError:
        return False
    return True


def is_of_machine(error: Exception) -> bool:
    """Return whether the next slide would meet an error as well: disk, memory, a closed output."""
    machine = isinstance(error, OSError) and error.errno in _OF_THE_MACHINE
    return machine or is_out_of_memory(error) or isinstance(error, StorageFailed | Diverged)


def text_of(error: Exception) -> str:
    """Return what a line on a slide says of its error."""
    if isinstance(error, StflowError):
        return str(error)
    return f"unexpected: {reason_of(error)} (--debug shows more)"


class Failures:
    """The slides that failed while the others go on, and their errors.

    Args:
        total: number of slides.
    """

    _MAX_SHOWN, _MAX_NAMED, _MAX_TEXT, _MAX_LINES = 4, 40, 350, 100

    def __init__(self, total: int) -> None:
        self._total, self._names, self._texts = total, list[str](), list[str]()
        self._cause: Exception | None = None

    def add(self, name: str, error: Exception) -> None:
        """Note a slide's error.

        Raises:
            Exception: the error is the machine's (disk, memory, a closed output), not the slide's.
        """
        if is_of_machine(error):
            raise error
        foreign = not isinstance(error, StflowError)
        self._names.append(name)
        if len(self._texts) < self._MAX_LINES:
            self._texts.append(one_line(text_of(error), self._MAX_TEXT))
        # one traceback alone, as it keeps the arrays of its frames in memory
        if self._cause is None or (foreign and isinstance(self._cause, StflowError)):
            self._cause = error

    @contextlib.contextmanager
    def foreign_of(self, name: str) -> Iterator[None]:
        """Note a slide's error in the body, unless it is of this package: that one is raised."""
        try:
            yield
        except StflowError:
            raise
        except Exception as error:
            self.add(name, error)

    def check(self) -> None:
        """Report the slides that failed.

        Raises:
            SomeFailed: there are any; it names them, the first with their errors.
        """
        if self._names:
            head = f"{len(self._names)} of {count(self._total, 'slide')} failed"
            failed = list(itertools.zip_longest(self._names, self._texts, fillvalue=""))
            texts = [f"{name}: {text}" for name, text in failed if text]
            text = f"{head}: " + "; ".join(texts[: self._MAX_SHOWN])
            others = self._names[self._MAX_SHOWN :]
            if others:
                text += f"; and {', '.join(others[: self._MAX_NAMED])}"
            if len(others) > self._MAX_NAMED:
                text += f" and {len(others) - self._MAX_NAMED} more"
            rest = len(self._names) - len(self._texts)
            more = [f"and {rest} more"] if rest else []
            lines = [f"{head}:", *texts, *more] if len(self._names) > 1 else []
            raise SomeFailed(text, lines, failed) from self._cause


_Result = TypeVar("_Result")


def attempt_each(work: Sequence[tuple[str, Callable[[], _Result]]]) -> list[_Result]:
    """Run one task per slide; a failing slide, of whatever error, does not stop the others.

    Args:
        work: name and task of each slide.

    Returns:
        The results, in order.

    Raises:
        SomeFailed: some of several failed, or the only one with an error that is not of this
            package; names each.
        StflowError: the only one failed, or the machine did (disk, memory).
    """
    results: list[_Result] = []
    failures = Failures(len(work))
    for name, do in work:
        try:
            results.append(do())
        except Exception as error:
            if len(work) == 1 and isinstance(error, StflowError):
                raise
            failures.add(name, error)
    failures.check()
    return results


def _path(file: str | Path) -> str:
    text = str(file)
    text = text if text.isprintable() else repr(text)
    if len(text) <= _MAX_PATH:
        return text
    half = _MAX_PATH // 2 - 2
    return f"{text[:half]}...{text[-half:]}"
