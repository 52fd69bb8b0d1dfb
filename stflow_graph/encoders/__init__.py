"""Patch encoders: a catalogue of names with weights, transforms and widths.

The catalogue needs no torch; ``Encoder`` and ``create_encoder``, which do, are imported on use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stflow_graph.encoders.catalogue import ENCODERS
from stflow_graph.encoders.entry import EncoderEntry
from stflow_graph.encoders.transform import PatchTransform

if TYPE_CHECKING:
    from stflow_graph.encoders.encoder import Encoder
    from stflow_graph.encoders.registry import create_encoder

__all__ = ["ENCODERS", "Encoder", "EncoderEntry", "PatchTransform", "create_encoder"]
_NEEDS_TORCH = {"Encoder": "encoder", "create_encoder": "registry"}


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NEEDS_TORCH[name]}"), name)
