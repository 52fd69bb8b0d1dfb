"""What becomes of freed memory: kept where it is soon needed again, else given back to the system.

The C library returns large arrays to the system at once, which hands them out again page by page,
zeroed. For the activations of a convolutional encoder that takes as long as computing them. Of
smaller arrays that were freed between others it returns nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

# parameters of glibc's mallopt
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# what glibc itself would come to at most, from larger arrays that are freed
_ARRAY, _IN_ALL = 2**25, 2**26
_kept: list[int] = []  # the largest arrays of the bodies that are running, outermost first


@contextlib.contextmanager
def freed_memory_kept(largest: int = 2**28) -> Iterator[None]:
    """Keep freed arrays within the body, and four times the largest of them at the heap's end.

    The settings are the process's: of bodies within one another the innermost's hold, and bodies of
    several threads must not overlap. After the outermost, free memory is given back. Nothing is
    done where the C library is not glibc.

    Args:
        largest: bytes of an array that is kept; larger ones are given back at once.
    """
    library = _glibc()
    if library is None:
        yield
        return
    _keep(library, largest)
    _kept.append(largest)
    try:
        yield
    finally:
        _kept.pop()
        if _kept:
            _keep(library, _kept[-1])
        else:
            library.mallopt(_MMAP_THRESHOLD, _ARRAY)
            library.mallopt(_TRIM_THRESHOLD, _IN_ALL)
            library.malloc_trim(0)


def _keep(library: ctypes.CDLL, largest: int) -> None:
    if not library.mallopt(_MMAP_THRESHOLD, largest):  # before glibc 2.35
        library.mallopt(_MMAP_THRESHOLD, _ARRAY)
    library.mallopt(_TRIM_THRESHOLD, 4 * largest)


def give_back_freed_memory() -> None:
    """Return to the system what is free anywhere in the heap; nothing where there is no glibc."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
