"""Encoders by name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from pathlib import Path

from stflow_graph.encoders.efficientnet import efficientnet_lite0
from stflow_graph.encoders.encoder import Encoder
from stflow_graph.encoders.timm_model import resnet50, timm_encoder
from stflow_graph.encoders.torchvision_shim import import_timm
from stflow_graph.errors import BadConfig


@dataclasses.dataclass(frozen=True)
class EncoderEntry:
    """An encoder known by name: how it is made from a weights file (or None), and its width."""

    factory: Callable[[Path | None], Encoder]
    width: int


ENCODERS: dict[str, EncoderEntry] = {
    "efficientnet_lite0": EncoderEntry(efficientnet_lite0, 1280),
    "resnet50": EncoderEntry(resnet50, 1024),
}


def create_encoder(name: str, weights: str | Path | None = None) -> Encoder:
    """Return the encoder ``name`` with its weights.

    Args:
        name: a name of ``ENCODERS`` or any name of timm.
        weights: a weights file; None takes the encoder's own source (a package, or the hub).

    Raises:
        BadConfig: the name is unknown (lists those known), or the weights do not fit.
        BadInput: the weights file cannot be read.
        MissingDependency: the package with the weights is not installed.
    """
    file = None if weights is None else Path(weights)
    if name in ENCODERS:
        return ENCODERS[name].factory(file)
    timm = import_timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise BadConfig(
            f"unknown encoder {name!r}; known: {', '.join(ENCODERS)}, or a name of timm"
            + (f" such as {', '.join(near)}" if near else "")
        )
    return timm_encoder(name, file)
