"""JSON objects of ours with a checksum of their content, as ``io.seal`` has for HDF5."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.atomic import read_object, write_json

# the entry with the checksum of the others: of a model's config.json, and of other files
JSON_SEAL = "config_sha256"
CONTENT_SEAL = "content_sha256"
_FIX = "copy the file again, or rerun the command that wrote it"


def seal_json(content: Mapping[str, Any], key: str = JSON_SEAL) -> dict[str, Any]:
    """Return an object of JSON with the checksum of its other entries."""
    return {**content, key: _json_hash(content)}


def check_json(
    content: Mapping[str, Any],
    path: str | Path,
    *,
    required: bool,
    key: str = JSON_SEAL,
    fix: str = _FIX,
) -> None:
    """Check that an object of JSON is as :func:`seal_json` returned it.

    Args:
        content: what was read.
        path: the file it comes from.
        required: whether it must have a checksum; else one that it has is checked.
        key: the entry with the checksum.
        fix: a remedy, one sentence.

    Raises:
        BadInput: it was changed.
    """
    stored = content.get(key)
    if stored is None and not required:
        return
    if stored != _json_hash({k: v for k, v in content.items() if k != key}):
        found = unquoted("another content than was written")
        raise BadInput(path, key, found, "the content of this checksum", fix)


def write_sealed(path: str | Path, format: str, content: Mapping[str, Any]) -> None:
    """Write an object of JSON atomically with its format and checksum."""
    write_json(path, seal_json({"format": format, **content}, CONTENT_SEAL))


def read_sealed(path: str | Path, unsealed: Collection[str | None], fix: str) -> dict[str, Any]:
    """Return what :func:`write_sealed` wrote, its format included.

    Args:
        path: the file.
        unsealed: formats of before there was a checksum, None if they stated none.
        fix: the remedy if it was changed, one sentence.

    Raises:
        BadInput: the file is missing, no JSON object, or not as it was written.
    """
    content = read_object(path)
    format = content.get("format")
    required = not (format is None or isinstance(format, str)) or format not in unsealed
    check_json(content, path, required=required, key=CONTENT_SEAL, fix=fix)
    content.pop(CONTENT_SEAL, None)
    return content


def _json_hash(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
