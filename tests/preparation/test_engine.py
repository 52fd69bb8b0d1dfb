"""Embeddings by ONNX Runtime are those by torch, and torch computes where they are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from artefacts import read_embeddings
from torch import nn
from toy import toy_encoder, write_images

from stflow_graph.encoders import Encoder, PatchTransform
from stflow_graph.encoders.onnx_runtime import PACKAGES, is_installed
from stflow_graph.errors import BadConfig, MissingDependency
from stflow_graph.preparation import engine as engine_module
from stflow_graph.preparation.embedding import embed_files
from stflow_graph.preparation.engine import EmbedSettings, Engine

needs_onnx = pytest.mark.skipif(not is_installed(), reason=f"needs {', '.join(PACKAGES)}")
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)


class Cnn(nn.Module):
    """Convolutions with normalisation, one depthwise, and maps that are pooled outside."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU6(),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.BatchNorm2d(6),
        )
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x, self.layers(x)]


def cnn(network: nn.Module | None = None) -> Encoder:
    torch.manual_seed(0)
    transform = PatchTransform(8)
    pool = lambda maps: maps[-1].mean((2, 3))  # noqa: E731
    return Encoder("cnn", network or Cnn(), 6, transform, "0" * 64, pool)


def by(engine: str, encoder: Encoder, n: int = 7) -> tuple[np.ndarray, str]:
    run = Engine(encoder, EmbedSettings(engine=engine), lambda: n)
    parts = [run(IMAGES[:4]), run(IMAGES[4:])]  # batches of different sizes
    return np.concatenate(parts), run.name


@needs_onnx
def test_both_give_the_same():
    by_torch, by_onnx = by("torch", cnn()), by("onnx", cnn())
    np.testing.assert_allclose(by_onnx[0], by_torch[0], atol=1e-5)
    assert by_torch[1].startswith("torch ")
    assert by_onnx[1].startswith("onnxruntime ")


@needs_onnx
def test_it_is_taken_for_many_patches_of_a_cnn():
    assert by("auto", cnn(), 999)[1].startswith("torch ")
    assert by("auto", cnn(), 1000)[1].startswith("onnxruntime ")
    assert by("auto", toy_encoder(), 10**6)[1].startswith("torch ")  # no batch normalisation
    settings = EmbedSettings(precision="bf16")
    assert not settings.uses_onnx(cnn(), lambda: 10**6)


@needs_onnx
@pytest.mark.parametrize("fault", ["other numbers", "no export"])
def test_torch_computes_where_it_differs_or_fails(fault, caplog):
    class Odd(Cnn):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            y = self.layers(x)
            if fault == "no export" and y.sum() > 1e9:  # a choice by values
                return [x]
            wrong = fault == "other numbers" and torch.compiler.is_exporting()
            return [y + 100.0 * wrong]

    encoder = cnn(Odd())
    x, name = by("onnx", encoder)
    assert name.startswith("torch ")
    ours = [record for record in caplog.records if record.name.startswith("stflow_graph")]
    (line,) = [record.getMessage() for record in ours]
    assert line.startswith("cnn: ONNX Runtime is not used: ")
    np.testing.assert_array_equal(x, by("torch", encoder)[0])


def test_settings_that_do_not_go_together_are_refused(monkeypatch):
    with pytest.raises(BadConfig, match="engine 'x': expected auto, torch, onnx"):
        Engine(cnn(), EmbedSettings(engine="x"), lambda: 1)
    with pytest.raises(BadConfig, match="on CPUs in fp32, not on cpu in bf16"):
        Engine(cnn(), EmbedSettings(engine="onnx", precision="bf16"), lambda: 1)
    monkeypatch.setattr(engine_module, "is_installed", lambda: False)
    with pytest.raises(MissingDependency, match=r"pip install 'stflow-graph\[onnx\]'"):
        Engine(cnn(), EmbedSettings(engine="onnx"), lambda: 1)
    assert by("auto", cnn(), 10**6)[1].startswith("torch ")


@needs_onnx
def test_a_command_that_is_run_again_computes_with_the_same(tmp_path, monkeypatch):
    """All files of a command count, also those that are there: the rest gets the same bytes."""
    monkeypatch.setattr(engine_module, "_MIN_FOR_ONNX", 14)
    jobs = []
    for name in "AB":
        write_images(tmp_path / f"{name}.h5")
        jobs.append((tmp_path / f"{name}.h5", tmp_path / "out" / f"{name}.h5"))
    embed_files(jobs, cnn())
    content = jobs[1][1].read_bytes()
    assert read_embeddings(jobs[1][1]).attrs["engine"].startswith("onnxruntime ")
    jobs[1][1].unlink()
    assert [done.up_to_date for done in embed_files(jobs, cnn())] == [True, False]
    assert jobs[1][1].read_bytes() == content
