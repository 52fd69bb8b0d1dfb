"""Chunks of an HDF5 dataset packed by several threads; HDF5 itself packs one after the other."""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import h5py
import numpy as np

# of ``_pack``, in the order in which HDF5 applies them when a chunk is written
_FILTERS = (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32)


def write_rows(
    data: h5py.Dataset, rows: slice, values: np.ndarray, threads: ThreadPoolExecutor
) -> None:
    """Write some rows of a matrix, as ``data[rows] = values`` does and with the same bytes.

    Args:
        data: ``[N, G]``, little-endian, in chunks of whole rows, shuffled, compressed by deflate
            and with fletcher32; of another dataset HDF5 packs the chunks.
        rows: of whole chunks; of others HDF5 packs them.
        values: ``[n, G]``.
        threads: they pack the chunks, which are written here.
    """
    start, stop, _ = rows.indices(len(data))
    level = _level(data)
    height = data.chunks[0] if data.chunks else 1
    whole = start % height == 0 and (stop % height == 0 or stop == len(data))
    if level is None or not whole or len(values) != stop - start:
        data[rows] = values
        return
    values = np.ascontiguousarray(values, dtype=data.dtype)
    packed = partial(_pack, height=height, level=level)
    parts = [values[at : at + height] for at in range(0, len(values), height)]
    for i, chunk in enumerate(threads.map(packed, parts)):
        data.id.write_direct_chunk((start + i * height, 0), chunk)


def _level(data: h5py.Dataset) -> int | None:
    """Return the level of deflate of chunks that are packed as here, None of others."""
    if data.chunks is None or data.ndim != 2 or data.chunks[1] != data.shape[1]:
        return None
    properties = data.id.get_create_plist()
    filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    same = tuple(each[0] for each in filters) == _FILTERS and data.dtype.str.startswith("<")
    return int(filters[1][2][0]) if same else None


def _pack(values: np.ndarray, height: int, level: int) -> bytes:
    """Return the bytes of a chunk of so many rows, of which the last may have no values."""
    chunk = np.zeros((height, values.shape[1]), dtype=values.dtype)
    chunk[: len(values)] = values
    # shuffled: the first byte of all numbers, then the second ...
    by_place = chunk.view(np.uint8).reshape(-1, chunk.itemsize).T
    packed = zlib.compress(by_place.tobytes(), level)
    return packed + fletcher32(packed).to_bytes(4, "little")


def fletcher32(content: bytes) -> int:
    """Return HDF5's checksum of bytes: Fletcher's of 16-bit big-endian words, the last padded."""
    words = np.frombuffer(content + bytes(len(content) % 2), dtype=">u2").astype(np.uint64)
    after = np.arange(len(words), 0, -1, dtype=np.uint64)
    of_words, of_sums = int(words.sum()), int((words * after).sum())
    return (_folded(of_sums) << 16) | _folded(of_words)


def _folded(total: int) -> int:
    """Return a sum modulo 65,535, with 65,535 for 0, as adding carries back comes to."""
    return (total - 1) % 65535 + 1 if total else 0
