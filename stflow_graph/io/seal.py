"""Checksums of our HDF5 files: over all that HDF5 itself does not protect."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stflow_graph.errors import BadInput, as_bad_input, unquoted

SEAL = "sha256"
_FIX = "copy the file again, or rerun the command that wrote it"


def seal(file: h5py.File, format: str) -> None:
    """Mark a file as complete and state the checksum of its content, as the last thing.

    Arrays stored with HDF5's own checksum (fletcher32), which is checked when they are read,
    count by their shape and type; text of any length, which that does not cover, by its content.
    """
    file.flush()  # errors of closing objects would be lost
    file.attrs.update(format=format, complete=1)
    file.attrs[SEAL] = content_hash(file)


def check_seal(file: h5py.File, path: Path) -> None:
    """Check that a file of ours is complete and its content what was written.

    Files of others have none of the marks and pass.

    Raises:
        BadInput: one of the marks is missing, or the content is another.
    """
    stored, complete = file.attrs.get(SEAL), file.attrs.get("complete")
    is_ours = str(file.attrs.get("format", "")).startswith("stflow_graph.")
    # one of the marks suffices, if its value is ours: others may use the name, too
    if not (is_ours or _is_checksum(stored) or _is_one(complete)):
        return
    if complete is None:
        raise BadInput(path, "complete", unquoted("no mark"), "a completed write", _FIX)
    if stored is None:
        raise BadInput(path, SEAL, unquoted("no checksum"), "that of the content", _FIX)
    with as_bad_input(path, "content", "a file that can be read"):
        changed = not isinstance(stored, str) or stored != content_hash(file)
    if changed:
        found = unquoted("another content than was written")
        raise BadInput(path, SEAL, found, "the content of this checksum", _FIX)


def _is_checksum(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_one(value: Any) -> bool:
    return isinstance(value, np.integer) and value == 1


def content_hash(file: h5py.File) -> str:
    """Return a SHA-256, as hex, of the names, attributes and data of a file.

    Raises:
        ValueError: a group is inside itself, which only damage does.
    """
    total, seen = hashlib.sha256(), set[int]()
    pending: list[tuple[str, h5py.Group | h5py.Dataset]] = [("/", file)]
    while pending:
        name, item = pending.pop()
        keys = [key for key in sorted(item.attrs) if (name, key) != ("/", SEAL)]
        _add(total, name, repr(keys))
        for key in keys:
            _add(total, key, item.attrs[key])
        if isinstance(item, h5py.Group):
            if hash(item.id) in seen:
                raise ValueError(f"the group {name} a second time")
            seen.add(hash(item.id))
            pending += [(f"{name}{key}/", item[key]) for key in sorted(item)]
        else:
            kind = (item.dtype.str, item.shape, item.fletcher32, item.compression)
            _add(total, "kind", repr(kind))
            is_text = h5py.check_string_dtype(item.dtype) is not None
            if is_text or not item.fletcher32:
                _add(total, "data", item[()])
    return total.hexdigest()


def _add(total: Any, name: str, value: Any) -> None:
    """Add a name and a value to a hash, such that no other two give the same bytes."""
    array = np.asarray("empty" if isinstance(value, h5py.Empty) else value)
    if array.dtype == object:
        texts = [v if isinstance(v, bytes) else str(v).encode() for v in array.reshape(-1)]
        kind, parts = "text", [np.array([len(t) for t in texts], "<i8").tobytes(), *texts]
    elif array.dtype.kind == "U":
        kind, parts = "str", ["\0".join(array.reshape(-1).tolist()).encode()]
    else:
        kind, parts = array.dtype.str, [array.tobytes()]
    head = repr((name, kind, array.shape, sum(map(len, parts))))
    total.update(head.encode("utf-8", "surrogateescape"))
    total.update(b"".join(parts))
