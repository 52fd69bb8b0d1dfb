from __future__ import annotations

import pytest
import torch

from stflow_graph.nn.global_attention import GLOBAL_ATTENTIONS, LatentAttention, LinearAttention

C, HEADS = 16, 4


@pytest.fixture(params=GLOBAL_ATTENTIONS)
def layer(request):
    torch.manual_seed(0)
    return GLOBAL_ATTENTIONS[request.param](C, heads=HEADS).double().eval()


def states(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, C, generator=torch.Generator().manual_seed(seed)).double()


def alone(layer, x: torch.Tensor) -> torch.Tensor:
    return layer(x, torch.zeros(len(x)).long(), 1)


def latent_reference(layer: LatentAttention, x: torch.Tensor) -> torch.Tensor:
    """Attend token by token and spot by spot, for one slide."""
    q, k, v = (part.view(len(x), HEADS, -1) for part in layer.qkv(layer.norm(x)).chunk(3, 1))
    scale, out = (C // HEADS) ** 0.5, []
    for h in range(HEADS):
        tokens = [
            torch.softmax(k[:, h] @ query / scale, 0) @ v[:, h] for query in layer.queries[:, h]
        ]
        weights = torch.softmax(q[:, h] @ layer.keys[:, h].T / scale, 1)
        out.append(weights @ torch.stack(tokens))
    return layer.out(torch.cat(out, dim=1))


def linear_reference(layer: LinearAttention, x: torch.Tensor) -> torch.Tensor:
    """Attend with the dense N x N matrix of the sigmoid kernel."""
    inner, x = layer.attention, layer.norm(x)
    k = inner.k(x).sigmoid().view(len(x), C // HEADS, HEADS)  # queries and keys are shared
    v = inner.v(x).view(len(x), C // HEADS, HEADS)
    kernel = torch.einsum("ndh,mdh->nmh", k, k)
    out = torch.einsum("nmh,mdh->ndh", kernel, v) / (kernel.sum(1)[:, None] + 1e-6)
    gated = inner.lns(out.reshape(len(x), C)) * (inner.h_lins(x) + inner.beta)
    return layer.out(torch.relu(inner.lin_out(gated)))


@pytest.mark.parametrize(
    ("kind", "reference"), [("latent", latent_reference), ("linear", linear_reference)]
)
def test_equals_a_dense_reference(kind, reference):
    torch.manual_seed(0)
    layer = GLOBAL_ATTENTIONS[kind](C, heads=HEADS).double()
    assert torch.allclose(alone(layer, states(9)), reference(layer, states(9)), atol=1e-10)


def test_parts_read_one_after_the_other_give_what_the_slide_gives(layer):
    x = states(40) * torch.linspace(0.1, 20, 40)[:, None].double()  # scores far from each other
    parts = x.split([1, 20, 19])
    summary = layer.read(parts[0])
    for part in parts[1:]:
        summary = layer.merge(summary, layer.read(part))
    found = torch.cat([layer.spread(part, summary) for part in parts])
    assert torch.allclose(found, alone(layer, x), atol=1e-12)


def test_a_slide_in_a_batch_is_as_it_is_alone(layer):
    parts = [states(7, 1), states(1, 2), states(5, 3)]
    batch = torch.tensor([0] * 7 + [1] + [3] * 5)  # slide 2 has no spots
    together = layer(torch.cat(parts), batch, 4)
    assert torch.allclose(together, torch.cat([alone(layer, x) for x in parts]), atol=1e-12)
    assert torch.isfinite(together).all()


def test_permuting_spots_permutes_the_output_and_every_spot_is_seen(layer):
    x, order = states(9), torch.randperm(9)
    assert torch.allclose(alone(layer, x)[order], alone(layer, x[order]), atol=1e-12)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(alone(layer, x)[0].square().sum(), x)
    assert (gradient.abs().sum(1) > 0).all()


def test_gradients_reach_every_parameter(layer):
    x = states(12)
    layer(x, torch.tensor([0] * 7 + [1] * 5), 2).square().sum().backward()
    assert [n for n, p in layer.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_no_spots_give_no_rows(layer):
    assert layer(states(0), torch.zeros(0).long(), 1).shape == (0, C)


def test_reset_parameters_draws_anew(layer):
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    layer.reset_parameters()
    after = layer.state_dict()
    assert all(
        not torch.equal(before[key], after[key])
        for key in before
        if "norm" not in key and "lns" not in key
    )


def test_compiles_without_graph_breaks(layer):
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.allclose(alone(compiled, states(9)), alone(layer, states(9)), atol=1e-10)


def test_what_does_not_fit_is_refused(layer):
    with pytest.raises(ValueError, match=r"x must be \[N, 16\], got \[9, 15\]"):
        layer(states(9)[:, :15], torch.zeros(9).long(), 1)
    with pytest.raises(ValueError, match=r"batch must be \[9\], got \[8\]"):
        layer(states(9), torch.zeros(8).long(), 1)
    with pytest.raises(ValueError, match="heads must divide"):
        type(layer)(15, heads=4)
