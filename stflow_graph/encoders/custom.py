"""Encoders outside the catalogue: any model of timm, and ``--encoder module:factory``.

A file ``my_encoder.py`` in the working directory, and
``stflow-graph embed --encoder my_encoder:tiny``::

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

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from stflow_graph.encoders.catalogue import ENCODERS, canonical_name
from stflow_graph.encoders.encoder import Blueprint, Encoder, hash_weights
from stflow_graph.encoders.torchvision_shim import import_timm
from stflow_graph.encoders.transform import PatchTransform
from stflow_graph.errors import BadConfig, StflowError, StorageFailed, short_repr, unquoted
from stflow_graph.resolve import resolve

_RESULT = "an Encoder, or (network, transform, width)"


def custom_encoder(name: str, weights: Path | None = None) -> Encoder:
    """Return the encoder of a factory ``module:factory``.

    Args:
        name: the factory.
        weights: the factory's argument; None calls it without arguments.

    Raises:
        BadConfig: the factory does not exist, fails or returns something else, or its encoder has
            the name of an encoder of this package.
    """
    factory = resolve(name)
    if not callable(factory):
        raise BadConfig(f"encoder {name!r}: expected a function that returns {_RESULT}")
    try:
        result = factory() if weights is None else factory(weights)
    except StflowError:
        raise
    except Exception as error:
        text = short_repr(unquoted(" ".join(f"{type(error).__name__}: {error}".split())))
        raise BadConfig(f"encoder {name!r}: its factory failed: {text}") from error
    encoder = result if isinstance(result, Encoder) else _from_parts(name, result)
    if canonical_name(encoder.name) in ENCODERS:
        raise BadConfig(
            f"encoder {name!r}: {encoder.name!r} is an encoder of this package, and embedding "
            "files carry the name. Fix: rename the function"
        )
    return encoder


def _from_parts(name: str, parts: Any) -> Encoder:
    if not isinstance(parts, tuple) or len(parts) != 3:
        raise BadConfig(f"encoder {name!r}: expected {_RESULT}, got {type(parts).__name__}")
    network, transform, width = parts
    valid = isinstance(network, nn.Module) and callable(transform) and isinstance(width, int)
    if not valid or width < 1:
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise BadConfig(f"encoder {name!r}: expected {_RESULT}, got ({kinds})")
    return Encoder(name.partition(":")[2], network, width, transform, hash_weights(network))


def timm_encoder(name: str, weights: Path | None) -> Encoder:
    """Return any model of timm without its classifier, with its own transform.

    Args:
        name: timm's name, such as ``vit_small_patch16_224.augreg_in1k``.
        weights: a state dict with timm's keys; None downloads timm's own weights.

    Raises:
        BadConfig: there are no such weights, or the file's keys are not the model's.
        StorageFailed: the hub cannot be reached.
    """
    timm = import_timm()
    build = partial(timm.create_model, name, num_classes=0)
    if weights is None:
        network = _pretrained(name, build)
    else:
        head = getattr(timm.get_pretrained_cfg(name), "classifier", None) or ()
        heads = (head,) if isinstance(head, str) else head
        network = Blueprint(build, unused=tuple(f"{name}." for name in heads)).load(weights)
    transform = PatchTransform.of_timm(timm.data.resolve_data_config({}, model=network))
    return Encoder(name, network, int(network.num_features), transform, hash_weights(network))


def _pretrained(name: str, build: partial[Any]) -> Any:
    try:
        return build(pretrained=True)
    except MemoryError:
        raise
    except Exception as error:  # hub clients raise their own kinds for every fault of a network
        text = " ".join(str(error).split())[:200]
        raise _kind_of(error)(
            f"encoder {name!r}: its weights could not be fetched ({text}). "
            "Fix: give --weights FILE (safetensors or a state dict with timm's keys)"
        ) from None


def _kind_of(error: Exception) -> type[StflowError]:
    """Return the class for an error of the hub's client: nobody answered, or another."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    unreachable = isinstance(error, ConnectionError | LocalEntryNotFoundError)
    return StorageFailed if unreachable and not constants.HF_HUB_OFFLINE else BadConfig
