r"""Gaussian noise of a slide that neighbouring spots and genes share.

:math:`B_p` averages white noise over p steps along the slide's graph and scales it to unit
variance. With three ranges, correlation over distance can fall quickly, slowly or in between.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stflow_graph.flow.noise import spot_keys, spot_uniform

STEPS = (2, 8, 32)
_STRETCHES = tuple(itertools.pairwise((0, *STEPS)))  # a walk of n steps is one of fewer, and more
_STAY = 1 / 7  # a step's weight of the spot itself, as of one with six neighbours
# columns of random signs that measure variances: 128, fewer of large slides
_N_PROBES = (16, 128)
_PROBE_NUMBERS = 2**20
_AVERAGED = 2**25  # numbers that are averaged at a time; three or four such arrays are in memory
_DRAWN = 2**18  # numbers of spots that are drawn at a time


# z [N, C] -> the mean over each spot's neighbours, one step along a graph
Average = Callable[[Tensor], Tensor]


class Smoothing:
    r"""The maps :math:`B_p`: averages over p steps along a graph, of unit variance.

    How much variance averaging takes away depends on the place (less at a border); it is measured
    with random signs of the spots (Hutchinson 1989).

    Args:
        average: one step along the graph.
        keys: ``[N]`` of the spots, see ``flow.noise``.
    """

    def __init__(self, average: Average, keys: Tensor) -> None:
        self.average = average
        n_probes = min(max(_PROBE_NUMBERS // max(len(keys), 1), _N_PROBES[0]), _N_PROBES[1])
        squares = [torch.zeros(len(keys), 1, device=keys.device) for _ in STEPS]
        for columns in averaged_columns(n_probes, len(keys)):
            width = columns.stop - columns.start
            signs = spot_uniform(keys, width, seed=0, first=columns.start).sub(0.5).sign()
            for (before, n), total in zip(_STRETCHES, squares, strict=True):
                signs = _walk(average, signs, n - before)
                total += signs.square().sum(1, keepdim=True)
        variances = [total / n_probes for total in squares]
        # variances of neighbours are about the same, the errors of their estimates less so
        self.scales = [
            _walk(average, variance, n // 4).rsqrt()
            for n, variance in zip(STEPS, variances, strict=True)
        ]

    def __call__(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Return white noise ``[N, C]``, one for each of ``STEPS``, averaged."""
        # those that go further are joined by the others on the way: fewer steps, of more columns
        widths, carried = [part.size(1) for part in parts], parts[-1][:, :0]
        for part, (after, n) in zip(reversed(parts), reversed(_STRETCHES), strict=True):
            carried = _walk(self.average, torch.cat([part, carried], dim=1), n - after)
        pairs = zip(carried.split(widths, dim=1), self.scales, strict=True)
        return [part * scale for part, scale in pairs]


