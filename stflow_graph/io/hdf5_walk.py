"""Walks through HDF5 files, in a process of its own: a damaged one can hang or crash HDF5.

Run as a script by ``io.hdf5_trial``: reads a path a line (JSON), reads all of that file but plain
arrays, and answers ``done`` once HDF5 came back, also with an error, or ``died`` if a gigabyte of
memory was not enough. It ends without an answer where HDF5 crashes, or takes seconds of computing.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import sys
import time
from typing import Any

import h5py

_MAX_MEMBERS = 100_000  # ``io.hdf5`` refuses more
_MAX_TEXT = 2**26  # bytes of pointers to text of any length, which damage can send in circles
_MAX_MEMORY = 2**30  # beyond what the libraries reserve
# of computing, which a slow disk does not take; members of a large file take longer
_MIN_SECONDS, _MAX_SECONDS, _BYTES_PER_SECOND = 1, 60, 5_000_000


def main() -> None:
    """Answer paths until there are no more."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    print("ready", flush=True)
    for line in sys.stdin:
        attempt = _Attempt()
        with attempt:
            path = json.loads(line)
            _limit(min(_MIN_SECONDS + os.path.getsize(path) / _BYTES_PER_SECOND, _MAX_SECONDS))
            with h5py.File(path, "r", locking=False) as opened:
                _walk(opened, path, attempt)
        print("died" if attempt.took_memory else "done", flush=True)


def _limit(seconds: float) -> None:
    """Limit the computing and the memory from here on; the former ends the process."""
    limits = {"CPU": math.ceil(time.process_time() + seconds)}
    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:  # Linux
        limits["AS"] = int(file.read().split()[0]) * resource.getpagesize() + _MAX_MEMORY
    for name, limit in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        with contextlib.suppress(ValueError, OSError):  # above the limit that there is
            resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))


class _Attempt:
    """A context that suppresses errors, and notes those of memory that was not enough."""

    took_memory = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, frames: object) -> bool:
        if isinstance(error, MemoryError) or "memory allocation failed" in str(error):
            self.took_memory = True
        return error is None or isinstance(error, Exception)


def _walk(file: Any, path: str, attempt: _Attempt) -> None:
    pending, seen, count = [file], {hash(file.id)}, 0
    while pending:
        group = pending.pop()
        _read_attributes(group, attempt)
        for name in group:
            count += 1
            if count > _MAX_MEMBERS:
                return
            with attempt:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    continue
                item = group[name]
                if isinstance(item, h5py.Group):
                    if hash(item.id) not in seen:
                        seen.add(hash(item.id))
                        pending.append(item)
                elif isinstance(item, h5py.Dataset) and not (item.is_virtual or item.external):
                    _read_attributes(item, attempt)
                    attempt.took_memory |= _has_endless_chunk(item, path)
                    _read_text(item)


def _read_attributes(item: Any, attempt: _Attempt) -> None:
    with attempt:
        for name in item.attrs:
            with attempt:
                item.attrs[name]


def _has_endless_chunk(data: Any, path: str) -> bool:
    """Return whether the index of an array states a chunk that is larger than the file."""
    if not data.chunks:
        return False
    if not hasattr(data.id, "chunk_iter"):  # older versions of HDF5
        data.id.get_num_chunks()
        return False
    size = os.path.getsize(path)
    # HDF5 goes on until the function returns something
    return bool(data.id.chunk_iter(lambda chunk: True if chunk.size > size else None))


def _read_text(data: Any) -> None:
    is_text = data.dtype.kind == "O"
    if is_text and data.shape is not None and data.size * data.dtype.itemsize <= _MAX_TEXT:
        data[()]


if __name__ == "__main__":
    main()
