"""CONCH's image tower: a ViT-B/16 with attention pooling by one learned query."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from stflow_graph.encoders.encoder import Blueprint, StateDict
from stflow_graph.encoders.torchvision_shim import import_timm

_TOKENS, _WIDTH = 768, 512


def conch(depth: int = 12) -> Blueprint:
    """Return the blueprint of CONCH (Lu et al., Nature Medicine 2024), 512 channels.

    The embedding equals ``encode_image(proj_contrast=False, normalize=False)`` of the package
    ``conch``; the text towers of the file and its projections are left out.

    Args:
        depth: blocks of the transformer, 12 in the published weights.
    """
    text = ("text.", "text_decoder.", "logit_scale")
    heads = ("proj_contrast", "attn_pool_caption.", "ln_caption.")
    return Blueprint(
        partial(ConchImageTower, depth), rename=_image_tower, unused=text + heads, on_meta=True
    )


def _image_tower(state: StateDict) -> StateDict:
    return {key.removeprefix("module.").removeprefix("visual."): v for key, v in state.items()}


class AttentionPool(nn.Module):
    """One learned query attends to all tokens: LN(q) against LN(tokens), 8 heads."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, _WIDTH))
        self.attn = nn.MultiheadAttention(_WIDTH, 8, kdim=_TOKENS, vdim=_TOKENS, batch_first=True)
        self.ln_q = nn.LayerNorm(_WIDTH)
        self.ln_k = nn.LayerNorm(_TOKENS)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``[B, T, 768]`` to ``[B, 512]``."""
        query = self.ln_q(self.query).expand(len(tokens), 1, _WIDTH)
        keys = self.ln_k(tokens)
        return self.attn(query, keys, keys, need_weights=False)[0][:, 0]


class ConchImageTower(nn.Module):
    """Tokens of a ViT-B/16, trained at 448 px, pooled and normed; keys as in CONCH's file."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.trunk = import_timm().create_model(
            "vit_base_patch16_224",
            pretrained=False,
            img_size=448,
            dynamic_img_size=True,  # for SEAL, at 224 px: its positions are interpolated
            num_classes=0,
            depth=depth,
        )
        self.attn_pool_contrast = AttentionPool()
        self.ln_contrast = nn.LayerNorm(_WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[B, 3, S, S]`` to ``[B, 512]``."""
        return self.ln_contrast(self.attn_pool_contrast(self.trunk.forward_features(images)))
