import pytest
import torch

from stflow_graph.nn.dropout import CheapDropout, cheap_dropout, dropped_linear


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.96])
def test_the_fraction_kept_and_the_mean_are_right(p):
    torch.manual_seed(0)
    x = torch.full((1000, 999), 2.0)
    out = cheap_dropout(x, p, True)
    kept = (out != 0).double()
    deviation = (p * (1 - p) / x.numel()) ** 0.5
    assert abs(kept.mean().item() - (1 - p)) < 5 * deviation
    assert abs(out.double().mean().item() / 2 - 1) < 5 * deviation / (1 - p)
    torch.testing.assert_close(out.max().item(), 2 / (1 - p), rtol=1e-3, atol=0)


def test_entries_are_independent():
    torch.manual_seed(1)
    kept = (cheap_dropout(torch.ones(200_000, 8), 0.5, True) > 0).double()
    together = kept.T @ kept / len(kept)
    expected = torch.full((8, 8), 0.25) + 0.25 * torch.eye(8)
    assert (together - expected).abs().max() < 0.01


def test_seeds_decide_and_nothing_is_dropped_outside_of_training():
    x, module, out = torch.randn(7, 5), CheapDropout(0.5), []
    for seed, function in ((0, module), (0, lambda x: cheap_dropout(x, 0.5, True)), (1, module)):
        torch.manual_seed(seed)
        out.append(function(x))
    assert torch.equal(out[0], out[1])
    assert not torch.equal(out[0], out[2])
    assert torch.equal(module.eval()(x), x)
    assert torch.equal(cheap_dropout(x, 0.0, True), x)
    assert cheap_dropout(torch.empty(0, 3), 0.5, True).shape == (0, 3)


def test_the_gradient_is_the_mask():
    torch.manual_seed(0)
    x = torch.randn(6, 9, requires_grad=True)
    out = cheap_dropout(x, 0.5, True)
    out.sum().backward()
    torch.testing.assert_close(x.grad * x, out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("learned", [False, True])
def test_a_map_of_dropped_inputs_and_its_gradients(dtype, learned):
    torch.manual_seed(0)
    parts = [torch.randn(9, width, dtype=dtype, requires_grad=learned) for width in (3, 8)]
    weight = torch.randn(4, 11, dtype=dtype, requires_grad=True)
    bias = torch.randn(4, dtype=dtype, requires_grad=True)
    torch.manual_seed(1)
    out = dropped_linear(parts, 0.4, weight, bias, True)
    torch.manual_seed(1)
    dropped = cheap_dropout(torch.cat(parts, 1), 0.4, True)
    expected = torch.nn.functional.linear(dropped, weight, bias)
    torch.testing.assert_close(out, expected)
    assert (dropped == 0).any()
    up = torch.randn(9, 4, dtype=dtype)
    inputs = [weight, bias, *(parts if learned else [])]
    for one, other in zip(
        torch.autograd.grad(out, inputs, up), torch.autograd.grad(expected, inputs, up), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_a_map_drops_nothing_outside_of_training():
    parts, weight, bias = [torch.randn(5, 2), torch.randn(5, 3)], torch.randn(4, 5), torch.zeros(4)
    expected = torch.cat(parts, 1) @ weight.T
    torch.testing.assert_close(dropped_linear(parts, 0.5, weight, bias, False), expected)
    torch.testing.assert_close(dropped_linear(parts, 0.0, weight, bias, True), expected)


def test_an_input_in_bfloat16_is_dropped_too():
    out = dropped_linear(
        [torch.ones(50, 40, dtype=torch.bfloat16)],
        0.5,
        torch.eye(40, dtype=torch.bfloat16),
        torch.zeros(40, dtype=torch.bfloat16),
        True,
    )
    assert out.dtype == torch.bfloat16
    assert out.unique().tolist() == [0, 2]
