"""The file with the state of a training loop: named tensors and a history, with a checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, uint8

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.atomic import check_file, write_bytes

_FORMAT = "stflow_graph.state/2"  # the first had neither a format nor a checksum
STATE_FIX = "remove it to train this fold anew"


def write_state(file: Path, tensors: Mapping[str, Tensor], history: list[Any]) -> None:
    """Write tensors by name, and a history of plain values, atomically."""
    # clones: tensors that share memory are not saved
    copies = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    text = json.dumps(history)
    metadata = {"format": _FORMAT, "history": text, "sha256": _hash(copies, text)}
    write_bytes(file, save(copies, metadata))


def read_state(file: Path) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors and the history that :func:`write_state` wrote.

    Raises:
        BadInput: the file is missing, or not as it was written.
        SafetensorError: it is none of these files; as KeyError, ValueError and TypeError.
    """
    with safe_open(check_file(file), "pt") as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}
        metadata = stored.metadata() or {}
    text = metadata["history"]
    is_sealed = "format" in metadata or "sha256" in metadata
    if is_sealed and metadata.get("sha256") != _hash(tensors, text):
        found = unquoted("another content than was written")
        raise BadInput(file, "sha256", found, "the content of this checksum", STATE_FIX)
    return tensors, json.loads(text)


def _hash(tensors: Mapping[str, Tensor], history: str) -> str:
    total = hashlib.sha256(history.encode())
    for key in sorted(tensors):
        value = tensors[key]
        total.update(repr((key, str(value.dtype), tuple(value.shape))).encode())
        total.update(value.reshape(-1).view(uint8).numpy().data)
    return total.hexdigest()
