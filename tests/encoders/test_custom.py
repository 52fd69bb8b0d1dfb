from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from stflow_graph.encoders import create_encoder, custom
from stflow_graph.encoders.torchvision_shim import import_timm
from stflow_graph.errors import BadConfig, StorageFailed
from stflow_graph.io.state_dict import read_state_dict

MODULE = """
import torch
from stflow_graph.encoders import Encoder, PatchTransform

PIXELS = PatchTransform(8, mean=(0.0,) * 3, std=(1.0,) * 3)


class Mean(torch.nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([scale]))

    def forward(self, x):
        return self.scale * x.mean((2, 3))


def mean(weights=None):
    scale = 1.0 if weights is None else float(weights.read_text())
    return Mean(scale), PIXELS, 3


def whole():
    return Encoder("of_mine", Mean(2.0), 3, PIXELS, "0" * 64)


"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> Path:
    """A user's file in the working folder."""
    (tmp_path / "my_encoders.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_encoders", raising=False)
    return tmp_path / "my_encoders.py"


def test_a_network_a_transform_and_a_width_make_an_encoder(module, tmp_path):
    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    encoder = create_encoder("my_encoders:mean")
    assert (encoder.name, encoder.width) == ("mean", 3)
    x = encoder(images)
    assert torch.allclose(x, images.float().mean((1, 2)) / 255, atol=1e-6)
    (tmp_path / "scale.txt").write_text("3")
    other = create_encoder("my_encoders:mean", tmp_path / "scale.txt")
    assert torch.allclose(other(images), 3 * x)
    assert other.weights_sha256 != encoder.weights_sha256
    assert create_encoder("my_encoders:whole").name == "of_mine"


@pytest.mark.parametrize(
    ("factory", "code", "message"),
    [
        ("f", "def f(): return Mean(), PIXELS", r"an Encoder, or \(network,.*, got tuple"),
        ("f", "def f(): return Mean(), PIXELS, '3'", r"got \(Mean, PatchTransform, str\)"),
        ("f", "def f(): open('my_weights.pt')", "its factory failed: FileNotFoundError: .*my_w"),
        ("f", "f = 3", "expected a function that returns"),
        ("f", "", "my_encoders has"),
        ("uni", "def uni(): return mean()", "'uni' is an encoder of this package"),
    ],
)
def test_factories_of_anything_else_are_refused_in_one_line(module, factory, code, message):
    module.write_text(MODULE + code)
    with pytest.raises(BadConfig, match=message) as caught:
        create_encoder(f"my_encoders:{factory}")
    assert "\n" not in str(caught.value)


def test_weights_for_a_factory_that_takes_none_are_refused(module, tmp_path):
    with pytest.raises(BadConfig, match=r"factory failed: TypeError.*0 positional arguments"):
        create_encoder("my_encoders:whole", tmp_path / "w.pt")


def test_the_example_of_the_docstring_works(tmp_path, monkeypatch):
    example = custom.__doc__.split("::\n\n")[1].split("\n\nThe factory")[0]
    lines = [line.removeprefix("    ") for line in example.splitlines()]
    text = "\n".join(lines).replace("pretrained=weights is None", "pretrained=False")
    (tmp_path / "my_encoder.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    import_timm()  # the example is for a machine whose torchvision fits its torch
    encoder = create_encoder("my_encoder:tiny")
    assert encoder.name == "tiny"
    assert encoder(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)).shape == (1, 512)


SMALL = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory) -> Path:
    """Random weights of a small ViT, with its classifier, as timm saves them."""
    file = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(import_timm().create_model(SMALL).state_dict(), file)
    return file


def test_any_timm_model_takes_weights_from_a_file_without_its_classifier(small_weights):
    encoder = create_encoder(SMALL, small_weights)
    images = torch.zeros(1, 224, 224, 3, dtype=torch.uint8)
    assert encoder(images).shape == (1, 192) == (1, encoder.width)
    config = import_timm().data.resolve_data_config({}, model=encoder.network)
    assert encoder.transform.mean == config["mean"]
    assert encoder.transform.size == config["input_size"][-1]


def test_keys_and_shapes_of_a_timm_model_must_match(tmp_path, small_weights):
    state = read_state_dict(small_weights)
    del state["norm.weight"]
    state["norm.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "w.safetensors")
    message = r"1 missing \(such as norm.weight\); 1 misshapen \(such as norm.bias \[3\] instead"
    with pytest.raises(BadConfig, match=message):
        create_encoder(SMALL, tmp_path / "w.safetensors")


def test_without_a_hub_the_message_names_the_option_for_a_file(monkeypatch):
    unreachable = Mock(side_effect=ConnectionError("Temporary failure in name resolution"))
    monkeypatch.setattr(import_timm(), "create_model", unreachable)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(StorageFailed, match=r"name resolution.*--weights FILE"):
        create_encoder("resnet18")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the user's setting, not the network
    with pytest.raises(BadConfig, match=r"name resolution.*--weights FILE"):
        create_encoder("resnet18")
