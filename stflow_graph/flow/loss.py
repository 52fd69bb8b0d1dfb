"""Training losses on the predicted y₁."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.utils import scatter

_EPS = 1e-6
_CONSTANT = 1e-8


def flow_loss(
    y_1_hat: Tensor, y_1: Tensor, batch: Tensor | None = None, *, pcc_weight: float = 0.0
) -> Tensor:
    r"""Return the x₁-prediction loss, a scalar.

    :math:`\frac{1}{NG} \sum_{ig} (\hat y_{1,ig} - y_{1,ig})^2 + w \cdot` :func:`pearson_loss`.
    The squared error is the published loss (Huang et al., ICML 2025): every spot counts the same,
    whatever the size of its slide. Genes that a slide does not measure, NaN in ``y_1``, have no
    loss and no gradient; N G includes them, so that a gene of a slide counts the same whatever else
    the slide measures.

    Args:
        y_1_hat: ``[N, G]`` prediction.
        y_1: ``[N, G]`` expression, NaN where it is not measured.
        batch: ``[N]`` slide of each spot; None for one slide.
        pcc_weight: w, weight of the correlation term; 0 leaves it out.

    Raises:
        ValueError: shapes that do not fit; the message prints them.
    """
    if y_1.dim() != 2 or y_1_hat.shape != y_1.shape:
        raise ValueError(
            f"y_1_hat and y_1 must be [N, G], got {list(y_1_hat.shape)} and {list(y_1.shape)}"
        )
    if batch is not None and batch.shape != y_1.shape[:1]:
        raise ValueError(f"batch must be [{y_1.size(0)}], got {list(batch.shape)}")
    loss = squared_error(y_1_hat, y_1)
    if pcc_weight:
        loss = loss + pcc_weight * pearson_loss(y_1_hat, y_1, batch)
    return loss


def squared_error(y_1_hat: Tensor, y_1: Tensor) -> Tensor:
    """Return the mean squared error, a scalar; it is 0 in the entries where ``y_1`` is NaN."""
    measured = ~y_1.isnan()
    if measured.all():
        return F.mse_loss(y_1_hat, y_1)
    return F.mse_loss(y_1_hat[measured], y_1[measured], reduction="sum") / y_1.numel()


def without_missing(values: Tensor, y_1: Tensor, instead: Tensor | float = 0.0) -> Tensor:
    """Return values ``[N, G]`` with another value where ``y_1`` is NaN: a gene not measured."""
    return torch.where(y_1.isnan(), instead, values)


def pearson_loss(y_1_hat: Tensor, y_1: Tensor, batch: Tensor | None = None) -> Tensor:
    """Return the mean of 1 - PCC over slides and genes, a scalar in [0, 2].

    The correlation is over the spots of one slide; every pair of slide and gene counts the same,
    pairs whose expression is constant do not count, and those that are not measured count as 0.
    1e-6 is added to both variances, so that a constant prediction has PCC 0 and a finite gradient.
    Arguments as in :func:`flow_loss`.
    """
    if batch is None:
        batch = y_1.new_zeros(y_1.size(0)).long()
    y, var, n_pairs = _expression(y_1, batch)
    y_hat = _centred(y_1_hat, batch)
    var_hat, cov = (
        scatter(product, batch, reduce="mean") for product in (y_hat * y_hat, y_hat * y)
    )
    pearson = cov / ((var_hat + _EPS) * (var + _EPS)).sqrt()
    return ((1 - pearson) * (var > _CONSTANT)).sum() / n_pairs.clamp(min=1)


def counted_pairs(y_1: Tensor, batch: Tensor) -> Tensor:
    """Return how many pairs of slide and gene :func:`pearson_loss` is a mean of, a scalar."""
    return _expression(y_1, batch)[2]


def _expression(y_1: Tensor, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``[N, G]`` centred in slides, variances ``[n_slides, G]``, the number of pairs."""
    missing = scatter(y_1.isnan().to(y_1.dtype), batch, reduce="max") > 0
    y = _centred(without_missing(y_1, y_1), batch)
    var = scatter(y * y, batch, reduce="mean")
    return y, var, ((var > _CONSTANT) | missing).sum()


def _centred(values: Tensor, batch: Tensor) -> Tensor:
    return values - scatter(values, batch, reduce="mean")[batch]