def averaged_columns(n_columns: int, n_spots: int) -> list[slice]:
    """Return the columns that are averaged at a time, of an array with a row for every spot."""
    n_parts = max(1, -(-n_columns // max(1, _AVERAGED // max(n_spots, 1))))
    ends = [n_columns * part // n_parts for part in range(n_parts + 1)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def _walk(step: Average, z: Tensor, n_steps: int) -> Tensor:
    for _ in range(n_steps):
        z = torch.lerp(step(z), z, _STAY)
    return z


def squared_ranges(average: Average, pos: Tensor) -> Tensor:
    """Return r ``[3]`` for which ``exp(-d² / r)`` is about the covariance over d of averages.

    A walk of p steps ends normally distributed around its start, by the central limit theorem, and
    a covariance is that of two walks.

    Args:
        average: one step along the graph.
        pos: ``[N, 2]``; r has its squared units.
    """
    pos = pos.double() - pos.double().mean(0)
    moved = average(pos.square()) - 2 * pos * average(pos) + pos.square()
    step = (1 - _STAY) * moved.mean()  # variance of a step along each axis
    # neighbours that are all at one place: distances do not count, or are beyond any range
    step = step.clamp(min=max(1e-12 * float(pos.square().max()), 1e-12))
    return 4 * step * torch.tensor(STEPS, dtype=torch.float64, device=pos.device)


class SlideNoise:
    """Normal noise of a slide: of its spots, and of the slide itself.

    Args:
        keys: ``[N]`` of the spots, see ``flow.noise``.
        slide: the slide's name.
        average: one step along the graph.
        seed: of the noise.
    """

    def __init__(self, keys: Tensor, slide: str, average: Average, seed: int) -> None:
        self.keys, self.average, self.seed = keys, average, seed
        self._slide_key = spot_keys(slide, [""]).to(keys.device)

    @functools.cached_property
    def smoothing(self) -> Smoothing:
        """Averages along the slide's graph."""
        return Smoothing(self.average, self.keys)

    def spots(
        self, width: int, sample: int, *, first: int = 0, rows: Tensor | slice = slice(None)
    ) -> Tensor:
        """Return ``[n, width]`` independent numbers of spots, of their columns from one on."""
        keys = self.keys[rows]
        drawn = torch.empty(len(keys), width, device=keys.device)
        n_rows = max(1, _DRAWN // max(width, 1))
        for part, out in zip(keys.split(n_rows), drawn.split(n_rows), strict=True):
            uniform = spot_uniform(part, width, self.seed, sample, first=first)
            torch.special.ndtri(uniform, out=out)
        return drawn

    def slide(self, width: int, sample: int, *, first: int = 0) -> Tensor:
        """Return ``[width]`` numbers of the slide, of its columns from one on."""
        uniform = spot_uniform(self._slide_key, width, self.seed, sample, first=first)
        return torch.special.ndtri(uniform)[0]

    def smooth(self, variances: Tensor, sample: int, *, first: int = 0) -> Tensor:
        """Return ``[N, C]`` sums of averages over 2, 8 and 32 steps.

        Args:
            variances: ``[C, 3]`` of these averages.
            sample: number of the draw.
            first: column of the spots' numbers to begin with; 3 C are taken.
        """
        n_fields, n_ranges = variances.shape
        parts = []
        for columns in averaged_columns(n_fields, n_ranges * len(self.keys)):
            starts = range(first + columns.start, first + n_ranges * n_fields, n_fields)
            width = columns.stop - columns.start
            white = [self.spots(width, sample, first=start) for start in starts]
            drawn = torch.zeros_like(white[0])
            for variance, part in zip(
                variances[columns].unbind(1), self.smoothing(white), strict=True
            ):
                drawn = drawn + variance.sqrt() * part
            parts.append(drawn)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@dataclasses.dataclass(frozen=True)
class SmoothField:
    r"""The distribution of a field f of G genes that changes slowly over a slide.

    .. math::
        f = u Q^T + l', \qquad u_r = \sum_p σ_{rp} B_p w_{rp} + σ_{rl}\, l_r

    Attributes:
        loadings: Q ``[G, R]``, orthonormal columns: directions in which genes vary together.
        variances: σ² ``[R, 4]``: of averages over 2, 8 and 32 steps, of the slide's level.
        own: ``[G]`` variance of the level l' that a gene has for itself.
    """

    loadings: Tensor
    variances: Tensor
    own: Tensor

    def factors(self, noise: SlideNoise, sample: int) -> Tensor:
        """Return a draw of u, ``[N, R]``."""
        smooth, level = self.variances[:, :-1], self.variances[:, -1]
        return noise.smooth(smooth, sample) + level.sqrt() * noise.slide(len(level), sample)

    def values(self, factors: Tensor, noise: SlideNoise, sample: int) -> Tensor:
        """Return f ``[n, G]`` of the spots whose factors ``[n, R]`` are given."""
        n_genes, rank = self.loadings.shape
        level = noise.slide(n_genes, sample, first=rank)
        return factors @ self.loadings.t() + self.own.sqrt() * level


@dataclasses.dataclass(frozen=True)
class SpotNoise:
    r"""The distribution of noise z of G genes that every spot has for itself.

    :math:`z = v Q^T + ε`, v and ε independent normal.

    Attributes:
        loadings: Q ``[G, R]``, orthonormal columns.
        variances: ``[R]`` of v.
        own: ``[G]`` of ε.
    """

    loadings: Tensor
    variances: Tensor
    own: Tensor

    def scores(self, noise: SlideNoise, sample: int, rows: Tensor | slice) -> Tensor:
        """Return a draw of z ``[n, G]`` for some spots."""
        n_genes, rank = self.loadings.shape
        smooth = len(STEPS) * rank  # columns that smooth fields are made of
        drawn = noise.spots(rank + n_genes, sample, first=smooth, rows=rows)
        shared, own = drawn.split([rank, n_genes], dim=1)
        return (shared * self.variances.sqrt()) @ self.loadings.t() + own * self.own.sqrt()

    def variance(self) -> Tensor:
        """Return the variance of z of each gene, ``[G]``."""
        return self.loadings.square() @ self.variances + self.own
