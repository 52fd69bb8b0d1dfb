"""CONCH v1.5, the patch encoder of TITAN: a ViT-L/16 with attention pooling by one query."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from stflow_graph.encoders.encoder import Blueprint, StateDict
from stflow_graph.encoders.torchvision_shim import import_timm
from stflow_graph.encoders.vit import resample_positions

_TOKENS, _WIDTH, _HEADS = 1024, 768, 8
_SIZE, _PATCH = 448, 16
_POSITIONS = "trunk.pos_embed"


def conch_v1_5(depth: int = 24) -> Blueprint:
    """Return the blueprint of CONCH v1.5 (Ding et al., Nature Medicine 2025), 768 channels.

    The file has positions of 224 px. They are resampled to 448 px on loading, as the published
    code does for every image.

    Args:
        depth: blocks of the transformer, 24 in the published weights.
    """
    return Blueprint(partial(ConchTower, depth), rename=_positions_of_448_px, on_meta=True)


def _positions_of_448_px(state: StateDict) -> StateDict:
    if _POSITIONS not in state:
        return state
    positions = resample_positions(state[_POSITIONS], _SIZE // _PATCH, offset=0.1)
    return {**state, _POSITIONS: positions}


class QueryPool(nn.Module):
    """One learned query attends to all tokens: LN(q) against LN(tokens), 8 heads, no biases.

    Keys are those of the file.
    """

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, _WIDTH))
        self.ln_k = nn.LayerNorm(_TOKENS)
        self.ln_q = nn.LayerNorm(_WIDTH)
        self.to_q = nn.Linear(_WIDTH, _WIDTH, bias=False)
        self.to_kv = nn.Linear(_TOKENS, 2 * _WIDTH, bias=False)
        self.to_out = nn.Linear(_WIDTH, _WIDTH, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``[B, T, 1024]`` to ``[B, 768]``."""
        query = self.to_q(self.ln_q(self.query)).expand(len(tokens), 1, _WIDTH)
        keys, values = self.to_kv(self.ln_k(tokens)).chunk(2, dim=-1)
        heads = [x.unflatten(-1, (_HEADS, -1)).transpose(1, 2) for x in (query, keys, values)]
        pooled = nn.functional.scaled_dot_product_attention(*heads)  # [B, 8, 1, 96]
        return self.to_out(pooled.transpose(1, 2).flatten(1))


class ConchTower(nn.Module):
    """Tokens of a ViT-L/16 at 448 px, pooled and normed; keys as in the file."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.trunk = import_timm().create_model(
            "vit_large_patch16_224",
            pretrained=False,
            img_size=_SIZE,
            init_values=1.0,
            num_classes=0,
            depth=depth,
        )
        self.attn_pool_contrast = QueryPool()
        self.ln_contrast = nn.LayerNorm(_WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[B, 3, 448, 448]`` to ``[B, 768]``."""
        return self.ln_contrast(self.attn_pool_contrast(self.trunk.forward_features(images)))
