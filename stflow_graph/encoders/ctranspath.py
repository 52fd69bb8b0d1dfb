"""CTransPath: Swin-T with a convolutional stem."""

from __future__ import annotations

import re

from torch import Tensor, nn

from stflow_graph.encoders.encoder import Blueprint, StateDict
from stflow_graph.encoders.torchvision_shim import import_timm

_CHANNELS = 96
# constants that older versions of timm saved with the weights
_CONSTANTS = ("attn_mask", "relative_position_index")


def ctranspath() -> Blueprint:
    """Return the blueprint of CTransPath (Wang et al., Medical Image Analysis 2022), 768 channels.

    The embedding is the mean of the normed tokens of the last stage.
    """
    return Blueprint(_swin_with_stem, rename=_current_keys, unused=("head.",))


class ConvStem(nn.Module):
    """Two strided 3x3 convolutions with batch norm, then a 1x1: one token per 4 x 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = [3, _CHANNELS // 8, _CHANNELS // 4]
        for a, b in zip(channels, channels[1:], strict=False):
            layers += [nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.proj = nn.Sequential(*layers, nn.Conv2d(channels[-1], _CHANNELS, 1))
        self.norm = nn.LayerNorm(_CHANNELS)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[B, 3, H, W]`` to ``[B, H/4, W/4, 96]``."""
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


def _swin_with_stem() -> nn.Module:
    network = import_timm().create_model(
        "swin_tiny_patch4_window7_224", pretrained=False, num_classes=0
    )
    network.patch_embed = ConvStem()
    return network


def _current_keys(state: StateDict) -> StateDict:
    """Rename keys of timm 0.5, which counted a patch merging to the stage before it."""
    state = {k: v for k, v in state.items() if not k.endswith(_CONSTANTS)}
    if not any(key.startswith("layers.0.downsample") for key in state):
        return state
    return {
        re.sub(r"^layers\.(\d+)\.downsample", _next_stage, key): value
        for key, value in state.items()
    }


def _next_stage(match: re.Match[str]) -> str:
    return f"layers.{int(match[1]) + 1}.downsample"
