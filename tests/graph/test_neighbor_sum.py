import sys

import pytest
import torch
from slides import noise, seeded
from triton_runs import on_cpu, on_gpu

from stflow_graph.graph import kernels
from stflow_graph.graph import neighbor_sum as module
from stflow_graph.graph.neighbor_sum import _by_kernel as by_kernel
from stflow_graph.graph.neighbor_sum import edge_starts, is_sorted, neighbor_sum

SENDER = torch.tensor([4, 0, 2, 2, 1, 4])
RECEIVER = torch.tensor([0, 0, 0, 2, 3, 3])  # spot 1 has no neighbours


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 3)])
def test_sums_and_gradients_equal_those_of_a_loop(shape, dtype):
    torch.manual_seed(0)
    values = torch.randn(shape, dtype=dtype, requires_grad=True)
    weight = torch.rand((6, *shape[1:-1]), dtype=dtype, requires_grad=True)
    starts = edge_starts(RECEIVER, 4)
    assert starts.tolist() == [0, 3, 3, 4, 6]
    rows = [torch.zeros(shape[1:], dtype=dtype) for _ in range(4)]
    for e in range(6):
        rows[RECEIVER[e]] = rows[RECEIVER[e]] + weight[e][..., None] * values[SENDER[e]]
    expected, actual = torch.stack(rows), neighbor_sum(values, SENDER, starts, weight)
    torch.testing.assert_close(actual, expected)
    for a, b in zip(
        torch.autograd.grad(actual.square().sum(), (values, weight)),
        torch.autograd.grad(expected.square().sum(), (values, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("learned", ["values", "weight", "both"])
@pytest.mark.parametrize("heads", [(), (2,)])
def test_gradients_of_either_and_of_gradients(heads, learned):
    values = noise(5, *heads, 3).double().requires_grad_(learned != "weight")
    weight = noise(6, *heads, seed=1).double().requires_grad_(learned != "values")
    starts = edge_starts(RECEIVER, 4)
    inputs = [part for part in (values, weight) if part.requires_grad]

    def total(*_: torch.Tensor) -> torch.Tensor:
        return neighbor_sum(values, SENDER, starts, weight)

    assert torch.autograd.gradcheck(total, inputs)
    assert torch.autograd.gradgradcheck(total, inputs)


def test_the_sum_over_no_edges_is_zero():
    none = torch.zeros(0, dtype=torch.long)
    total = neighbor_sum(torch.randn(2, 3), none, edge_starts(none, 2), torch.zeros(0))
    assert torch.equal(total, torch.zeros(2, 3))


def test_sortedness_is_recognised():
    assert is_sorted(RECEIVER)
    assert is_sorted(RECEIVER[:0])
    assert not is_sorted(SENDER)


@pytest.mark.parametrize("device", [on_cpu, on_gpu])
@pytest.mark.parametrize("width", [1, 5, 128, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_gives_the_same_sums(device, width, dtype):
    """Of spots without neighbours, with many, and of more rows than are summed to."""
    receiver = torch.tensor([0] * 3 + [2] * 40 + [3, 6, 6])
    sender = torch.randint(9, (len(receiver),), generator=seeded())
    values = noise(9, 2 * width, seed=1).to(dtype)[:, width:]  # rows that are not side by side
    weight = torch.rand(len(receiver), generator=seeded())
    starts = edge_starts(receiver, 7)
    inputs = [part.to(device) for part in (values, sender, starts, weight)]
    with kernels.using("off"):
        expected = neighbor_sum(values.float(), sender, starts, weight)
    with kernels.using("on"):
        assert by_kernel(inputs[0], inputs[3])
        actual = neighbor_sum(*inputs)
        learned = inputs[3].clone().requires_grad_()
        assert not by_kernel(inputs[0], learned)
    assert actual.dtype == dtype
    tolerance = (
        {"atol": 1e-6, "rtol": 1e-6} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.01}
    )
    torch.testing.assert_close(actual.cpu().float(), expected, **tolerance)


def test_sums_run_without_a_kernel_that_does_not_compile(monkeypatch, caplog):
    monkeypatch.setattr(kernels, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "stflow_graph.graph.neighbor_sum_kernel", None)
    module._works.cache_clear()
    with kernels.using("on"), caplog.at_level("WARNING"):
        assert not any(by_kernel(torch.ones(2, 2), torch.ones(1)) for _ in range(2))
    module._works.cache_clear()
    assert "run without their GPU kernel" in caplog.text
    assert len(caplog.records) == 1
