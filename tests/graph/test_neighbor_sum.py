import pytest
import torch

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


def test_the_sum_over_no_edges_is_zero():
    none = torch.zeros(0, dtype=torch.long)
    total = neighbor_sum(torch.randn(2, 3), none, edge_starts(none, 2), torch.zeros(0))
    assert torch.equal(total, torch.zeros(2, 3))


def test_sortedness_is_recognised():
    assert is_sorted(RECEIVER)
    assert is_sorted(RECEIVER[:0])
    assert not is_sorted(SENDER)
