"""Arrays too large for memory, in files that vanish with them.

A file has no name (it is removed as soon as it is open), so that nothing is left however a process
ends. It is mapped into memory, where the system keeps what fits and takes away what others need.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from stflow_graph.errors import StorageFailed
from stflow_graph.graph.arrays import GrowingInMemory, Rows

_SHARED = 2**26  # bytes of a file that holds several arrays
_ALIGNED = 64
_BRIEFLY = 2**29  # bytes of an array that is needed briefly, up to which it is in memory
_RESIDENT = 2**29  # bytes of files that are mapped in at most
_EVERY = 0.1  # seconds between looks at how much is
_STATM = Path("/proc/self/statm")


class ScratchFiles:
    """Makes arrays on the CPU in files of a folder; a context, which may end before they do.

    Within it about half a gigabyte of their pages counts as the process's memory, where the
    system tells (Linux): more is handed to the system's cache of files.

    Args:
        folder: where the files are; made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maps: list[weakref.ref[mmap.mmap]] = []
        self._lock = threading.RLock()
        self._shared: _MappedFile | None = None
        self._used = 0
        self._stop = threading.Event()
        self._watch = threading.Thread(target=self._keep_small, daemon=True)
        self.writer = ThreadPoolExecutor(1)

    def __enter__(self) -> ScratchFiles:
        """Begin to hand pages to the system."""
        if _mapped() is not None:
            self._watch.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End that, and what is being written."""
        self.writer.shutdown(cancel_futures=True)
        self._stop.set()
        if self._watch.is_alive():
            self._watch.join()

    def growing(self, n_rows: int, *, briefly: bool = False) -> GrowingFile:
        """Return an array of N rows, which are put into it one after the other.

        Args:
            n_rows: N.
            briefly: whether few such arrays are needed at a time; they are in memory if not large.
        """
        return GrowingFile(self, n_rows, _BRIEFLY if briefly else 0)

    def keep(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor; small ones share files.

        Raises:
            StorageFailed: the disk is full or broken.
        """
        n_bytes = tensor.numel() * tensor.element_size()
        if not n_bytes:
            return tensor.clone()
        if n_bytes > _SHARED // 4:
            file, start = self._file(n_bytes), 0
        else:
            with self._lock:
                file, start = self._reserve(n_bytes)
        file.write(tensor, start)
        return file.read(tensor, start, tensor.shape)

    def _reserve(self, n_bytes: int) -> tuple[_MappedFile, int]:
        """Return a file that is shared, and where in it so many bytes are free."""
        if self._shared is None or self._used + n_bytes > _SHARED:
            self._shared, self._used = self._file(_SHARED), 0
        start = self._used
        self._used += -(-n_bytes // _ALIGNED) * _ALIGNED
        return self._shared, start

    def _file(self, n_bytes: int) -> _MappedFile:
        made = _MappedFile(self._folder, n_bytes)
        with self._lock:
            self._maps = [each for each in self._maps if each() is not None]
            self._maps.append(weakref.ref(made.map))
        return made

    def _keep_small(self) -> None:
        before = _mapped() or 0
        while not self._stop.wait(_EVERY):
            if (_mapped() or 0) > before + _RESIDENT:
                self._hand_over()

    def _hand_over(self) -> None:
        """Give all pages to the system's cache of files, where what was written stays."""
        with self._lock:
            maps = [each() for each in self._maps]
        for each in maps:
            if each is not None:
                each.madvise(mmap.MADV_DONTNEED)


class _MappedFile:
    """A file without a name that arrays are written to, and read by its map.

    To write through the map would take the system longer: it makes room page by page.
    """

    def __init__(self, folder: Path, n_bytes: int) -> None:
        self._folder, self._n_bytes = folder, n_bytes
        with self._storing():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                _allocate(file.fileno(), n_bytes)
                self.map = mmap.mmap(file.fileno(), n_bytes)
                self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageFailed(
                f"{self._folder}: no room for {self._n_bytes / 1e9:.1f} GB of temporary arrays "
                f"({error.strerror or error}). Fix: an --out on a larger disk"
            ) from error

    def write(self, tensor: Tensor, start: int) -> None:
        """Write a tensor of at least one number from a byte on."""
        if tensor.is_contiguous() or tensor.stride(-1) != 1:
            tensor = tensor.contiguous().view(-1)
        # by numpy: a second thread's pool for torch's operations would be in the way of the first's
        content = np.ascontiguousarray(tensor.view(torch.uint8).numpy()).reshape(-1).data
        with self._storing():
            while len(content):
                n = os.pwrite(self._file, content, start)
                content, start = content[n:], start + n

    def read(self, like: Tensor, start: int, shape: Sequence[int]) -> Tensor:
        """Return the tensor of a type and shape that was written from a byte on."""
        count = math.prod(shape)
        flat = torch.frombuffer(self.map, dtype=like.dtype, count=count, offset=start)
        return flat.view(shape)


class GrowingFile:
    """An array in a file, which rows are put into one after the other.

    Args:
        files: where the file is made.
        n_rows: N.
        in_memory: bytes of an array up to which it is in memory instead.
    """

    def __init__(self, files: ScratchFiles, n_rows: int, in_memory: int) -> None:
        self._files, self._n_rows, self._in_memory = files, n_rows, in_memory
        self._array: GrowingInMemory | None = None
        self._file: _MappedFile | None = None
        self._like = torch.empty(0, 0)
        self._pending: Future[None] | None = None
        self._n_done, self._n_bytes = 0, 0

    def put(self, rows: Rows, part: Tensor, to: Tensor | None = None) -> None:
        """Put rows ``[n, C]`` into the array, added to those of ``to [N, C]`` if it is given.

        They are written while the caller goes on, and must stay as they are.

        Raises:
            StorageFailed: the disk is full or broken.
            ValueError: they are not the next ones.
        """
        like = part if to is None else to
        n_bytes = self._n_rows * part.size(1) * like.element_size()
        if self._array is None and self._file is None:
            if n_bytes <= self._in_memory or not n_bytes:
                self._array = GrowingInMemory(self._n_rows)
            else:
                self._file, self._like = self._files._file(n_bytes), like[:0]
        if self._array is not None:
            self._array.put(rows, part, to)
            return
        start = rows.start or 0 if isinstance(rows, slice) else int(rows[0])
        if start != self._n_done:
            raise ValueError(f"row {start} is put into a file after {self._n_done} rows")
        assert self._file is not None
        self._wait()
        values = part if to is None else to[rows] + part
        self._pending = self._files.writer.submit(self._file.write, values, self._n_bytes)
        self._n_bytes += values.numel() * values.element_size()
        self._n_done += len(part)

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()

    def whole(self) -> Tensor:
        """Return the array ``[N, C]``, once all rows are there."""
        if self._array is not None:
            return self._array.whole()
        assert self._file is not None
        assert self._n_done == self._n_rows, "rows are missing"
        self._wait()
        return self._file.read(self._like, 0, (self._n_rows, self._like.size(1)))


def _allocate(file: int, n_bytes: int) -> None:
    """Reserve the bytes: a mapped file that finds the disk full later ends the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, n_bytes)
        return
    zeros = bytes(2**20)
    for start in range(0, n_bytes, len(zeros)):
        os.write(file, zeros[: n_bytes - start])


def _mapped() -> int | None:
    """Return the bytes of files and shared memory that are mapped in, None if it is not told."""
    if sys.platform != "linux":
        return None
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(_STATM.read_text().split()[2]) * mmap.PAGESIZE
    return None
