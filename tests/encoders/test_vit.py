from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from stflow_graph.encoders.catalogue import ENCODERS
from stflow_graph.encoders.torchvision_shim import import_timm
from stflow_graph.encoders.vit import resample_positions, timm_keys, timm_keys_of_dinov2, vit

SIZES = {"embed_dim": 48, "depth": 2, "num_heads": 4, "img_size": 32, "patch_size": 8}
CONFIG = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def transformers_model(name: str) -> Any:
    """Return a small model of the kind that the encoder's file was saved from."""
    import_timm()  # makes torchvision importable, which transformers needs
    transformers = pytest.importorskip("transformers", reason="the oracle of key names")
    if name == "phikon":
        config = transformers.ViTConfig(**CONFIG, intermediate_size=192)
        return transformers.ViTModel(config, add_pooling_layer=False)
    if name in ("phikon_v2", "midnight"):
        # the positions of Midnight are of a larger grid
        sizes = CONFIG | ({"image_size": 56, "use_swiglu_ffn": True} if name == "midnight" else {})
        return transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    config = transformers.Dinov2WithRegistersConfig(**CONFIG, use_swiglu_ffn=True)
    return transformers.Dinov2WithRegistersModel(config)


@pytest.mark.parametrize("name", ["phikon", "phikon_v2", "hibou_l", "midnight"])
def test_timm_gives_the_class_token_of_transformers(name, tmp_path):
    """A file that transformers saved, read into timm, against transformers itself."""
    torch.manual_seed(0)
    model = transformers_model(name).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # none may hide behind a zero or a one
            parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path)
    published = ENCODERS[name].vit
    options = {k: v for k, v in published.options.items() if k not in SIZES}
    if published.swiglu:  # transformers' rule: 2/3 of 4 x 48, up to a multiple of 8, twice
        options["mlp_ratio"] = 2 * 128 / 48
    grid = None if published.grid is None else SIZES["img_size"] // SIZES["patch_size"]
    plan = vit(
        dataclasses.replace(published, options=options | SIZES, grid=grid, mean_of_patches=False)
    )
    network = plan.load(tmp_path / "model.safetensors").eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        expected = model(pixel_values=images).last_hidden_state[:, 0]
        assert torch.allclose(network(images), expected, atol=1e-5)
    config = model.config
    eps = 1e-6 if published.norm_eps is None else published.norm_eps
    assert eps == config.layer_norm_eps == network.norm.eps


def test_an_incomplete_block_stays_recognisable():
    torn = {
        "embeddings.cls_token": torch.zeros(1, 1, 2),
        "encoder.layer.3.attention.attention.query.bias": torch.zeros(2),
        "encoder.layer.3.layer_scale2.lambda1": torch.zeros(2),
    }
    assert set(timm_keys(torn)) == {
        *("cls_token", "blocks.3.attn.query.bias", "blocks.3.ls2.gamma")
    }


def test_query_key_and_value_are_joined_in_this_order():
    parts = {
        f"encoder.layer.0.attention.attention.{part}.bias": torch.full((2,), float(i))
        for i, part in enumerate(("query", "key", "value"))
    }
    renamed = timm_keys({"embeddings.cls_token": torch.zeros(1, 1, 2), **parts})
    assert renamed["blocks.0.attn.qkv.bias"].tolist() == [0, 0, 1, 1, 2, 2]


def test_positions_of_another_grid_are_resampled_as_transformers_does():
    torch.manual_seed(0)
    positions = torch.randn(1, 1 + 37 * 37, 3)
    maps = positions[:, 1:].reshape(1, 37, 37, 3).permute(0, 3, 1, 2)
    size = {"size": (16, 16), "mode": "bicubic", "align_corners": False}
    expected = torch.nn.functional.interpolate(maps, **size).permute(0, 2, 3, 1).reshape(1, 256, 3)
    resampled = resample_positions(positions, 16)
    assert torch.allclose(resampled[:, 1:], expected, atol=1e-6)
    assert torch.equal(resampled[:, 0], positions[:, 0])
    for others in (positions[:, :257], positions[:, :7], positions[0], positions[:, :1]):
        assert torch.equal(resample_positions(others, 16), others)


@pytest.mark.parametrize("registers", [0, 4])
def test_files_of_dinov2_and_of_timm_give_the_same_network(registers):
    timm = import_timm()
    options = {**SIZES, "num_classes": 0, "reg_tokens": registers}
    name = "vit_giant_patch14_reg4_dinov2" if registers else "vit_giant_patch14_dinov2"
    torch.manual_seed(0)
    state = timm.create_model(name, pretrained=False, **options).state_dict()
    meta = {"mask_token": torch.zeros(1, 48)}
    for key, value in state.items():
        key = key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
        meta[key.replace("reg_token", "register_tokens")] = value
    if registers:
        place = torch.randn(1, 1, 48)
        meta["pos_embed"] = torch.cat([place, meta["pos_embed"]], dim=1)
        meta["cls_token"] = meta["cls_token"] - place
    chunked = {
        f"backbone.{key.replace('blocks.0.', 'blocks.0.0.').replace('blocks.1.', 'blocks.3.1.')}": v
        for key, v in meta.items()
    }
    for published in (meta, chunked, state):
        renamed = timm_keys_of_dinov2(dict(published))
        renamed.pop("mask_token", None)
        assert renamed.keys() == state.keys()
        assert all(torch.allclose(renamed[k], state[k], atol=1e-6) for k in state)
