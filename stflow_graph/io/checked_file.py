"""A file of which no failed write goes unnoticed, whatever library writes it."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any


class CheckedFile(io.RawIOBase):
    """A new file for libraries that lose errors, or crash on them, such as HDF5 as it closes.

    The first error, of the disk or a signal's, is kept and raised by :meth:`check` and
    :meth:`finish`. To the library every operation succeeds: after a failed write the content is
    kept in memory, so it is to be checked after every block of data.

    Args:
        path: where nothing is yet.

    Raises:
        OSError: it cannot be created.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
        self._descriptor: int | None = os.open(path, flags, 0o666)
        self._error: BaseException | None = None
        self._unwritten: list[tuple[int, bytes]] = []
        self._at = self._size = 0

    def check(self) -> None:
        """Raise the first error, if there was one."""
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Sync and close the file.

        Raises:
            OSError: the content is not on the disk.
        """
        self.check()
        assert self._descriptor is not None
        os.fsync(self._descriptor)
        descriptor, self._descriptor = self._descriptor, None
        os.close(descriptor)

    def write(self, data: Any) -> int:
        """Write at the current position; return the number of bytes, which is that of the data."""
        view = memoryview(data).cast("B")
        try:
            self._write(view)
        except BaseException as error:  # a signal's too: libraries in between would swallow it
            self._error = self._error or error
            self._unwritten.append((self._at, bytes(view)))
        self._at += len(view)
        self._size = max(self._size, self._at)
        return len(view)

    def _write(self, view: memoryview) -> None:
        assert self._descriptor is not None
        self.check()
        done = 0
        while done < len(view):
            written = os.pwrite(self._descriptor, view[done:], self._at + done)
            if written == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            done += written

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the current position on; zeros follow the end."""
        view = memoryview(buffer).cast("B")
        assert self._descriptor is not None
        try:
            content = os.pread(self._descriptor, len(view), self._at)
        except OSError as error:
            content, self._error = b"", self._error or error
        view[:] = content.ljust(len(view), b"\0")
        for at, data in self._unwritten:
            first, last = max(at, self._at), min(at + len(data), self._at + len(view))
            if first < last:
                view[first - self._at : last - self._at] = data[first - at : last - at]
        self._at += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the size of the file."""
        self._size = self._at if size is None else size
        try:
            if not self._unwritten:
                assert self._descriptor is not None
                os.ftruncate(self._descriptor, self._size)
        except OSError as error:
            self._error = self._error or error
        return self._size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = origin + offset
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def readable(self) -> bool:
        """Return True."""
        return True

    def writable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Do nothing: libraries close what they are given, :meth:`discard` closes it."""

    def discard(self) -> None:
        """Close the file if :meth:`finish` has not done so; errors no longer matter."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            try:
                os.close(descriptor)
            except OSError as error:
                self._error = self._error or error
