"""The record of how a prediction was made: JSON text in its file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from stflow_graph.errors import BadInput
from stflow_graph.io.hdf5 import keys_of

KEY = "stflow_graph"
_MAX_UM = 1e6


def parse_provenance(text: Any, path: str | Path, keys: Iterable[str]) -> dict[str, Any]:
    """Return the provenance of a prediction.

    Args:
        text: what is stored as such, None if nothing is.
        path: of the prediction, for messages.
        keys: of ``uns``, for messages.

    Raises:
        BadInput: no such record, or an entry of another type than ``sample`` writes.
    """
    try:
        provenance = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        provenance = None
    if not isinstance(provenance, dict) or not {"slide", "target"} <= provenance.keys():
        fix = "give a file that `stflow-graph sample` wrote"
        raise BadInput(path, "uns", keys_of(keys), f"{KEY!r} with its provenance", fix)
    for name, (is_valid, expected) in _ENTRIES.items():
        value = provenance.get(name)
        if not (is_valid(value) or (value is None and name not in ("slide", "target"))):
            raise BadInput(path, f"uns[{KEY!r}] {name}", value, expected)
    return provenance


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_length(value: object) -> bool:
    return _is_number(value) and 0 < value <= _MAX_UM


def _is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a number; comparing NaN with bounds is false."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_range(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    flags = [isinstance(value.get(name), bool) for name in ("slide", "embeddings")]
    share, stain = value.get("share"), value.get("stain")
    is_share = _is_number(share) and 0 <= share <= 1
    return all(flags) and is_share and (stain is None or isinstance(stain, bool))


def _is_grid(value: object) -> bool:
    pitch = value.get("pitch_um") if isinstance(value, Mapping) else False
    return pitch is None or _is_length(pitch)


_ENTRIES: Mapping[str, tuple[Callable[[object], bool], str]] = {
    **dict.fromkeys(
        ("slide", "target", "dataset", "encoder", "protocol", "checkpoint_sha256"),
        (_is_text, "text"),
    ),
    **dict.fromkeys(("train_slides", "genes", "warnings"), (_are_names, "a list of texts")),
    **dict.fromkeys(("um_per_px", "patch_um"), (_is_length, "a positive number")),
    "grid": (_is_grid, "its layout and distances"),
    "in_range": (_is_range, "how far the slide lies from those of training"),
}
