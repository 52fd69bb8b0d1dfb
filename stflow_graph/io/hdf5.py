"""Opening untrusted HDF5 files: checks before any array is read."""

from __future__ import annotations

import contextlib
import errno
import math
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stflow_graph.errors import BadInput, count, is_out_of_memory, unquoted
from stflow_graph.io.atomic import atomic_file, check_file
from stflow_graph.io.checked_file import CheckedFile
from stflow_graph.io.hdf5_trial import comes_back
from stflow_graph.io.seal import check_seal, seal

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# deflate reaches about 1000:1 on zeros; a sparse matrix of zeros stays below this
_MAX_RATIO = 5000
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
_MAX_TEXT_RATIO = 100  # names differ from one another
_MAX_REPEATS = 100  # of groups that are in several places
_SMALL = 64 * 2**20
_FIX = "copy it again or rerun the command that wrote it"


@contextlib.contextmanager
def open_h5(path: str | Path, *, check: bool = True) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading after checking its signature, links and declared sizes.

    Args:
        path: the file.
        check: also whether HDF5 gets through it, in another process first, and whether a file of
            ours is complete and matches its checksum, which reads all of it that HDF5 does not
            check itself.

    Raises:
        BadInput: missing, not HDF5, truncated, links outside itself, declares far more than it
            stores, or is one of ours that is not as it was written.
    """
    path = check_file(path)
    with path.open("rb") as raw:
        head = raw.read(8)
    if head != HDF5_SIGNATURE:
        raise BadInput(path, "content", head, f"an HDF5 file (signature {HDF5_SIGNATURE!r})")
    if check and not comes_back(path):
        found = unquoted("damage on which HDF5 hangs, crashes or takes all memory")
        raise BadInput(path, "content", found, "a readable HDF5 file", _FIX)
    try:
        file = _open(path)
    except BlockingIOError:
        fix = "wait for the program that writes it; if none does, set HDF5_USE_FILE_LOCKING=FALSE"
        expected = "a file that nobody is writing"
        raise BadInput(path, "file", unquoted("a lock"), expected, fix) from None
    except OSError as error:
        text = " ".join(str(error).split())
        if "truncated" in text:
            found = unquoted(text[text.find("truncated") :].rstrip(")"))
            raise BadInput(path, "content", found, "all bytes", _FIX) from None
        raise BadInput(path, "content", text, "a readable HDF5 file") from None
    with file:
        try:
            _check_contents(path, file)
            if check:
                check_seal(file, path)
            yield file
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno):
                raise  # the machine's error, not the file's
            if not _is_of_h5py(error):
                raise
            expected = "data that can be read and match their checksum"
            raise BadInput(path, "content", str(error), expected) from None


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if not lacks_locks(error):
            raise
    # outputs of this package are replaced, never written in place
    return h5py.File(path, "r", locking=False)


def lacks_locks(error: OSError) -> bool:
    """Return whether HDF5 could not open a file as its file system has no locks, such as NFS."""
    return error.errno in _NO_LOCKS and "unable to lock file" in str(error)


def _is_of_h5py(error: BaseException) -> bool:
    """Return whether h5py raised an error: those of HDF5 on a damaged file are of many types."""
    last = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        last = frame.f_code.co_filename
    return "h5py" in last


def _check_contents(path: Path, file: h5py.File) -> None:
    seen = {hash(file.id)}
    pending: list[tuple[str, h5py.Group, frozenset[int]]] = [("", file, frozenset(seen))]
    declared, stored, count, repeats = 0, path.stat().st_size, 0, 0
    while pending:
        prefix, group, around = pending.pop()
        for name in group:
            count += 1
            full = f"{prefix}/{name}"
            if count > 100_000 or full.count("/") > 64:
                raise BadInput(path, "groups", unquoted("too many or too deep"), "at most 100,000")
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise BadInput(path, full, unquoted(type(link).__name__), "data inside the file")
            item = group[name]
            if isinstance(item, h5py.Group):
                key = hash(item.id)
                repeats += key in seen
                _check_place(path, full, key in around, repeats)
                seen.add(key)
                pending.append((full, item, around | {key}))
            elif isinstance(item, h5py.Dataset):
                if item.is_virtual or item.external:
                    raise BadInput(path, full, unquoted("external data"), "data inside the file")
                if item.shape is not None:  # anndata's None
                    size = int(np.prod(item.shape, dtype=float)) * item.dtype.itemsize
                    declared += size
                    _check_chunks(path, full, item, size)
    if declared > _SMALL + _MAX_RATIO * stored:
        found = unquoted(f"{declared:,} bytes declared, {stored:,} stored")
        raise BadInput(path, "size", found, "real data")


def _check_place(path: Path, name: str, is_inside_itself: bool, repeats: int) -> None:
    """Refuse groups that a reader of all places never gets through.

    One inside itself also ends at Python's limit of recursion, at times within h5py, which then
    keeps its lock: every other thread of the process waits for it for good.
    """
    if is_inside_itself:
        raise BadInput(path, name, unquoted("a group inside itself"), "a tree of groups")
    if repeats > _MAX_REPEATS:
        found = unquoted("the same groups in too many places")
        raise BadInput(path, name, found, f"at most {_MAX_REPEATS} repetitions")


def _check_chunks(path: Path, name: str, data: h5py.Dataset, size: int) -> None:
    """Refuse chunks much larger than the array, of which HDF5 takes one into memory as a whole."""
    chunk = int(np.prod(data.chunks or (), dtype=float)) * data.dtype.itemsize
    if chunk > _SMALL + size:
        found = unquoted(f"chunks of {chunk:,} bytes for {size:,}")
        raise BadInput(path, name, found, "chunks of the array's size or smaller")


@contextlib.contextmanager
def create_h5(path: str | Path, format: str) -> Iterator[tuple[h5py.File, CheckedFile]]:
    """Write an HDF5 file atomically, with its mark and checksum as the last thing.

    HDF5 writes to a :class:`CheckedFile`, which the body checks after every block of data.

    Args:
        path: the final path.
        format: the format mark.

    Raises:
        StorageFailed: a write failed; a file that was at the path stays.
    """
    # The format of HDF5 1.10 has checksums over all that describes the data; in the older ones a
    # flipped bit of an index gives zeros. Without a cache chunks are packed as they are handed
    # over, not when an object is closed, where an error would be lost.
    options = {"libver": ("v110", "v110"), "rdcc_nbytes": 0}
    with atomic_file(path) as output, h5py.File(output, "w", **options) as file:
        yield file, output
        seal(file, format)


def dataset(group: h5py.Group, names: Sequence[str]) -> h5py.Dataset:
    """Return the first dataset that exists among ``names`` (accepted spellings) in a file or group.

    Raises:
        BadInput: none exists, with the keys found in the message, or it is empty.
    """
    for name in names:
        data = group.get(name)
        if isinstance(data, h5py.Dataset):
            if data.shape is None:
                raise BadInput(group.file.filename, data.name, unquoted("nothing"), "an array")
            return data
    expected = " or ".join(repr(name) for name in names)
    prefix = "" if isinstance(group, h5py.File) else f"{group.name[1:]}/"
    raise BadInput(group.file.filename, prefix + names[0], keys_of(group), expected)


def keys_of(group: Iterable[str]) -> str:
    """Return the keys of a group, or another container, for messages."""
    keys = sorted(map(repr, group))[:20]
    return unquoted(f"keys {', '.join(keys)}" if keys else "no keys")


def read_strings(data: h5py.Dataset) -> list[str]:
    """Read barcodes of shape (N,) or (N, 1), bytes or str, as a list of str.

    Raises:
        BadInput: another shape, or not text.
    """
    if data.ndim not in (1, 2) or (data.ndim == 2 and data.shape[1] != 1):
        raise BadInput(data.file.filename, data.name, data.shape, "(N,) or (N, 1)")
    declared, stored = data.size * data.dtype.itemsize, data.id.get_storage_size()
    if declared > _SMALL + _MAX_TEXT_RATIO * stored:
        found = unquoted(f"{declared:,} bytes declared, {stored:,} stored")
        raise BadInput(data.file.filename, data.name, found, "real names")
    values = np.asarray(data[()]).reshape(-1)
    if values.dtype.kind not in "SOU":
        raise BadInput(data.file.filename, data.name, str(values.dtype), "text")
    try:
        return [v.decode("utf-8") if isinstance(v, bytes) else str(v) for v in values]
    except UnicodeDecodeError:
        raise BadInput(data.file.filename, data.name, unquoted("bytes"), "UTF-8 text") from None


def check_unique(values: Sequence[str], path: str | Path, field: str) -> None:
    """Check that values are unique.

    Raises:
        BadInput: they are not; the message has three of the duplicates.
    """
    if len(set(values)) == len(values):
        return
    seen: set[str] = set()
    twice = [v for v in values if v in seen or seen.add(v)]  # type: ignore[func-returns-value]
    raise BadInput(
        path, field, unquoted(f"{count(len(twice), 'duplicate')}, such as {twice[:3]}"), "unique"
    )


def number_of(attrs: Mapping[str, Any], key: str) -> float | None:
    """Return an attribute that is a finite number, in an array of one too, else None."""
    value = np.asarray(attrs.get(key))
    if value.size != 1 or value.dtype.kind not in "iuf":
        return None
    number = float(value.item())
    return number if math.isfinite(number) else None


def plain_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as text, numbers and lists of them; empty ones are None."""
    return {key: _plain(value) for key, value in attrs.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, h5py.Empty):
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value
