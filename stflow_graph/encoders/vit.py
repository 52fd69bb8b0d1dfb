"""Vision transformers built in timm, from files with timm's keys or those of transformers.

The library transformers saved the files of Phikon, Phikon-v2 and Hibou-L (ViT, DINOv2). Under
timm's keys they need neither that library nor, for Hibou-L, code from the hub.
"""

from __future__ import annotations

import dataclasses
import re
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stflow_graph.encoders.encoder import Blueprint, StateDict
from stflow_graph.encoders.entry import Vit
from stflow_graph.encoders.torchvision_shim import import_timm

_CLASS_TOKEN = "embeddings.cls_token"
_OUTER = {
    _CLASS_TOKEN: "cls_token",
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


def vit(spec: Vit) -> Blueprint:
    """Return the blueprint of a vision transformer of the catalogue.

    Its embedding is the class token after the last norm, [B, C], or that token concatenated with
    the mean of the patch tokens, [B, 2 C] (``spec.mean_of_patches``); registers are left out.
    """
    timm = import_timm()
    options: dict[str, Any] = dict(spec.options, num_classes=0)
    options["global_pool"] = "" if spec.mean_of_patches else "token"
    if spec.swiglu:
        options.update(mlp_layer=timm.layers.SwiGLUPacked, act_layer=nn.SiLU)
    if spec.norm_eps is not None:
        options["norm_layer"] = partial(nn.LayerNorm, eps=spec.norm_eps)
    prefix = 1 + int(options.get("reg_tokens", 0))
    plan = Blueprint(
        partial(timm.create_model, spec.base, pretrained=False, **options),
        pool=partial(_class_and_mean, prefix=prefix) if spec.mean_of_patches else None,
        on_meta=True,
    )
    if not spec.transformers:
        return plan
    # left out: a head that transformers saves with ViT, and the token of masked training
    unused = ("pooler.", "mask_token")
    return dataclasses.replace(plan, marker=_CLASS_TOKEN, rename=timm_keys, unused=unused)


def _class_and_mean(tokens: Tensor, prefix: int) -> Tensor:
    return torch.cat([tokens[:, 0], tokens[:, prefix:].mean(1)], dim=1)  # [B, 2 C]


def timm_keys(state: StateDict) -> StateDict:
    """Rename a state dict of transformers' ViT or DINOv2.

    Query, key and value are concatenated. With registers, timm's positions have no class token:
    the class token's position is added to the token itself, which is the same sum.
    """
    renamed = {_timm_key(key): value for key, value in state.items()}
    for key in [k for k in renamed if k.endswith((".query.weight", ".query.bias"))]:
        parts = [key.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in renamed for part in parts):
            joined = torch.cat([renamed.pop(part) for part in parts])
            renamed[key.replace(".query.", ".qkv.")] = joined
    if "reg_token" in renamed and "pos_embed" in renamed:
        positions = renamed["pos_embed"]
        renamed["cls_token"] = renamed["cls_token"] + positions[:, :1]
        renamed["pos_embed"] = positions[:, 1:]
    return renamed


def _timm_key(key: str) -> str:
    match = _BLOCK.fullmatch(key)
    if match is None:
        return _OUTER.get(key, key)
    block, inner, kind = match.groups()
    inner = _INNER.get(inner, inner).replace("attention.attention.", "attn.")
    return f"blocks.{block}.{inner}.{'gamma' if kind == 'lambda1' else kind}"
