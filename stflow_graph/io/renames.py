"""Renames that put a file or a folder in its place in one step, and take it back if that fails."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from pathlib import Path

_AT_FDCWD, _EXCHANGE = -100, 2
# kernels, file systems and sandboxes without this call
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
# file systems that sync a folder by themselves
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}


class HalfDoneError(OSError):
    """A rename failed, and so did taking it back; ``state`` is a sentence on what is where."""

    def __init__(self, error: OSError, state: str) -> None:
        super().__init__(error.errno, error.strerror)
        self.state = state


def put(temporary: Path, path: Path) -> None:
    """Rename a complete file or folder to its final path, on the disk when this returns.

    What was at ``path`` is then at ``temporary``, unless it was a file and the file system cannot
    exchange two names. At any instant ``path`` holds the old or the new; only a folder on such a
    file system is absent for an instant, set aside under the name that :func:`set_aside` returns.

    Raises:
        HalfDoneError: the disk failed so that not even the old state could be brought back.
        OSError: the disk failed; ``path`` is as it was.
    """
    existed = os.path.lexists(path)
    exchanged = existed and _swap(temporary, path)
    if not existed:
        os.rename(temporary, path)
    try:
        sync_folder(path.parent)
    except BaseException as error:
        if existed and not exchanged:
            state = "The new content is there, and may be lost in a power failure"
            raise HalfDoneError(_os_error(error), state) from error
        try:
            _swap(temporary, path) if existed else os.rename(path, temporary)
        except OSError:
            state = "The new content is there, and may be lost in a power failure"
            raise HalfDoneError(_os_error(error), state) from error
        raise


def set_aside(temporary: Path) -> Path:
    """Return the name of an old folder while a new one takes its place in two steps."""
    return temporary.with_suffix(".old")


def _swap(temporary: Path, path: Path) -> bool:
    """Put one in the place of another; return whether the old one is at ``temporary``."""
    if _exchange(temporary, path):
        return True
    if not temporary.is_dir():
        os.replace(temporary, path)
        return False
    aside = set_aside(temporary)
    os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except BaseException as error:
        try:
            os.rename(aside, path)
        except OSError:
            state = f"The old content is in {aside.name} beside it; the next write restores it"
            raise HalfDoneError(_os_error(error), state) from error
        raise
    os.rename(aside, temporary)  # under this name it is rubbish
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; return False where that is not supported."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def sync(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, descriptor)
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until a folder's names are on the disk, where the file system can do that."""
    try:
        sync(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def sync_tree(folder: Path) -> None:
    """Wait until a folder with all that is in it is on the disk."""
    for parent, _, files in os.walk(folder):
        for name in files:
            sync(Path(parent, name))
        sync_folder(Path(parent))


def _os_error(error: BaseException) -> OSError:
    return error if isinstance(error, OSError) else OSError(errno.EINTR, os.strerror(errno.EINTR))
