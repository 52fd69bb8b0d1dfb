"""Encoders by name: the catalogue's, timm's, and the user's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stflow_graph.encoders.adapter import merge_adapter
from stflow_graph.encoders.catalogue import ENCODERS, canonical_name, unknown_encoder
from stflow_graph.encoders.conch import conch
from stflow_graph.encoders.conch_v1_5 import conch_v1_5
from stflow_graph.encoders.convnets import ciga, efficientnet_lite0, resnet50
from stflow_graph.encoders.ctranspath import ctranspath
from stflow_graph.encoders.custom import custom_encoder, timm_encoder
from stflow_graph.encoders.encoder import Blueprint, Encoder, hash_weights
from stflow_graph.encoders.entry import EncoderEntry
from stflow_graph.encoders.genbio import genbio_pathfm
from stflow_graph.encoders.torchvision_shim import import_timm
from stflow_graph.encoders.vit import vit
from stflow_graph.encoders.weights_file import fetch_weights, find_weights
from stflow_graph.io.state_dict import read_state_dict

# the encoders that are not vision transformers of timm
_FAMILIES: dict[str, Callable[[], Blueprint]] = {
    "ciga": ciga,
    "conch_v1": conch,
    "conch_v1_5": conch_v1_5,
    "ctranspath": ctranspath,
    "efficientnet_lite0": efficientnet_lite0,
    "genbio_pathfm": genbio_pathfm,
    "resnet50": resnet50,
}


def create_encoder(
    name: str, weights: str | Path | None = None, weights_root: str | Path | None = None
) -> Encoder:
    """Return the encoder ``name`` with its weights.

    Args:
        name: a name or alias of ``ENCODERS``, any name of timm, or ``module:factory``.
        weights: a weights file (safetensors or a torch file of tensors); None looks in
            ``weights_root``, in the hub's cache, in a package, and last on the hub. An adapter's
            base is looked up there in any case.
        weights_root: a folder with ``<name>/<file>`` (``ENCODERS[name].place``).

    Raises:
        BadConfig: the name is unknown (lists the valid ones), the weights do not fit (names the
            keys), or there are none (names the page to request them at).
        BadInput: the weights file cannot be read.
    """
    file = None if weights is None else Path(weights)
    if ":" in name:
        return custom_encoder(name, file)
    if canonical_name(name) in ENCODERS:
        entry = ENCODERS[canonical_name(name)]
        file = _locate(entry, weights_root) if file is None else file
        base = None if entry.base is None else _locate(ENCODERS[entry.base], weights_root)
        return build_encoder(entry, file, base)
    timm = import_timm()
    if not timm.is_model(name):
        forms = ", a name of timm, or 'module:factory'"
        raise unknown_encoder(name, timm.list_models(), forms)
    return timm_encoder(name, file)


def _locate(entry: EncoderEntry, weights_root: str | Path | None) -> Path:
    located = find_weights(entry, weights_root)
    return fetch_weights(entry, weights_root) if located is None else located.path


def blueprint(entry: EncoderEntry) -> Blueprint:
    """Return the blueprint of an encoder of the catalogue: of its base, if it adapts one."""
    if entry.base is not None:
        return blueprint(ENCODERS[entry.base])
    return _FAMILIES[entry.name]() if entry.vit is None else vit(entry.vit)


def build_encoder(entry: EncoderEntry, weights: Path, base: Path | None = None) -> Encoder:
    """Return an encoder of the catalogue with the weights of a file.

    Args:
        entry: the encoder.
        weights: its file.
        base: the file of the encoder that it adapts, if it does (``entry.base``).

    Raises:
        BadConfig: the file's keys or shapes are not the network's; names the first few.
        BadInput: the file cannot be read.
    """
    plan = blueprint(entry)
    if base is None:
        network = plan.load(weights)
    else:
        state = plan.rename(read_state_dict(base))
        network = plan.load_state(merge_adapter(state, read_state_dict(weights), weights), weights)
    sha = hash_weights(network)
    return Encoder(entry.name, network, entry.width, entry.transform, sha, plan.pool)
