from functools import partial

import pytest
import torch
from slides import noise, seeded
from torch_geometric.nn.attention import PerformerAttention, PolynormerAttention

from stflow_graph.nn.global_attention import LatentAttention, PyGAttention

C, HEADS = 16, 4
LAYERS = {
    "latent": LatentAttention,
    **{
        layer.__name__: partial(PyGAttention, layer)
        for layer in (PerformerAttention, PolynormerAttention)
    },
}


@pytest.fixture(params=LAYERS)
def layer(request):
    torch.manual_seed(0)
    return LAYERS[request.param](C, heads=HEADS).double().eval()


@pytest.fixture
def latent() -> LatentAttention:
    torch.manual_seed(0)
    return LatentAttention(C, n_latents=5, heads=HEADS).double()


def states(n: int, seed: int = 0) -> torch.Tensor:
    return noise(n, C, seed=seed).double()


def alone(layer, x: torch.Tensor) -> torch.Tensor:
    return layer(x, torch.zeros(len(x)).long(), 1)


def test_latent_attention_equals_a_reference_token_by_token(latent):
    x = states(9)
    q, k, v = (part.view(9, HEADS, -1) for part in latent.qkv(latent.norm(x)).chunk(3, 1))
    scale, out = (C // HEADS) ** 0.5, []
    for h in range(HEADS):
        scores = [k[:, h] @ query / scale for query in latent.queries[:, h]]
        tokens = torch.stack([score.softmax(0) @ v[:, h] for score in scores])
        out.append((q[:, h] @ latent.keys[:, h].T / scale).softmax(1) @ tokens)
    torch.testing.assert_close(alone(latent, x), latent.out(torch.cat(out, dim=1)))


def test_parts_read_one_after_the_other_give_what_the_slide_gives(latent):
    x = states(40) * torch.linspace(0.1, 20, 40)[:, None].double()  # scores far from each other
    parts = x.split([1, 20, 19])
    summary = latent.read(parts[0])
    for part in parts[1:]:
        summary = latent.merge(summary, latent.read(part))
    spread = torch.cat([latent.spread(part, summary) for part in parts])
    torch.testing.assert_close(spread, alone(latent, x))


def test_a_layer_of_pyg_acts_on_each_slide_between_norm_and_linear_map():
    layer = LAYERS["PolynormerAttention"](C, heads=HEADS)
    x = noise(9, C)
    expected = layer.out(layer.attention(layer.norm(x)[None])[0])
    torch.testing.assert_close(alone(layer, x), expected)


def test_a_slide_in_a_batch_is_as_it_is_alone(layer):
    parts = [states(7, 1), states(1, 2), states(5, 3)]
    batch = torch.tensor([0] * 7 + [1] + [3] * 5)  # slide 2 has no spots
    together = layer(torch.cat(parts), batch, 4)
    torch.testing.assert_close(together, torch.cat([alone(layer, x) for x in parts]))
    assert torch.isfinite(together).all()


def test_permuting_spots_permutes_the_output_and_every_spot_is_seen(layer):
    x, order = states(9), torch.randperm(9, generator=seeded())
    torch.testing.assert_close(alone(layer, x)[order], alone(layer, x[order]))
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
    before = {key: value.clone() for key, value in layer.named_parameters()}
    layer.reset_parameters()
    same = {key for key, value in layer.named_parameters() if torch.equal(before[key], value)}
    assert not {key for key in same if before[key].dim() > 1}


def test_wrong_shapes_are_printed(layer):
    with pytest.raises(ValueError, match=r"x must be \[N, 16\], got \[9, 15\]"):
        layer(states(9)[:, :15], torch.zeros(9).long(), 1)
    with pytest.raises(ValueError, match=r"batch must be \[9\], got \[8\]"):
        layer(states(9), torch.zeros(8).long(), 1)
    for kind in LAYERS.values():
        with pytest.raises(ValueError, match="heads must divide channels, got 4 and 15"):
            kind(15, heads=4)


def test_repr_states_the_sizes(latent):
    assert repr(latent) == "LatentAttention(16, n_latents=5, heads=4)"
