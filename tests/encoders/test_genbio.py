from __future__ import annotations

import importlib

import torch

from stflow_graph.encoders.genbio import PublishedRotation, genbio_pathfm, timm_keys
from stflow_graph.encoders.torchvision_shim import import_timm

PUBLISHED = {
    "cls_token": (1, 1, 1536),
    "storage_tokens": (1, 4, 1536),
    "patch_embed.proj.weight": (1536, 1, 16, 16),
    "patch_embed.proj.bias": (1536,),
    "rope_embed.periods": (16,),
    "blocks.0.norm1.weight": (1536,),
    "blocks.0.norm1.bias": (1536,),
    "blocks.0.attn.qkv.weight": (3 * 1536, 1536),
    "blocks.0.attn.proj.weight": (1536, 1536),
    "blocks.0.attn.proj.bias": (1536,),
    "blocks.0.ls1.gamma": (1536,),
    "blocks.0.norm2.weight": (1536,),
    "blocks.0.norm2.bias": (1536,),
    "blocks.0.mlp.w1.weight": (4096, 1536),
    "blocks.0.mlp.w1.bias": (4096,),
    "blocks.0.mlp.w2.weight": (4096, 1536),
    "blocks.0.mlp.w2.bias": (4096,),
    "blocks.0.mlp.w3.weight": (1536, 4096),
    "blocks.0.mlp.w3.bias": (1536,),
    "blocks.0.ls2.gamma": (1536,),
    "norm.weight": (1536,),
    "norm.bias": (1536,),
}


def published_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = {name: torch.randn(shape) * 0.02 for name, shape in PUBLISHED.items()}
    periods = 100 ** (torch.arange(16) / 16)
    return {**state, "rope_embed.periods": periods.to(torch.bfloat16)}


def test_the_published_file_fits_and_its_colours_are_read_one_by_one(tmp_path):
    torch.save(published_state(), tmp_path / "model.pth")
    network = genbio_pathfm(depth=1).load(tmp_path / "model.pth").eval()
    assert network.trunk.norm.eps == 1e-6
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        x = network(images)
        grey = network(images[:, 1:2].expand(-1, 3, -1, -1))
    assert x.shape == (2, 4608)
    assert torch.allclose(grey[:, :1536], x[:, 1536:3072], atol=1e-5)  # the class token of green
    assert torch.allclose(grey[:, 3072:], grey[:, :1536], atol=1e-5)


def test_a_block_is_the_published_formula(tmp_path):
    """One block, its feed-forward part written out: W3 (silu(W1 x) * W2 x)."""
    state = published_state()
    torch.save(state, tmp_path / "model.pth")
    block = genbio_pathfm(depth=1).load(tmp_path / "model.pth").eval().trunk.blocks[0]
    x = torch.randn(3, 1536)
    w1, w2, w3 = (
        lambda y, n=n: y @ state[f"blocks.0.mlp.w{n}.weight"].T + state[f"blocks.0.mlp.w{n}.bias"]
        for n in (1, 2, 3)
    )
    expected = w3(torch.nn.functional.silu(w1(x)) * w2(x))
    assert torch.allclose(block.mlp(x), expected, atol=1e-5)


def test_rotations_are_those_of_dinov3_up_to_the_published_rounding():
    import_timm()
    layers = importlib.import_module("timm.layers.pos_embed_sincos")
    exact = layers.RotaryEmbeddingDinoV3(64, temperature=100.0)
    rounded = PublishedRotation()
    rounded.periods.copy_(exact.periods)
    tables = rounded.get_embed((14, 14)), exact.get_embed((14, 14))
    assert tables[0].shape == tables[1].shape == (196, 128)
    assert (tables[0] - tables[1]).abs().max() < 0.05
    assert torch.equal(tables[0], tables[0].to(torch.bfloat16).float())


def test_renamed_keys_stay_as_they_are():
    renamed = timm_keys(published_state())
    assert timm_keys(renamed).keys() == renamed.keys()
