"""Patch encoders: a catalogue of names, each with its weights, transform and width.

The catalogue needs no torch; what does is imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stflow_graph.encoders.catalogue import ENCODERS
from stflow_graph.encoders.entry import EncoderEntry
from stflow_graph.encoders.transform import PatchTransform

if TYPE_CHECKING:
    from stflow_graph.encoders.encoder import Encoder
    from stflow_graph.encoders.registry import create_encoder

__all__ = ["ENCODERS", "Encoder", "EncoderEntry", "PatchTransform", "create_encoder"]


def __getattr__(name: str) -> Any:
    if name == "Encoder":
        from stflow_graph.encoders.encoder import Encoder

        return Encoder
    if name == "create_encoder":
        from stflow_graph.encoders.registry import create_encoder

        return create_encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
