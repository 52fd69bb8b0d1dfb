import importlib
import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from stflow_graph.nn.stflow.swiglu import SwiGLU


@pytest.fixture
def timm_mlp(monkeypatch):
    """timm's file of MLPs without the rest of timm, which would import torchvision."""
    found = importlib.util.find_spec("timm")
    assert found is not None
    package = types.ModuleType("timm_layers")
    package.__path__ = [str(Path(found.origin).parent / "layers")]
    monkeypatch.setitem(sys.modules, "timm_layers", package)
    before = set(sys.modules)
    yield importlib.import_module("timm_layers.mlp")
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def x():
    return torch.randn(5, 3, 7, generator=torch.Generator().manual_seed(0))


def twins(timm_mlp, dropout: float = 0.0) -> tuple[SwiGLU, nn.Module]:
    """Return our module and timm's with the same weights, norm included."""
    ours = SwiGLU(7, 12, 4, dropout)
    theirs = timm_mlp.SwiGLUPacked(7, 12, 4, norm_layer=nn.LayerNorm, drop=dropout)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def test_equals_timm(timm_mlp, x):
    ours, theirs = twins(timm_mlp)
    assert torch.equal(ours(x), theirs(x))


def test_dropout_equals_timm(timm_mlp, x):
    ours, theirs = twins(timm_mlp, dropout=0.4)
    torch.manual_seed(0)
    expected = theirs(x)
    torch.manual_seed(0)
    assert torch.equal(ours(x), expected)
    assert not torch.equal(ours(x), expected)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_odd_widths_are_refused():
    with pytest.raises(ValueError, match="even, got 13"):
        SwiGLU(7, 13, 4)
