import math

import pytest
import torch
from torch import nn

from stflow_graph.nn.time_embedding import TimeEmbedding, sinusoidal


def test_sinusoids_are_cosines_then_sines_of_the_stated_frequencies():
    t = torch.tensor([0.0, 0.3, 1.0])
    for row, time in zip(sinusoidal(t, 256).tolist(), t.double().tolist(), strict=True):
        angles = [time * math.exp(-math.log(10000) * i / 128) for i in range(128)]
        expected = [*map(math.cos, angles), *map(math.sin, angles)]
        assert row == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_embedding_is_the_mlp_of_the_sinusoids_which_keep_their_precision(dtype):
    module, t = TimeEmbedding(16).to(dtype), torch.tensor([0.1, 0.9])
    assert [type(layer) for layer in module.mlp] == [nn.Linear, nn.SiLU, nn.Linear]
    assert torch.equal(module(t), module.mlp(sinusoidal(t, 256).to(dtype)))
    assert sinusoidal(t.bfloat16(), 8).dtype == torch.float32
    assert sinusoidal(t.double(), 8).dtype == torch.float64


def test_odd_widths_are_refused():
    with pytest.raises(ValueError, match="even, got 255"):
        TimeEmbedding(16, 255)
