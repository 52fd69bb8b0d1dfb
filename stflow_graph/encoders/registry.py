"""Encoders by name: the catalogue's, timm's, and the user's own."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

import torch

from stflow_graph.encoders.catalogue import ENCODERS, canonical_name
from stflow_graph.encoders.conch import conch
from stflow_graph.encoders.ctranspath import ctranspath
from stflow_graph.encoders.custom import custom_encoder
from stflow_graph.encoders.efficientnet import efficientnet_lite0
from stflow_graph.encoders.encoder import Encoder
from stflow_graph.encoders.entry import EncoderEntry, Vit
from stflow_graph.encoders.family import Blueprint
from stflow_graph.encoders.hub import fetch_weights
from stflow_graph.encoders.locate import find_weights
from stflow_graph.encoders.resnet import ciga, resnet50
from stflow_graph.encoders.timm_model import timm_encoder
from stflow_graph.encoders.torchvision_shim import import_timm
from stflow_graph.encoders.vit import vit
from stflow_graph.encoders.weights import hash_weights, load_strictly
from stflow_graph.errors import BadConfig
from stflow_graph.io.state_dict import read_state_dict

_FAMILIES: dict[str, Callable[[], Blueprint]] = {
    "ciga": ciga,
    "conch": conch,
    "ctranspath": ctranspath,
    "efficientnet_lite0": efficientnet_lite0,
    "resnet50": resnet50,
}


def create_encoder(
    name: str, weights: str | Path | None = None, weights_root: str | Path | None = None
) -> Encoder:
    """Return the encoder ``name`` with its weights.

    Args:
        name: a name or alias of ``ENCODERS``, any name of timm, or ``module:factory``.
        weights: a weights file (safetensors or a torch file of tensors); None looks in
            ``weights_root``, in the hub's cache, in a package, and last on the hub.
        weights_root: a folder with ``<name>/<file>``, as ``ENCODERS[name].place`` says.

    Raises:
        BadConfig: the name is unknown (lists those known), the weights do not fit (names the keys),
            or they are nowhere to be found (names the page to ask at).
        BadInput: the weights file cannot be read.
    """
    file = None if weights is None else Path(weights)
    if ":" in name:
        return custom_encoder(name, file)
    if canonical_name(name) in ENCODERS:
        entry = ENCODERS[canonical_name(name)]
        if file is None:
            found = find_weights(entry, weights_root)
            file = fetch_weights(entry, weights_root) if found is None else found.path
        return build_encoder(entry, file)
    timm = import_timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*ENCODERS, *timm.list_models()], n=3)
        raise BadConfig(
            f"unknown encoder {name!r}; known: {', '.join(ENCODERS)}, a name of timm, or "
            "'module:factory'" + (f"; near: {', '.join(near)}" if near else "")
        )
    return timm_encoder(name, file)


def blueprint(entry: EncoderEntry) -> Blueprint:
    """Return how the networks of an entry's family are made."""
    architecture = entry.architecture
    return vit(architecture) if isinstance(architecture, Vit) else _FAMILIES[architecture]()


def build_encoder(entry: EncoderEntry, weights: Path) -> Encoder:
    """Return an encoder of the catalogue with the weights of a file.

    Raises:
        BadConfig: the file's names or shapes are not the network's; names the first few.
        BadInput: the file cannot be read.
    """
    plan = blueprint(entry)
    state = read_state_dict(weights)
    if plan.telltale is not None and plan.telltale not in state:
        raise BadConfig(
            f"{weights}: weights do not fit the encoder: 1 missing (such as {plan.telltale})"
        )
    state = plan.rename(state)
    with torch.device("meta" if plan.on_meta else "cpu"):
        network = plan.build()
    load_strictly(network, state, weights, plan.unused, assign=plan.on_meta)
    sha = hash_weights(network)
    return Encoder(entry.name, network, entry.width, entry.transform, sha, plan.pool)
