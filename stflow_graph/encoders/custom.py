"""Encoders from outside the package: ``--encoder module:factory``.

A file ``my_encoder.py`` beside the user, and ``stflow-graph embed --encoder my_encoder:tiny``::

    import timm
    from stflow_graph.encoders import PatchTransform

    def tiny(weights=None):
        network = timm.create_model("resnet18", pretrained=weights is None, num_classes=0)
        return network, PatchTransform(224, interpolation="bilinear"), 512

The factory returns an :class:`Encoder`, or a network, its transform (anything that maps
``[B, P, P, 3]`` uint8 to the network's input) and the width of its embeddings. With
``--weights FILE`` it is called with that path, otherwise with nothing. Embedding files carry the
encoder's name: the factory's, here ``tiny``, or that of the Encoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from stflow_graph.encoders.catalogue import ENCODERS, canonical_name
from stflow_graph.encoders.encoder import Encoder
from stflow_graph.encoders.weights import hash_weights
from stflow_graph.errors import BadConfig, StflowError, short_repr, unquoted
from stflow_graph.resolve import resolve

_FORM = "an Encoder, or (network, transform, width)"


def custom_encoder(name: str, weights: Path | None = None) -> Encoder:
    """Return the encoder that the factory ``module:factory`` makes.

    Args:
        name: the factory.
        weights: a file it is called with; None calls it without arguments.

    Raises:
        BadConfig: the factory is not there, fails, returns something else, or has the name of an
            encoder of this package.
    """
    factory = resolve(name)
    if not callable(factory):
        raise BadConfig(f"encoder {name!r}: expected a function that returns {_FORM}")
    try:
        made = factory() if weights is None else factory(weights)
    except StflowError:
        raise
    except Exception as error:
        text = short_repr(unquoted(" ".join(f"{type(error).__name__}: {error}".split())))
        raise BadConfig(f"encoder {name!r}: its factory failed: {text}") from error
    encoder = made if isinstance(made, Encoder) else _of_parts(name, made)
    if canonical_name(encoder.name) in ENCODERS:
        raise BadConfig(
            f"encoder {name!r}: {encoder.name!r} is an encoder of this package, and files carry "
            "the name. Fix: name the function otherwise"
        )
    return encoder


def _of_parts(name: str, made: Any) -> Encoder:
    if not isinstance(made, tuple) or len(made) != 3:
        raise BadConfig(f"encoder {name!r}: expected {_FORM}, got {type(made).__name__}")
    network, transform, width = made
    fits = isinstance(network, nn.Module) and callable(transform) and isinstance(width, int)
    if not fits or width < 1:
        kinds = ", ".join(type(part).__name__ for part in made)
        raise BadConfig(f"encoder {name!r}: expected {_FORM}, got ({kinds})")
    return Encoder(name.partition(":")[2], network, width, transform, hash_weights(network))
