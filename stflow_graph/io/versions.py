"""Files that are read in several goes: whether one was replaced or changed in between."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.atomic import check_file, sha256

# device, inode, size and time of change of a file; of a folder, those of every file in it
_Version = tuple[int, ...] | dict[str, tuple[int, ...]]


class Versions:
    """The versions of files at first sight: device, inode, size and time of change.

    Args:
        *files: to be read; of a folder all files are.

    Raises:
        BadInput: one is missing, or neither a file nor a folder.
    """

    def __init__(self, *files: str | Path) -> None:
        self._versions: dict[Path, _Version] = {}
        for file in files:
            self.add(file)

    def add(self, file: str | Path) -> None:
        """Note the version of one more file or folder, if it is not noted yet.

        Raises:
            BadInput: it is missing, or neither.
        """
        path = Path(file) if os.path.isdir(file) else check_file(file)
        self._versions.setdefault(path, _version(path))

    def sha256(self, file: str | Path) -> str:
        """Return the SHA-256 of a file's bytes as hex, and note its version before."""
        self.add(file)
        return sha256(file)

    def check(self) -> None:
        """Check that every file is still what it was.

        Raises:
            BadInput: one was replaced or changed.
        """
        for path, version in self._versions.items():
            now = _version(path)
            if now != version:
                found = unquoted("none any more" if not now else "another one than at first")
                fix = "run the command again once nothing writes there"
                raise BadInput(path, "file", found, "one that stays while it is read", fix)


@contextlib.contextmanager
def unchanged(*files: str | Path) -> Iterator[Versions]:
    """Check after the body, also one that fails, that files which it reads have stayed the same.

    A body that writes something checks it before, by :meth:`Versions.check`.

    Raises:
        BadInput: one is missing, or was replaced or changed meanwhile.
    """
    versions = Versions(*files)
    try:
        yield versions
    except Exception:  # such as lengths that do not fit, which are but the consequence
        versions.check()
        raise
    versions.check()


def _version(path: Path) -> _Version:
    if path.is_dir():
        return {str(file): _file_version(file) for file in path.rglob("*") if not file.is_dir()}
    return _file_version(path)


def _file_version(path: Path) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
