"""Residual networks: ResNet-50 cut after its third stage, and Ciga's ResNet-18."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from stflow_graph.encoders.family import Blueprint, StateDict
from stflow_graph.encoders.torchvision_shim import import_timm


def resnet50() -> Blueprint:
    """Return the blueprint of ResNet-50 up to its third stage, averaged, 1024 channels.

    HEST's ``resnet50_trunc`` (Jaume et al., NeurIPS 2024); ImageNet weights ``tv_in1k``.
    """
    build = partial(
        import_timm().create_model,
        "resnet50",
        pretrained=False,
        features_only=True,
        out_indices=(3,),
    )
    return Blueprint(build, unused=("fc.", "layer4."), pool=_mean_of_map)


def ciga() -> Blueprint:
    """Return the blueprint of the ResNet-18 of Ciga et al. (2022, SimCLR), 512 channels.

    Its file has names ``model.resnet.*``, and a projection ``fc`` that is left out.
    """
    build = partial(import_timm().create_model, "resnet18", pretrained=False, num_classes=0)
    return Blueprint(build, rename=_without_prefix, unused=("fc.",))


def _mean_of_map(maps: list[Tensor]) -> Tensor:
    return maps[-1].mean(dim=(2, 3))


def _without_prefix(state: StateDict) -> StateDict:
    return {key.removeprefix("model.resnet."): value for key, value in state.items()}
