"""Atomic writes: a final path is absent, the old file or the new file, never a part."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stflow_graph.errors import BadInput, StorageFailed, as_bad_input, unquoted

_STALE = re.compile(r"^\..+\.stflow-(\d+)-[0-9a-f]{8}\.tmp$")
_NO_PLACE = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP}
_NO_PLACE |= {errno.ENAMETOOLONG}
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success sync it and rename it to ``path``.

    On any failure the temporary file is removed and an old file at ``path`` is untouched.

    Raises:
        StorageFailed: the disk is full, read-only or broken.
        BadInput: ``path`` is a folder, or its folder cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise BadInput(path, "output", "a folder", "a file name")
    with as_storage_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_stale(path.parent)
        temporary = path.parent / f".{path.name}.stflow-{os.getpid()}-{secrets.token_hex(4)}.tmp"
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
        os.close(os.open(temporary, flags, 0o666))
        try:
            yield temporary
            replace_synced(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def as_storage_error(path: Path) -> Iterator[None]:
    """Turn the errors of a full, read-only or broken disk into one line.

    Raises:
        StorageFailed: the disk is full, read-only or broken.
        BadInput: ``path`` may not be written.
    """
    try:
        yield
    except OSError as error:
        # h5py hides the cause: a full disk is an OSError with errno inside its text only
        text = str(error)
        full = "No space left" in text or "errno = 28" in text or "File too large" in text
        if error.errno in _NO_SPACE or full:
            reason = os.strerror(error.errno) if error.errno else "no space left on device"
            raise StorageFailed(f"{path}: cannot write: {reason}. Nothing was changed there") from (
                error
            )
        if error.errno in _NO_PLACE:
            raise BadInput(path, "output", os.strerror(error.errno), "a path to write to") from (
                error
            )
        raise


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success rename it to ``path``.

    An old folder at ``path`` is moved aside first and removed last, so that ``path`` is at any
    instant absent, the old folder or the new one.

    Raises:
        StorageFailed: the disk is full, read-only or broken.
        BadInput: its folder cannot be written.
    """
    path = Path(path)
    with as_storage_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        token = f"stflow-{os.getpid()}-{secrets.token_hex(4)}.tmp"
        temporary, old = (path.parent / f".{path.name}{mark}.{token}" for mark in ("", "-old"))
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.iterdir():
                _sync(file)
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
            _sync(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)


def sweep_stale(folder: Path) -> None:
    """Remove this package's temporary files in ``folder`` whose process no longer runs."""
    for entry in folder.glob(".*.stflow-*.tmp"):
        match = _STALE.match(entry.name)
        if match and not _alive(int(match.group(1))):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def replace_synced(temporary: Path, path: Path) -> None:
    """Rename a complete file to its final path, both on the disk when this returns."""
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return unquoted(", ".join(map(repr, names[:12])) or "no such folder, or an empty one")


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
        BadInput: it has path separators, control characters, a leading dot or over 128 characters.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+=@ -]{0,127}", name):
        raise BadInput(file, field, name, "letters, digits and _.+=@- (at most 128)")
    return name
