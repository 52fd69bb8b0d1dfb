from __future__ import annotations

import importlib
import re

import torch

from stflow_graph.encoders.ctranspath import ConvStem, ctranspath
from stflow_graph.encoders.torchvision_shim import import_timm


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name weights as timm 0.5 did, with the constants that it saved."""

    def one_earlier(match: re.Match) -> str:
        return f"layers.{int(match[1]) - 1}.downsample"

    old = {re.sub(r"^layers\.(\d)\.downsample", one_earlier, k): v for k, v in state.items()}
    old["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    old["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    return old


def test_files_of_old_and_new_names_fit_as_timm_itself_reads_them():
    plan = ctranspath()
    network = plan.build()
    state = network.state_dict()
    old = old_names(state)
    assert "layers.0.downsample.reduction.weight" in old
    renamed = plan.rename(old)
    assert renamed.keys() == state.keys()
    assert all(torch.equal(renamed[key], state[key]) for key in state)
    assert plan.rename(state).keys() == state.keys()
    import_timm()
    swin = importlib.import_module("timm.models.swin_transformer")
    assert swin.checkpoint_filter_fn(dict(old), network).keys() == state.keys()


def test_the_stem_has_the_layers_and_names_of_the_published_one():
    stem = ConvStem().eval()
    shapes = {k: tuple(v.shape) for k, v in stem.state_dict().items() if v.dim() == 4}
    assert shapes == {
        "proj.0.weight": (12, 3, 3, 3),
        "proj.3.weight": (24, 12, 3, 3),
        "proj.6.weight": (96, 24, 1, 1),
    }
    x = torch.randn(2, 3, 16, 24)
    out = stem(x)
    assert out.shape == (2, 4, 6, 96)
    tokens = stem.norm(stem.proj(x).flatten(2).transpose(1, 2))  # as published: [B, T, C]
    assert torch.allclose(out.flatten(1, 2), tokens, atol=1e-6)


def test_norms_are_those_of_the_published_network():
    network = ctranspath().build()
    norms = [m for m in network.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-5}
