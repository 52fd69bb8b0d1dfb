"""GenBio-PathFM: a DINOv3-like ViT that reads the three colours one by one."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from stflow_graph.encoders.encoder import Blueprint, StateDict
from stflow_graph.encoders.torchvision_shim import import_timm

_WIDTH, _HEADS, _HIDDEN = 1536, 24, 4096
_NAMES = {
    "storage_tokens": "reg_token",
    "ls1.gamma": "gamma_1",
    "ls2.gamma": "gamma_2",
    "rope_embed.periods": "rope.periods",
    ".w1.": ".fc1_g.",
    ".w2.": ".fc1_x.",
    ".w3.": ".fc2.",
}


def genbio_pathfm(depth: int = 40) -> Blueprint:
    """Return the blueprint of GenBio-PathFM (Kapse et al., 2026), 4608 channels.

    The embedding has the class token of red, of green and of blue, in this order.

    Args:
        depth: blocks of the transformer, 40 in the published weights.
    """
    return Blueprint(partial(ColourByColour, depth), rename=timm_keys, on_meta=True)


def timm_keys(state: StateDict) -> StateDict:
    """Rename a state dict of the published file to the network's keys."""
    renamed = {}
    for key, value in state.items():
        for old, new in _NAMES.items():
            key = key.replace(old, new)
        renamed[key if key.startswith("trunk.") else f"trunk.{key}"] = value
    return renamed


class PublishedRotation(nn.Module):
    """Rotary positions of DINOv3, in bfloat16 as in the published code.

    ``angle = 2 pi c / period`` with ``c`` in [-1, 1] from the centre of the first patch to that of
    the last, along each axis. The network was trained with their rounding, which moves sines and
    cosines by up to .03.
    """

    periods: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("periods", torch.ones(_WIDTH // _HEADS // 4))

    def get_embed(self, shape: tuple[int, int]) -> Tensor:
        """Return sines and cosines of a grid of patches, ``[H * W, 2 * 64]``."""
        periods = self.periods.to(torch.bfloat16)
        axes = [
            2 * (torch.arange(0.5, n, dtype=periods.dtype, device=periods.device) / n) - 1
            for n in shape
        ]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
        angles = 2 * math.pi * places[:, :, None] / periods
        angles = angles.flatten(1).repeat(1, 2)  # [H * W, 64]
        return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


class ColourByColour(nn.Module):
    """A ViT of one input channel, called once per colour; its class tokens are concatenated."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        timm = import_timm()
        self.trunk = timm.create_model(
            "vit_7b_patch16_dinov3",
            pretrained=False,
            in_chans=1,
            img_size=224,
            embed_dim=_WIDTH,
            depth=depth,
            num_heads=_HEADS,
            mlp_ratio=_HIDDEN / _WIDTH,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            global_pool="token",
            num_classes=0,
        )
        self.trunk.rope = PublishedRotation()

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[B, 3, 224, 224]`` to ``[B, 4608]``."""
        colours = images.flatten(0, 1).unsqueeze(1)  # [B * 3, 1, 224, 224]
        return self.trunk(colours).unflatten(0, (-1, 3)).flatten(1)
