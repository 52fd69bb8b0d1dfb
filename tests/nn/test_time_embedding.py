from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stflow_graph.nn.time_embedding import TimeEmbedding, sinusoidal


def test_sinusoids_are_cosines_then_sines_of_the_stated_frequencies():
    t = torch.tensor([0.0, 0.3, 1.0])
    found = sinusoidal(t, 256)
    for row, time in zip(found.tolist(), t.double().tolist(), strict=True):
        angles = [time * math.exp(-math.log(10000) * i / 128) for i in range(128)]
        expected = [*map(math.cos, angles), *map(math.sin, angles)]
        assert row == pytest.approx(expected, abs=1e-6)


def test_every_pair_lies_on_the_unit_circle():
    cos, sin = sinusoidal(torch.rand(50, generator=torch.Generator().manual_seed(0)), 64).chunk(
        2, dim=1
    )
    assert torch.allclose(cos**2 + sin**2, torch.ones_like(cos), atol=1e-6)


def test_embedding_is_the_mlp_of_the_sinusoids():
    module = TimeEmbedding(16)
    assert [type(layer) for layer in module.mlp] == [nn.Linear, nn.SiLU, nn.Linear]
    t = torch.tensor([0.1, 0.9])
    assert torch.equal(module(t), module.mlp(sinusoidal(t, 256)))
    assert {name: tuple(p.shape) for name, p in module.state_dict().items()} == {
        "mlp.0.weight": (16, 256),
        "mlp.0.bias": (16,),
        "mlp.2.weight": (16, 16),
        "mlp.2.bias": (16,),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_times_keep_their_precision_whatever_the_weights(dtype):
    module = TimeEmbedding(16).to(dtype)
    assert module(torch.tensor([0.5])).dtype == dtype
    assert sinusoidal(torch.tensor([0.5], dtype=torch.bfloat16), 8).dtype == torch.float32
    assert sinusoidal(torch.tensor([0.5]).double(), 8).dtype == torch.float64


def test_odd_widths_are_refused():
    with pytest.raises(ValueError, match="even, got 255"):
        TimeEmbedding(16, 255)
