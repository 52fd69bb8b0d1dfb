"""Networks in bfloat16 or TF32, and all about them in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from linear import (
    CPU,
    checkpoint_of,
    configured,
    fit_fold,
    linear_slide,
)

from stflow_graph.errors import BadConfig
from stflow_graph.inference.predictor import Predictor
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.models.precision import check_precision, computing_in

SLIDE = linear_slide("S", 25)


def product() -> torch.dtype:
    return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


def test_products_are_of_the_precision_inside_alone():
    def check(precision: str, dtype: torch.dtype, allowed: str) -> None:
        with computing_in(precision, CPU):
            assert (product(), torch.get_float32_matmul_precision()) == (dtype, allowed)
            raise KeyError

    for precision, *expected in (
        ("float32", torch.float32, "highest"),
        ("bf16", torch.bfloat16, "highest"),
        ("tf32", torch.float32, "high"),
    ):
        with pytest.raises(KeyError):
            check(precision, *expected)
        assert (product(), torch.get_float32_matmul_precision()) == (torch.float32, "highest")


def test_a_precision_that_the_device_lacks_is_refused(monkeypatch):
    for precision in ("float32", "bf16"):
        check_precision(precision, CPU)
    with pytest.raises(BadConfig, match=r"precision 'tf32': device 'cpu' has none\. Fix: float32"):
        check_precision("tf32", CPU)
    gpu = torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(BadConfig, match="'tf32': device 'cuda:1' has none"):
        check_precision("tf32", gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    check_precision("tf32", gpu)
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda kind: False)
    with pytest.raises(BadConfig, match="'bf16': device 'mps' has none"):
        check_precision("bf16", torch.device("mps"))


def predicted(kind: str, precision: str, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    asked = SampleSettings(n_samples=2, precision=precision, **settings)
    (block,) = Predictor(checkpoint_of(kind), "cpu").blocks(SLIDE, asked)
    assert block.samples is not None
    return block.mean, block.samples


@pytest.mark.parametrize("tile_size", [None, 7])
@pytest.mark.parametrize("kind", ["field", "two-stage", "graph", "transformer"])
def test_a_prediction_in_bfloat16_is_near_that_in_float32(kind, tile_size):
    pairs = zip(
        predicted(kind, "bf16", tile_size=tile_size),
        predicted(kind, "float32", tile_size=tile_size),
        strict=True,
    )
    for low, full in pairs:
        assert low.dtype == np.float32
        distance = np.linalg.norm(low - full) / np.linalg.norm(
            full - full.mean(axis=-2, keepdims=True)
        )
        assert 1e-5 < distance < 0.05
    if kind in ("field", "two-stage"):  # what is read out of the states is not rounded to 8 bits
        rounded = torch.from_numpy(low).bfloat16().float().numpy()
        assert (rounded != low).mean() > 0.9


@pytest.mark.parametrize("kind", ["field", "graph"])
def test_only_the_steps_of_training_are_in_bfloat16(kind, tmp_path):
    seen: dict[str, set[torch.dtype]] = {"steps": set(), "others": set()}

    def forward(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, torch.nn.Linear):
            seen["steps" if module.training else "others"].add(output.dtype)

    handle = torch.nn.modules.module.register_module_forward_hook(forward)
    try:
        config = configured(kind, train__precision="bf16")
        slides = [linear_slide(name, 20) for name in "ABC"]
        fitted = fit_fold(slides, config, tmp_path, fold=0)
    finally:
        handle.remove()
    assert seen == {"steps": {torch.bfloat16}, "others": {torch.float32}}
    assert {value.dtype for value in fitted.weights.values()} <= {torch.float32, torch.int64}
    full = fit_fold(slides, configured(kind), tmp_path / "full", fold=0)
    for low, other in zip(fitted.best, full.best, strict=True):
        assert low.loss == pytest.approx(other.loss, rel=0.02)
        assert low.loss != other.loss


def test_training_refuses_it_too(tmp_path):
    slides = [linear_slide(name, 20) for name in "ABC"]
    with pytest.raises(BadConfig, match="precision 'tf32'"):
        fit_fold(slides, configured("field", train__precision="tf32"), tmp_path, fold=0)
