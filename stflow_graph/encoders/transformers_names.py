"""Weights that the library transformers saved (ViT, DINOv2), under timm's names.

This serves Phikon, Phikon-v2 and Hibou-L, whose files then need neither that library nor, for
Hibou-L, code from the hub.
"""

from __future__ import annotations

import re

import torch

from stflow_graph.encoders.family import StateDict

CLASS_TOKEN = "embeddings.cls_token"
_OUTER = {
    CLASS_TOKEN: "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_INNER = {
    "attention.output.dense": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
    "layer_scale1": "ls1",
    "layer_scale2": "ls2",
}
_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias|lambda1)")
_PARTS = ("query", "key", "value")


def timm_names(state: StateDict) -> StateDict:
    """Rename a state dict of transformers' ViT or DINOv2.

    Query, key and value are joined. With registers, timm's positions have no class token: what the
    class token's position adds goes into the token itself, which is the same sum.
    """
    renamed = {_name(key): value for key, value in state.items()}
    for key in [k for k in renamed if k.endswith(".query.weight") or k.endswith(".query.bias")]:
        parts = [key.replace(".query.", f".{part}.") for part in _PARTS]
        if all(part in renamed for part in parts):
            joined = torch.cat([renamed.pop(part) for part in parts])
            renamed[key.replace(".query.", ".qkv.")] = joined
    if "reg_token" in renamed and "pos_embed" in renamed:
        positions = renamed["pos_embed"]
        renamed["cls_token"] = renamed["cls_token"] + positions[:, :1]
        renamed["pos_embed"] = positions[:, 1:]
    return renamed


def _name(key: str) -> str:
    match = _BLOCK.fullmatch(key)
    if match is None:
        return _OUTER.get(key, key)
    block, inner, kind = match.groups()
    inner = _INNER.get(inner, inner).replace("attention.attention.", "attn.")
    return f"blocks.{block}.{inner}.{'gamma' if kind == 'lambda1' else kind}"
