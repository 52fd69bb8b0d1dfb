from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from stflow_graph.flow.loss import flow_loss, pearson_loss


@pytest.fixture
def values():
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(30, 4, generator=generator).double()
    y_hat = y + torch.randn(30, 4, generator=generator).double()
    return y_hat, y, torch.arange(30) // 18


def test_squared_error_counts_every_spot_the_same(values):
    y_hat, y, batch = values
    expected = np.mean((y_hat.numpy() - y.numpy()) ** 2)
    assert flow_loss(y_hat, y, batch).item() == pytest.approx(expected)
    assert torch.equal(flow_loss(y_hat, y), flow_loss(y_hat, y, batch))


def test_correlation_term_is_the_mean_over_slides_and_genes(values):
    y_hat, y, batch = values
    expected = np.mean(
        [
            1 - pearsonr(y_hat[batch == slide, gene], y[batch == slide, gene])[0]
            for slide in (0, 1)
            for gene in range(4)
        ]
    )
    assert pearson_loss(y_hat, y, batch).item() == pytest.approx(expected, rel=1e-4)
    total = flow_loss(y_hat, y, batch, pcc_weight=0.3)
    mse = flow_loss(y_hat, y, batch)
    assert total.item() == pytest.approx(mse.item() + 0.3 * expected, rel=1e-4)


def test_correlation_ignores_scale_offset_and_order_of_spots(values):
    y_hat, y, batch = values
    shift = torch.tensor([[5.0], [-70.0]])[batch]
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    moved = pearson_loss((3 * y_hat + shift)[order], y[order], batch[order])
    assert moved.item() == pytest.approx(pearson_loss(y_hat, y, batch).item(), rel=1e-4)


@pytest.mark.parametrize(("factor", "expected"), [(2.0, 0.0), (-0.5, 2.0)])
def test_the_bounds_of_the_correlation_term_are_reached(values, factor, expected):
    _, y, batch = values
    assert pearson_loss(factor * y, y, batch).item() == pytest.approx(expected, abs=1e-4)


def test_constant_genes_do_not_count(values):
    y_hat, y, batch = values
    constant = y.clone()
    constant[batch == 0, 1] = 0.7
    without = np.mean(
        [
            1 - pearsonr(y_hat[batch == slide, gene], y[batch == slide, gene])[0]
            for slide, gene in [(0, 0), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]
        ]
    )
    assert pearson_loss(y_hat, constant, batch).item() == pytest.approx(without, rel=1e-4)


@pytest.mark.parametrize("n", [1, 2, 30])
def test_degenerate_slides_give_finite_loss_and_gradient(values, n):
    y = values[1][:n]
    for y_hat in (torch.zeros_like(y), y.clone()):
        y_hat.requires_grad_()
        loss = flow_loss(y_hat, torch.ones_like(y), pcc_weight=1.0)
        loss = loss + flow_loss(y_hat, y, pcc_weight=1.0)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(y_hat.grad).all()


def test_a_constant_prediction_has_no_correlation(values):
    _, y, batch = values
    assert pearson_loss(torch.ones_like(y), y, batch).item() == pytest.approx(1.0)


def test_gradient_is_the_derivative(values):
    y_hat, y, batch = values
    y_hat.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: flow_loss(v, y, batch, pcc_weight=0.5), y_hat)


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
