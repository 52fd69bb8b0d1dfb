from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from stflow_graph.encoders import ENCODERS, create_encoder, registry
from stflow_graph.encoders.adapter import merge_adapter
from stflow_graph.encoders.conch import conch
from stflow_graph.encoders.registry import blueprint
from stflow_graph.errors import BadConfig

PREFIX = "encoder.base_model.model."


def low_rank(key: str, out: int, width: int, rank: int = 8) -> dict[str, torch.Tensor]:
    """Return the pair of one weight, under the keys of SEAL's file."""
    return {
        f"{PREFIX}{key}.lora_A.default.weight": torch.randn(rank, width) * 0.1,
        f"{PREFIX}{key}.lora_B.default.weight": torch.randn(out, rank) * 0.1,
    }


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(autouse=True)
def _one_block(monkeypatch):
    monkeypatch.setitem(registry._FAMILIES, "conch_v1", partial(conch, depth=1))
    uni = ENCODERS["uni_v2"]
    vit = dataclasses.replace(uni.vit, options=dict(uni.vit.options, depth=1))
    monkeypatch.setitem(ENCODERS, "uni_v2", dataclasses.replace(uni, vit=vit))


def write_base(name: str, root: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in blueprint(ENCODERS[name]).build().state_dict().items()}
    state = {key: torch.randn(shape) * 0.05 for key, shape in shapes.items()}
    path = ENCODERS[name].place(root)
    path.parent.mkdir(parents=True)
    prefix = "visual." if name == "conch_v1" else ""
    torch.save({f"{prefix}{key}": value for key, value in state.items()}, path)
    return state


def write_adapter(name: str, root: Path, adapter: dict[str, torch.Tensor]) -> Path:
    path = ENCODERS[name].place(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": adapter}, path)
    return path


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("seal_conch", "trunk.blocks.0.attn.qkv", (2304, 768)),
        ("seal_uni_v2", "blocks.0.mlp.fc2", (1536, 4096)),
    ],
)
def test_an_adapter_is_merged_into_its_base(name, key, shape, tmp_path, images):
    entry = ENCODERS[name]
    state = write_base(entry.base, tmp_path)
    adapter = low_rank(key, *shape) | {"projection_head.weight": torch.zeros(2, 2)}
    write_adapter(name, tmp_path, adapter)
    encoder = create_encoder((entry.name, *entry.aliases)[-1], weights_root=tmp_path)
    assert (encoder.name, encoder.width) == (entry.name, entry.width)
    loaded = encoder.network.state_dict()
    assert loaded.keys() == state.keys()
    a, b = (adapter[f"{PREFIX}{key}.lora_{part}.default.weight"] for part in "AB")
    assert torch.allclose(loaded[f"{key}.weight"], state[f"{key}.weight"] + b @ a, atol=1e-6)
    others = [k for k in state if k != f"{key}.weight"]
    assert all(torch.equal(loaded[k], state[k]) for k in others)
    with torch.inference_mode():
        x = encoder(images)
        base = create_encoder(entry.base, weights_root=tmp_path)(images)
    assert x.shape == base.shape == (2, entry.width)
    assert not torch.allclose(x, base, atol=1e-3)


def test_a_file_with_the_weights_of_its_base_replaces_them():
    base = {"a.weight": torch.zeros(4, 4), "a.bias": torch.zeros(4)}
    adapter = {
        f"module.{PREFIX}a.base_layer.weight": torch.ones(4, 4),
        **low_rank("a", 4, 4),
    }
    merged = merge_adapter(base, adapter, Path("seal.pth"))
    a, b = (adapter[f"{PREFIX}a.lora_{part}.default.weight"] for part in "AB")
    assert torch.allclose(merged["a.weight"], 1 + b @ a)
    assert torch.equal(merged["a.bias"], base["a.bias"])


@pytest.mark.parametrize(
    ("adapter", "problem"),
    [
        ({"a.weight": torch.ones(4, 4)}, "no low-rank weights"),
        (low_rank("b", 4, 4), "adapter of b.weight: its base has no such weight"),
        (dict([*low_rank("a", 4, 4).items()][:1]), "one of A and B is missing"),
        (low_rank("a", 4, 4, rank=2), r"\[4, 2\] times \[2, 4\], expected rank 8"),
        (low_rank("a", 4, 5), r"\[4, 8\] times \[8, 5\].* and the shape \[4, 4\]"),
    ],
)
def test_what_does_not_fit_the_base_is_named(adapter, problem):
    with pytest.raises(BadConfig, match=f"seal.pth: .*{problem}"):
        merge_adapter({"a.weight": torch.zeros(4, 4)}, adapter, Path("seal.pth"))


def test_without_the_base_the_message_is_about_the_base(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = write_adapter("seal_conch", tmp_path, low_rank("trunk.blocks.0.attn.qkv", 2304, 768))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadConfig, match=r"encoder 'conch_v1': no weights"):
        create_encoder("seal_conch", path, tmp_path)
