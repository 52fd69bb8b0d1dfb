import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from slides import noise, seeded

from stflow_graph.flow.loss import flow_loss, pearson_loss, without_missing

Y = noise(30, 4).double()
Y_HAT = Y + noise(30, 4, seed=1).double()
BATCH = torch.arange(30) // 18


def mean_distance(y_hat: torch.Tensor, y: torch.Tensor, pairs: list[tuple[int, int]]) -> float:
    """Return the mean of 1 - PCC over pairs of slide and gene, by scipy."""
    rows = [(BATCH == slide, gene) for slide, gene in pairs]
    return np.mean([1 - pearsonr(y_hat[row], y[row])[0] for row in rows])


PAIRS = [(slide, gene) for slide in (0, 1) for gene in range(4)]


def test_squared_error_counts_every_spot_the_same():
    expected = np.mean((Y_HAT.numpy() - Y.numpy()) ** 2)
    assert flow_loss(Y_HAT, Y, BATCH).item() == pytest.approx(expected)
    assert torch.equal(flow_loss(Y_HAT, Y), flow_loss(Y_HAT, Y, BATCH))


def test_correlation_term_is_the_mean_over_slides_and_genes():
    expected = mean_distance(Y_HAT, Y, PAIRS)
    assert pearson_loss(Y_HAT, Y, BATCH).item() == pytest.approx(expected, rel=1e-4)
    total, mse = (flow_loss(Y_HAT, Y, BATCH, pcc_weight=weight) for weight in (0.3, 0.0))
    assert total.item() == pytest.approx(mse.item() + 0.3 * expected, rel=1e-4)


def test_constant_genes_do_not_count():
    constant = Y.clone()
    constant[BATCH == 0, 1] = 0.7
    expected = mean_distance(Y_HAT, constant, [pair for pair in PAIRS if pair != (0, 1)])
    assert pearson_loss(Y_HAT, constant, BATCH).item() == pytest.approx(expected, rel=1e-4)


def test_correlation_ignores_scale_offset_and_order_of_spots():
    shift = torch.tensor([[5.0], [-70.0]])[BATCH]
    order = torch.randperm(30, generator=seeded(1))
    moved = pearson_loss((3 * Y_HAT + shift)[order], Y[order], BATCH[order])
    assert moved.item() == pytest.approx(pearson_loss(Y_HAT, Y, BATCH).item(), rel=1e-4)


@pytest.mark.parametrize(("factor", "expected"), [(2.0, 0.0), (0.0, 1.0), (-0.5, 2.0)])
def test_the_bounds_are_reached_and_a_constant_has_no_correlation(factor, expected):
    assert pearson_loss(1 + factor * Y, Y, BATCH).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("n", [1, 2, 30])
def test_degenerate_slides_give_finite_loss_and_gradient(n):
    y = Y[:n]
    for y_hat in (torch.zeros_like(y), y.clone()):
        y_hat.requires_grad_()
        loss = flow_loss(y_hat, torch.ones_like(y), pcc_weight=1.0)
        loss = loss + flow_loss(y_hat, y, pcc_weight=1.0)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(y_hat.grad).all()


def test_gradient_is_the_derivative():
    y_hat = Y_HAT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: flow_loss(v, Y, BATCH, pcc_weight=0.5), y_hat)


@pytest.mark.parametrize(
    ("y_hat", "y", "batch", "message"),
    [
        ((5, 3), (5, 2), (5,), r"got \[5, 3\] and \[5, 2\]"),
        ((5,), (5,), (5,), r"\[N, G\], got \[5\]"),
        ((5, 3), (5, 3), (4,), r"batch must be \[5\], got \[4\]"),
    ],
)
def test_wrong_shapes_are_printed(y_hat, y, batch, message):
    with pytest.raises(ValueError, match=message):
        flow_loss(torch.zeros(y_hat), torch.zeros(y), torch.zeros(batch).long())


def test_genes_that_are_not_measured_do_not_count_and_have_no_gradient():
    missing = torch.zeros(30, 4, dtype=torch.bool)
    missing[BATCH == 0, 1] = True
    missing[BATCH == 1, 3] = True
    y = Y.masked_fill(missing, torch.nan)
    y_hat = Y_HAT.clone().requires_grad_()
    loss = flow_loss(y_hat, y, BATCH, pcc_weight=0.3)
    loss.backward()
    measured = ~missing
    mse = ((Y_HAT - Y)[measured] ** 2).sum().item() / 120
    pairs = [pair for pair in PAIRS if pair not in ((0, 1), (1, 3))]
    distance = mean_distance(Y_HAT, Y, pairs) * 6 / 8
    assert loss.item() == pytest.approx(mse + 0.3 * distance, rel=1e-4)
    assert (y_hat.grad[missing] == 0).all()
    assert (y_hat.grad[measured] != 0).all()
    # whatever the network predicts of them
    wild = torch.where(missing, 1e3 * Y_HAT, Y_HAT).requires_grad_()
    other = flow_loss(wild, y, BATCH, pcc_weight=0.3)
    other.backward()
    assert torch.equal(other, loss)
    assert torch.equal(wild.grad, y_hat.grad)


def test_what_is_not_measured_is_replaced_in_the_input():
    y = Y.clone()
    y[:, 2] = torch.nan
    y_t = without_missing(0.5 * y, y)
    assert torch.equal(y_t[:, 2], torch.zeros(30).double())
    assert torch.equal(y_t[:, [0, 1, 3]], 0.5 * Y[:, [0, 1, 3]])
    assert torch.equal(without_missing(y_t, Y), y_t)
