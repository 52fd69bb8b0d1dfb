"""Vision transformers, built in timm."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stflow_graph.encoders.entry import Vit
from stflow_graph.encoders.family import Blueprint
from stflow_graph.encoders.torchvision_shim import import_timm
from stflow_graph.encoders.transformers_names import CLASS_TOKEN, timm_names


def vit(spec: Vit) -> Blueprint:
    """Return the blueprint of a vision transformer of the catalogue.

    Its embedding is the class token after the last norm, [B, C], joined by the mean of the patch
    tokens, [B, 2 C], where the spec says so; registers are left out.
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
    return dataclasses.replace(
        plan,
        telltale=CLASS_TOKEN,
        rename=timm_names,
        # a head that transformers saves with ViT, and the token of masked training
        unused=("pooler.", "mask_token"),
    )


def _class_and_mean(tokens: Tensor, prefix: int) -> Tensor:
    return torch.cat([tokens[:, 0], tokens[:, prefix:].mean(1)], dim=1)  # [B, 2 C]
