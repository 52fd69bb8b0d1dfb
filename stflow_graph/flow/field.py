r"""A Gaussian field on a slide's graph: noise that neighbouring spots and genes share.

.. math::
    z = u Q^T + (l' + d \circ ε)(1 - Q Q^T), \qquad
    u_r = σ_{r0} w_{r0} + \sum_p σ_{rp} B_p w_{rp} + σ_{rl}\, l_r

Q ``[G, R]`` are directions in which genes vary together, :math:`B_p` averages white noise w over p
steps along the graph and scales it to unit variance; l and l' are numbers of the whole slide. With
three ranges, a direction's correlation over distance can fall quickly, slowly or in between.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from stflow_graph.flow.noise import spot_keys, spot_uniform

STEPS = (2, 8, 32)
_STAY = 1 / 7  # a step's weight of the spot itself, as of one with six neighbours
# columns of random signs that measure variances: 128, fewer of large slides
_N_PROBES = (16, 128)
_PROBE_NUMBERS = 2**20


class Average(Protocol):
    """One step along a graph: z ``[N, C]`` to the mean over each spot's neighbours."""

    def __call__(self, z: Tensor) -> Tensor:
        """Return the means, ``[N, C]``."""

    def transposed(self, z: Tensor) -> Tensor:
        """Return the adjoint's values, ``[N, C]``."""


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
        signs = spot_uniform(keys, n_probes, seed=0).sub(0.5).sign()
        variances = [_walk(average, signs, n).square().mean(1, keepdim=True) for n in STEPS]
        # variances of neighbours are about the same, the errors of their estimates less so
        self.scales = [
            _walk(average, variance, n // 4).rsqrt()
            for n, variance in zip(STEPS, variances, strict=True)
        ]

    def __call__(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Return white noise ``[N, C]``, one for each of ``STEPS``, averaged."""
        triples = zip(parts, STEPS, self.scales, strict=True)
        return [_walk(self.average, part, n) * scale for part, n, scale in triples]

    def adjoint(self, z: Tensor) -> list[Tensor]:
        """Return the adjoints' values of ``z [N, C]``, one for each of ``STEPS``."""
        back = self.average.transposed
        pairs = zip(STEPS, self.scales, strict=True)
        return [_walk(back, z * scale, n) for n, scale in pairs]


def _walk(step: Callable[[Tensor], Tensor], z: Tensor, n_steps: int) -> Tensor:
    for _ in range(n_steps):
        z = torch.lerp(step(z), z, _STAY)
    return z


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

    def spots(self, width: int, sample: int) -> Tensor:
        """Return ``[N, width]`` independent numbers."""
        return torch.special.ndtri(spot_uniform(self.keys, width, self.seed, sample))

    def slide(self, width: int, sample: int) -> Tensor:
        """Return ``[width]`` numbers of the slide."""
        return torch.special.ndtri(spot_uniform(self._slide_key, width, self.seed, sample))[0]


@dataclasses.dataclass(frozen=True)
class Field:
    """The distribution of a field of G genes.

    Attributes:
        loadings: Q ``[G, R]``, orthonormal columns.
        variances: σ² ``[R, 5]``: of independent spots, of averages over 2, 8 and 32 steps, of the
            slide's level.
        own: ``[G, 2]`` variances of what a gene does not share: of its spots, of its level.
    """

    loadings: Tensor
    variances: Tensor
    own: Tensor

    def factors(self, noise: SlideNoise, sample: int) -> Tensor:
        """Return a draw of the shared part u, ``[N, R]``."""
        rank = self.loadings.size(1)
        deviations = self.variances.sqrt()
        white = noise.spots((1 + len(STEPS)) * rank, sample).split(rank, dim=1)
        drawn = deviations[:, 0] * white[0] + deviations[:, -1] * noise.slide(rank, sample)
        for deviation, part in zip(deviations.t()[1:-1], noise.smoothing(white[1:]), strict=True):
            drawn = drawn + deviation * part
        return drawn

    @property
    def total(self) -> Tensor:
        """``[R]`` variance of the shared part."""
        return self.variances.sum(1)

    def scores(
        self,
        factors: Tensor,
        noise: SlideNoise,
        sample: int,
        rows: slice,
        level: Tensor | None = None,
    ) -> Tensor:
        """Return the field z ``[n, G]`` of some spots.

        Args:
            factors: ``[n, R]`` u of these spots.
            noise: of the slide.
            sample: number of the draw.
            rows: which spots they are.
            level: ``[G]`` of the slide; None draws it.
        """
        n_genes, rank = self.loadings.shape
        shared = (1 + len(STEPS)) * rank  # columns that the factors are made of
        uniform = spot_uniform(noise.keys[rows], shared + n_genes, noise.seed, sample)
        spots, levels = self.own.sqrt().unbind(1)
        if level is None:
            level = levels * noise.slide(rank + n_genes, sample)[rank:]
        own = spots * torch.special.ndtri(uniform[:, shared:]) + level
        return own + (factors - own @ self.loadings) @ self.loadings.t()
