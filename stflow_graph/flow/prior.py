"""Priors p(y₀), each as the map from uniform noise to a sample.

A prior is applied to uniforms rather than to a generator so that noise can be keyed by spot
(``flow.noise``): a spot's y₀ is then the same alone, in a tile, in a batch and on every device.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math

import numpy as np
import torch
from scipy.special import expit
from scipy.stats import nbinom
from torch import Tensor

__all__ = ["GaussianPrior", "ZINBPrior", "ZeroPrior"]

_LARGEST = 10**6
_FINEST = 2.0**-25


class Prior(abc.ABC):
    """A distribution of y₀ with independent, equal entries, given by its quantile function."""

    def __call__(self, u: Tensor) -> Tensor:
        """Turn uniform noise into a sample.

        Args:
            u: ``[N, G]`` (or any shape) uniform on the open interval (0, 1).

        Returns:
            y₀, of ``u``'s shape, dtype and device.

        Raises:
            ValueError: an entry of ``u`` is not inside (0, 1).
        """
        if not ((u > 0) & (u < 1)).all():
            raise ValueError(f"u must lie inside (0, 1), got values outside in {list(u.shape)}")
        return self.quantile(u.double()).to(u.dtype)

    @abc.abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """Return the inverse of the cumulative distribution at ``u``, in float64."""


@dataclasses.dataclass(frozen=True)
class ZINBPrior(Prior):
    r"""log1p of zero-inflated negative binomial counts, the prior of STFlow.

    .. math::
        P(c) = π\,[c = 0] + (1 - π) \binom{c + r - 1}{c} (1 - p)^r p^c, \qquad y_0 = \log(1 + c)

    with :math:`p = σ(\mathrm{logits})` and :math:`π = σ(\mathrm{zero\_inflation\_logit})`: torch's
    parametrisation, the counts before inflation have mean :math:`r e^{\mathrm{logits}}`. The
    defaults are the published ones (Huang et al., ICML 2025); with r = 1 it is a zero-inflated
    geometric distribution. Exact by a table of the cumulative distribution that ends where less
    than 2⁻²⁵ is left, finer than float32 uniforms; means and counts above 10⁶ are clamped to it.

    Args:
        total_count: r > 0.
        logits: log-odds p / (1 - p).
        zero_inflation_logit: log-odds of an extra zero.

    Raises:
        ValueError: an argument that is not finite, or total_count <= 0.
    """

    total_count: float = 1.0
    logits: float = 0.1
    zero_inflation_logit: float = 0.0

    def __post_init__(self) -> None:
        values = (self.total_count, self.logits, self.zero_inflation_logit)
        if not all(map(math.isfinite, values)) or self.total_count <= 0:
            raise ValueError(f"arguments must be finite and total_count > 0, got {self}")

    @functools.cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        """P(count <= c) and log(1 + c) for c = 0, 1, ..."""
        logits = min(self.logits, math.log(_LARGEST / self.total_count))
        counts = nbinom(self.total_count, expit(-logits))
        c = np.arange(min(int(counts.isf(_FINEST)), _LARGEST) + 1)
        extra = expit(self.zero_inflation_logit)
        cdf = extra + (1 - extra) * counts.cdf(c)
        return torch.from_numpy(cdf), torch.from_numpy(np.log1p(c))

    def quantile(self, u: Tensor) -> Tensor:
        """Return log(1 + c) for the smallest count c with P(count <= c) >= u."""
        cdf, values = (column.to(u.device) for column in self._table)
        count = torch.searchsorted(cdf, u.contiguous())
        return values[count.clamp(max=len(values) - 1)]


@dataclasses.dataclass(frozen=True)
class GaussianPrior(Prior):
    """The standard normal distribution, without log1p."""

    def quantile(self, u: Tensor) -> Tensor:
        """Return the normal quantile."""
        return torch.special.ndtri(u)


@dataclasses.dataclass(frozen=True)
class ZeroPrior(Prior):
    """Zeros: the flow becomes a deterministic map from the embeddings."""

    def quantile(self, u: Tensor) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(u)
