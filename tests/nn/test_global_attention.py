from __future__ import annotations

import pytest
import torch

from stflow_graph.nn.global_attention import LatentAttention


@pytest.fixture
def layer() -> LatentAttention:
    torch.manual_seed(0)
    return LatentAttention(16, n_latents=5, heads=4).double()


def dense_reference(layer: LatentAttention, x: torch.Tensor) -> torch.Tensor:
    """Attend token by token and spot by spot, for one slide."""
    q, k, v = (part.view(len(x), 4, 4) for part in layer.qkv(layer.norm(x)).chunk(3, 1))
    out = []
    for h in range(4):
        tokens = [torch.softmax(k[:, h] @ layer.queries[m, h] / 2, 0) @ v[:, h] for m in range(5)]
        rows = []
        for i in range(len(x)):
            weights = torch.softmax(
                torch.stack([q[i, h] @ layer.keys[m, h] for m in range(5)]) / 2, 0
            )
            rows.append(sum(w * z for w, z in zip(weights, tokens, strict=True)))
        out.append(torch.stack(rows))
    return layer.out(torch.cat(out, dim=1))


def test_equals_a_dense_reference(layer):
    x = torch.randn(9, 16).double()
    out = layer(x, torch.zeros(9).long(), 1)
    assert torch.allclose(out, dense_reference(layer, x), atol=1e-12)


def test_slides_are_never_mixed(layer):
    x = torch.randn(12, 16).double()
    batch = torch.tensor([0] * 7 + [1] * 5)
    together = layer(x, batch, 2)
    alone = torch.cat([layer(part, torch.zeros(len(part)).long(), 1) for part in x.split([7, 5])])
    assert torch.allclose(together, alone, atol=1e-12)


def test_permuting_spots_permutes_the_output_and_every_spot_is_seen(layer):
    x, order = torch.randn(9, 16).double(), torch.randperm(9)
    zeros = torch.zeros(9).long()
    assert torch.allclose(layer(x, zeros, 1)[order], layer(x[order], zeros, 1), atol=1e-12)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x, zeros, 1)[0].square().sum(), x)
    assert (gradient.abs().sum(1) > 0).all()


def test_heads_must_divide():
    with pytest.raises(ValueError, match="heads must divide"):
        LatentAttention(15, heads=4)
