"""Atomic writes: a final path is absent, the old file or the new file, never a part."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from stflow_graph.errors import OF_A_PATH, BadInput, StorageFailed, as_bad_input, unquoted
from stflow_graph.io.checked_file import CheckedFile
from stflow_graph.io.renames import HalfDoneError, put
from stflow_graph.io.temporaries import remove, sweep_stale, temporary_beside

_UNSAFE = set('/\\:*?"<>|')
_NOT_FIRST = ".-=+@~ "
_MAX_NAME = 180  # of 255, to which endings and the token of an unfinished file are added
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[CheckedFile]:
    """Yield a new file beside ``path``; on success it takes the place of ``path``.

    On any failure the new file is removed and an old one at ``path`` is untouched. Errors of the
    body that are not of this file pass, such as those of an input.

    Raises:
        StorageFailed: a write failed: the disk is full, read-only or broken.
        BadInput: ``path`` is a folder, or its folder cannot be written.
    """
    path = Path(path)
    with as_storage_error(path):
        if path.is_dir():
            raise BadInput(path, "output", unquoted("a folder"), "a file name")
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_stale(path.parent)
        temporary = temporary_beside(path)
        file = CheckedFile(temporary)
    try:
        try:
            yield file
        finally:  # a failed write comes before what the body makes of it
            with as_storage_error(path):
                file.check()
        with as_storage_error(path):
            file.finish()
            put(temporary, path)
    finally:
        file.discard()
        remove(temporary)


@contextlib.contextmanager
def as_storage_error(path: Path, state: str = "Nothing was changed there") -> Iterator[None]:
    """Turn the errors of writing to a path into one line that names it.

    Args:
        path: the output.
        state: a sentence on what is there after an error.

    Raises:
        StorageFailed: the disk is full, read-only or broken.
        BadInput: ``path`` may not be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in OF_A_PATH or error.errno == errno.EINVAL:  # such as a name's characters
            reason = unquoted(os.strerror(error.errno))
            raise BadInput(path, "output", reason, "a path to write to") from error
        if error.errno is None:  # of something else than the disk
            raise
        if isinstance(error, HalfDoneError):
            state = error.state
        reason = os.strerror(error.errno)
        raise StorageFailed(f"{path}: cannot write: {reason}. {state}") from error


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_file(path) as file:
        file.write(content)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, indented, without sorting the keys."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON.

    Raises:
        BadInput: the file is missing or not JSON.
    """
    path = check_file(path)
    with as_bad_input(path, "content", "JSON"):
        return json.loads(path.read_text(encoding="utf-8"))


def read_object(path: str | Path) -> dict[str, Any]:
    """Read JSON that is an object.

    Raises:
        BadInput: the file is missing, not JSON or something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise BadInput(path, "content", type(value).__name__, "a JSON object")
    return value


def listed(folder: Path) -> str:
    """Return the first names in a folder, for messages."""
    if not folder.is_dir():
        return unquoted("no such folder")
    names = sorted(path.name for path in folder.iterdir())
    return unquoted(", ".join(map(repr, names[:12])) or "an empty folder")


def required_file(folder: Path, role: str, names: Iterable[str]) -> Path:
    """Return the first of several files, or folders, that a folder has.

    Raises:
        BadInput: it has none; the message lists those it has.
    """
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise BadInput(folder, role, listed(folder), " or ".join(names))


def check_file(path: str | Path) -> Path:
    """Return ``path`` if it is a readable file.

    Raises:
        BadInput: it is missing, not permitted, or a folder, FIFO, socket or device.
    """
    path = Path(path)
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind != stat.S_IFREG:  # a FIFO or a terminal would be waited for, for ever
            found = _KINDS.get(kind, "a special file")
            raise BadInput(path, "file", unquoted(found), "a file")
        with path.open("rb"):
            return path
    except ValueError:  # the name has a NUL byte or a lone surrogate
        found = unquoted("a name that no file can have")
        raise BadInput(path, "file", found, "a readable file") from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise BadInput(path, "file", f"{reason} (errno {error.errno})", "a readable file") from None


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as hex."""
    with check_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """Return one SHA-256 of the names and bytes of all files in a folder, as hex."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    lines = [f"{sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_name(name: str, file: str | Path, field: str = "sample id") -> str:
    """Return a slide's name if it is safe as a file name.

    Raises:
        BadInput: it has separators of paths, characters that some file system refuses or control
            characters, begins as a hidden file, an option or a formula of a spreadsheet, ends with
            a dot or blank, or is empty or too long.
    """
    printable = name.isprintable() and not _UNSAFE & set(name)
    safe = printable and len(name.encode()) <= _MAX_NAME
    if not name or not safe or name[0] in _NOT_FIRST or name[-1] in ". ":
        expected = (
            f"letters, digits and others of file names, at most {_MAX_NAME} bytes, none of "
            f"{' '.join(sorted(_UNSAFE))}, and first none of {' '.join(_NOT_FIRST.strip())}"
        )
        raise BadInput(file, field, name, expected)
    return name


def check_slide_names(slides: Sequence[tuple[str, str | Path]]) -> None:
    """Refuse slides of the same name, whose outputs would be one file.

    Args:
        slides: the name of each, and its file for the message.

    Raises:
        BadInput: names them.
    """
    names = [name for name, _ in slides]
    twice = sorted(name for name, n in Counter(names).items() if n > 1)
    if twice:
        file = slides[names.index(twice[0])][1]
        raise BadInput(file, "slide name", unquoted(f"{twice[:3]} twice"), "each once")
