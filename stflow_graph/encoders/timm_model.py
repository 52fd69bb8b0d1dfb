"""Any model of timm as an encoder, by its name there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stflow_graph.encoders.encoder import Encoder
from stflow_graph.encoders.torchvision_shim import import_timm
from stflow_graph.encoders.transform import PatchTransform
from stflow_graph.encoders.weights import hash_weights, load_strictly
from stflow_graph.errors import BadConfig
from stflow_graph.io.state_dict import read_state_dict


def timm_encoder(name: str, weights: Path | None) -> Encoder:
    """Return any model of timm without its classifier, with its own transform.

    Args:
        name: timm's name, such as ``vit_small_patch16_224.augreg_in1k``.
        weights: a state dict with timm's names; None asks the hub.

    Raises:
        BadConfig: timm does not know the name, the hub cannot be reached, or the file's keys
            are not the model's.
    """
    network = _create(name, weights, num_classes=0)
    if weights is not None:
        head = network.default_cfg.get("classifier") or ()
        heads = [head] if isinstance(head, str) else list(head)
        state = read_state_dict(weights)
        load_strictly(network, state, weights, unused=[f"{each}." for each in heads])
    config = import_timm().data.resolve_data_config({}, model=network)
    transform = PatchTransform.of_timm(config)
    return Encoder(name, network, int(network.num_features), transform, hash_weights(network))


def _create(name: str, weights: Path | None, **options: Any) -> Any:
    timm = import_timm()
    try:
        return timm.create_model(name, pretrained=weights is None, **options)
    except Exception as error:  # hub clients raise kinds of their own for every fault of a network
        if isinstance(error, MemoryError) or weights is not None:
            raise
        text = " ".join(str(error).split())[:200]
        raise BadConfig(
            f"encoder {name!r}: its weights could not be fetched ({text}). "
            "Fix: give --weights FILE (safetensors or a state dict with timm's names)"
        ) from None
