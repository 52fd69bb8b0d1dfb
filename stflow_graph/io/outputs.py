"""Checks of a place for results, before any work is done for them."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path

from stflow_graph.errors import BadInput, unquoted

_MAX_NAME = 255  # bytes, of every file system in use
_MARK = 48  # bytes that a temporary name adds to a file's
_FOUND = {errno.EEXIST: "a file", errno.ENOTDIR: "a path below a file"}
# what a write reports as the disk's fault, or what does not matter where all is up to date
_OF_THE_DISK = {errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE}


def check_output_folder(path: str | Path) -> Path:
    """Return ``path`` if it is a folder, or one can be made there.

    Nothing is made, as another process may be about to use the same folder.

    Raises:
        BadInput: it is a file, lies below one, where nothing can be made, or has too long a name.
    """
    path = Path(path)
    if fault := _fault(path):
        raise BadInput(path, "output", unquoted(fault), "a folder, or a place for one")
    return path


def check_output_file(path: str | Path) -> Path:
    """Return ``path`` if a file can be written there, or replaced.

    Raises:
        BadInput: it is a folder, or see :func:`check_output_folder`.
    """
    path = Path(path)
    if len(os.fsencode(path.name)) > _MAX_NAME - _MARK:
        raise BadInput(path, "output", unquoted("a name too long"), "a shorter name")
    fault = _fault(path.parent)
    if fault == _FOUND[errno.EEXIST]:  # of the folder
        fault = _FOUND[errno.ENOTDIR]
    if not fault and path.is_dir():
        fault = "a folder"
    if fault:
        raise BadInput(path, "output", unquoted(fault), "a file name in a folder that can be made")
    return path


def _fault(folder: Path) -> str:
    """Return why ``folder`` is none and cannot be made; "" if it is, or can."""
    try:
        if any(len(os.fsencode(part)) > _MAX_NAME for part in folder.parts):
            return "a name too long"  # below what does not exist, the system does not look
        with tempfile.TemporaryFile(dir=_nearest(folder)):
            return ""
    except ValueError:
        return "a name that no file can have"
    except OSError as error:
        number = error.errno or errno.EINVAL
        of_permission = number in (errno.EACCES, errno.EPERM)
        if number in _OF_THE_DISK or (of_permission and folder.is_dir()):
            return ""
        return _FOUND.get(number, os.strerror(number))


def _nearest(path: Path) -> Path:
    """Return the nearest folder, ``path`` itself or above it, that exists."""
    for place in (path, *path.parents):
        try:
            mode = place.stat().st_mode
        except FileNotFoundError:
            if place.is_symlink():  # to nothing: no folder can be made in its place
                raise
            continue
        if not stat.S_ISDIR(mode):
            code = errno.EEXIST if place == path else errno.ENOTDIR
            raise OSError(code, os.strerror(code))
        return place
    return Path()
