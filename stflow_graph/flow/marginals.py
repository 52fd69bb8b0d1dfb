r"""The distribution of a gene's expression in a spot, given what is expected of it.

.. math:: y = μ\, R_g(μ, z), \qquad z \sim \mathcal N(0, 1), \qquad E[R_g(μ, z)] = 1

R is a table: for some values of μ (knots) the ratio y / μ at normal scores z, linear in between.
It is taken from pairs of expected and measured expression of slides that the prediction had not
seen, so zeros, skewness and a spread that depends on the mean are those of the data.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

_N_KNOTS = 12
_N_LEVELS = 65
_LAST = 3.2  # normal scores of the table, in both directions
_WINDOW = 400  # pairs that a knot is made of
_LEAST = 0.02  # expected expression, below which ratios to it mean nothing
_LEAST_MEAN = 0.5  # of ratios, to which they are scaled up
_RESCALED = 5.0  # factor by which the value of a pair is carried to a knot, at most
_ROWS = 4096


@dataclasses.dataclass(frozen=True)
class Marginals:
    """Distributions of G genes.

    Attributes:
        knots: ``[G, K]`` expected expression, ascending.
        ratios: ``[G, K, L]`` expression over expected expression at L normal scores, ascending.
    """

    knots: Tensor
    ratios: Tensor

    @classmethod
    def empty(cls, n_genes: int) -> Marginals:
        """Return tables without spread, of the shape that :meth:`fit` gives."""
        knots = torch.ones(n_genes, _N_KNOTS).cumsum(1)
        return cls(knots, torch.ones(n_genes, _N_KNOTS, _N_LEVELS))

    @classmethod
    def fit(cls, mean: np.ndarray, truth: np.ndarray) -> Marginals:
        """Fit to pairs of expected and measured expression.

        A knot is made of the 400 pairs (of fewer pairs a quarter) whose expected expression is
        nearest to it in rank. Their values are scaled by the ratio of expected expressions, and all
        together so that their mean is the expected expression: the level is the prediction's.

        Args:
            mean: ``[n, G]`` expected expression, log1p units.
            truth: ``[n, G]`` measured.
        """
        n, n_genes = mean.shape
        window = min(n, max(min(_WINDOW, n // 4), 30))
        middle = np.linspace(window // 2, n - window + window // 2, _N_KNOTS).round().astype(int)
        rows = (middle - window // 2)[:, None] + np.arange(window)
        probability = ndtr(_levels().double().numpy())
        knots = np.empty((n_genes, _N_KNOTS))
        ratios = np.empty((n_genes, _N_KNOTS, _N_LEVELS))
        for g in range(n_genes):
            order = np.argsort(mean[:, g], kind="stable")
            expected = np.maximum(mean[order, g].astype(np.float64), _LEAST)[rows]
            knot = expected.mean(axis=1, keepdims=True)
            carried = np.clip(knot / expected, 1 / _RESCALED, _RESCALED)
            values = truth[order, g].astype(np.float64)[rows] * carried
            table = np.quantile(values, probability, axis=1, method="hazen").T
            level = np.maximum(table @ _weights(), 1e-3)
            table *= np.clip(knot[:, 0] / level, 0.1, 10.0)[:, None]
            knots[g], ratios[g] = knot[:, 0], table / knot
        return cls(torch.from_numpy(knots).float(), torch.from_numpy(ratios).float())

    def centred(self, variances: Tensor) -> Marginals:
        """Return the distributions whose mean is the expected one for scores of other variances.

        Where most values are 0 the mean of scores that vary little is nearly 0; ratios are at most
        doubled, or single draws of rare genes would be enormous.

        Args:
            variances: ``[G]`` of the normal scores.
        """
        weights = torch.stack([_weights_of(v) for v in variances.cpu().tolist()])
        mean = torch.einsum("gkl,gl->gk", self.ratios, weights.to(self.ratios))
        return Marginals(self.knots, self.ratios / mean.clamp(min=_LEAST_MEAN)[..., None])

    def expression(self, mean: Tensor, scores: Tensor) -> Tensor:
        """Return the expression of normal scores.

        Args:
            mean: ``[N, G]`` expected expression, log1p units.
            scores: ``[..., N, G]`` z.

        Returns:
            ``[..., N, G]``, none negative.
        """
        mean = mean.clamp(min=_LEAST)
        table, low, share = self._place(mean)
        place = ((scores + _LAST) * ((_N_LEVELS - 1) / (2 * _LAST))).clamp(0, _N_LEVELS - 1)
        level = place.floor().clamp(max=_N_LEVELS - 2)
        after, at = place - level, low * _N_LEVELS + level.long()
        ratio: Tensor | float = 0.0
        for knot, of_knot in ((0, 1 - share), (_N_LEVELS, share)):
            start = at + knot
            ratio = ratio + of_knot * torch.lerp(table[start], table[start + 1], after)
        return mean * ratio

    def scores(self, mean: Tensor, expression: Tensor, uniform: Tensor) -> Tensor:
        """Return the normal scores of measured expression, the inverse of :meth:`expression`.

        Where many scores stand for one value, such as 0, one of them is drawn, so that scores of
        data that follow the distribution are standard normal (randomised probability integral
        transform; Dunn and Smyth 1996).

        Args:
            mean: ``[N, G]`` expected expression.
            expression: ``[N, G]`` measured.
            uniform: ``[N, G]`` inside (0, 1).

        Returns:
            ``[N, G]``, within the range of the table.
        """
        parts = zip(mean.split(_ROWS), expression.split(_ROWS), uniform.split(_ROWS), strict=True)
        return torch.cat([self._scores(*part) for part in parts])

    def _scores(self, mean: Tensor, expression: Tensor, uniform: Tensor) -> Tensor:
        single, start, end = self._ranks(mean, expression)
        drawn = torch.special.ndtri((start + uniform * (end - start)).clamp(1e-6, 1 - 1e-6))
        return torch.where(end > start, drawn, single).clamp(-_LAST, _LAST)

    def _ranks(self, mean: Tensor, expression: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the score of each value, and where the range of its scores starts and ends.

        The ends are probabilities, equal for a value of one score.
        """
        mean = mean.clamp(min=_LEAST)
        table, low, share = self._place(mean)
        at = low[..., None] * _N_LEVELS + torch.arange(_N_LEVELS, device=mean.device)
        ratios = torch.lerp(table[at], table[at + _N_LEVELS], share[..., None])
        wanted = (expression / mean)[..., None]
        first = (ratios < wanted - 1e-6).sum(-1)  # levels below the value
        last = (ratios <= wanted + 1e-6).sum(-1) - 1  # the highest that is not above it
        levels = _levels().to(mean)
        below = (first - 1).clamp(0, _N_LEVELS - 2)
        left, right = (ratios.gather(-1, i[..., None])[..., 0] for i in (below, below + 1))
        within = ((wanted[..., 0] - left) / (right - left).clamp(min=1e-9)).clamp(0, 1)
        single = torch.lerp(levels[below], levels[below + 1], within)
        # a run of equal ratios begins between two levels and goes on to its last
        start = torch.where(first == 0, torch.zeros_like(mean), torch.special.ndtr(single))
        ends = last.clamp(min=0)
        end = torch.special.ndtr(levels[ends])
        end = torch.where(ends == _N_LEVELS - 1, torch.ones_like(end), end)
        return single, start, torch.where(last > first, end, start)

    def _place(self, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the flat table, the row of the knot before each mean, and the way to the next."""
        knots, ratios = self.knots.to(mean.device), self.ratios.to(mean.device)
        columns = mean.t().contiguous()
        after = torch.searchsorted(knots, columns).clamp(1, _N_KNOTS - 1)
        left, right = knots.gather(1, after - 1), knots.gather(1, after)
        share = ((columns - left) / (right - left).clamp(min=1e-9)).clamp(0, 1)
        row = torch.arange(len(knots), device=mean.device)[:, None] * _N_KNOTS + after - 1
        return ratios.flatten(), row.t(), share.t()


def _levels() -> Tensor:
    return torch.linspace(-_LAST, _LAST, _N_LEVELS)


def _weights() -> np.ndarray:
    """Return the weights ``[L]`` of a piecewise linear function's mean over normal scores."""
    weights: np.ndarray = _weights_of(1.0).numpy()
    return weights


def _weights_of(variance: float) -> Tensor:
    """Return these weights ``[L]`` for scores of another variance."""
    fine = torch.linspace(-6, 6, 12001, dtype=torch.float64)
    place = (fine * variance**0.5 + _LAST) * ((_N_LEVELS - 1) / (2 * _LAST))
    place = place.clamp(0, _N_LEVELS - 1)
    level = place.floor().clamp(max=_N_LEVELS - 2)
    density = torch.exp(-0.5 * fine.square())
    weights = torch.zeros(_N_LEVELS, dtype=torch.float64)
    weights.index_add_(0, level.long(), density * (1 - place + level))
    weights.index_add_(0, level.long() + 1, density * (place - level))
    return weights / weights.sum()
