"""Vision transformers built in timm, from files with timm's keys, transformers' or DINOv2's.

The library transformers saved the files of Phikon, Phikon-v2, Hibou-L and Midnight (ViT, DINOv2),
and Meta's code for training DINOv2 that of OpenPath. Under timm's keys they need neither that
library nor that code nor, for Hibou-L, code from the hub.
"""

from __future__ import annotations

import dataclasses
import math
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
# saved in chunks of blocks, which are numbered consecutively: blocks.<chunk>.<block>
_CHUNK = re.compile(r"blocks\.\d+\.(\d+)\.")
_TEACHER = "backbone."


def vit(spec: Vit) -> Blueprint:
    """Return the blueprint of a vision transformer of the catalogue.

    Its embedding is the class token after the last norm, [B, C], or that token concatenated with
    the mean of the patch tokens, [B, 2 C] (``spec.mean_of_patches``); registers are left out.
    """
    timm = import_timm()
    # timm's own pooling of DINOv3 is the mean of the patches; Meta's code returns the class token
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
        on_meta=not spec.rotary,
    )
    if spec.keys == "timm":
        return plan
    if spec.keys == "dinov2":
        heads = ("mask_token", "dino_head.", "ibot_head.")
        return dataclasses.replace(plan, rename=timm_keys_of_dinov2, unused=heads)
    # left out: a head that transformers saves with ViT, and the token of masked training
    unused = ("pooler.", "mask_token")
    rename = partial(timm_keys, grid=spec.grid)
    return dataclasses.replace(plan, marker=_CLASS_TOKEN, rename=rename, unused=unused)


def _class_and_mean(tokens: Tensor, prefix: int) -> Tensor:
    return torch.cat([tokens[:, 0], tokens[:, prefix:].mean(1)], dim=1)  # [B, 2 C]


def timm_keys(state: StateDict, grid: int | None = None) -> StateDict:
    """Rename a state dict of transformers' ViT or DINOv2.

    Query, key and value are concatenated. With registers, timm's positions have no class token:
    the class token's position is added to the token itself, which is the same sum.

    Args:
        state: the state dict.
        grid: width of the grid of patches to which positions are resampled; None leaves them.
    """
    renamed = {_timm_key(key): value for key, value in state.items()}
    for key in [k for k in renamed if k.endswith((".query.weight", ".query.bias"))]:
        parts = [key.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in renamed for part in parts):
            joined = torch.cat([renamed.pop(part) for part in parts])
            renamed[key.replace(".query.", ".qkv.")] = joined
    if grid is not None and "pos_embed" in renamed:
        renamed["pos_embed"] = resample_positions(renamed["pos_embed"], grid)
    return _fold_class_position(renamed)


def _fold_class_position(state: StateDict) -> StateDict:
    if "reg_token" in state and "pos_embed" in state:
        positions = state["pos_embed"]
        state["cls_token"] = state["cls_token"] + positions[:, :1]
        state["pos_embed"] = positions[:, 1:]
    return state


def timm_keys_of_dinov2(state: StateDict) -> StateDict:
    """Rename a state dict of Meta's DINOv2, of the backbone or of a teacher with its heads.

    Names of timm stay as they are. Positions of the class token: see :func:`timm_keys`.
    """
    renamed = {}
    for key, value in state.items():
        name = _CHUNK.sub(r"blocks.\1.", key.removeprefix(_TEACHER))
        name = name.replace("mlp.w12.", "mlp.fc1.").replace("mlp.w3.", "mlp.fc2.")
        renamed[name] = value
    if "register_tokens" not in renamed:
        return renamed
    renamed["reg_token"] = renamed.pop("register_tokens")
    return _fold_class_position(renamed)


def resample_positions(positions: Tensor, grid: int, offset: float = 0.0) -> Tensor:
    """Resample the patches' positions to another grid, bicubically and without antialiasing.

    transformers does so where an image is not of the size of training, with offset 0; the code of
    DINO adds ``offset = 0.1`` to the width and keeps the scale of the sum.

    Args:
        positions: ``[1, 1 + S * S, C]``, the class token's first.
        grid: width of the new grid.
        offset: patches added to the width that defines the scale.

    Returns:
        ``[1, 1 + grid * grid, C]``; positions of that grid, or of none, are returned unchanged.
    """
    n_patches = positions.shape[1] - 1 if positions.dim() == 3 else 0
    width = math.isqrt(n_patches)
    if width == grid or width * width != n_patches or width == 0:
        return positions
    maps = positions[:, 1:].unflatten(1, (width, width)).permute(0, 3, 1, 2).float()
    size: dict[str, Any] = {"size": (grid, grid)}
    if offset:
        size = {"scale_factor": (grid + offset) / width}
    maps = nn.functional.interpolate(maps, **size, mode="bicubic", align_corners=False)
    patches = maps.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([positions[:, :1], patches], dim=1)


def _timm_key(key: str) -> str:
    match = _BLOCK.fullmatch(key)
    if match is None:
        return _OUTER.get(key, key)
    block, inner, kind = match.groups()
    inner = _INNER.get(inner, inner).replace("attention.attention.", "attn.")
    return f"blocks.{block}.{inner}.{'gamma' if kind == 'lambda1' else kind}"
