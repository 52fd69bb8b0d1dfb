"""What the expression measured at some of a slide's spots says of the others."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from stflow_graph.flow.field import STEPS, SlideNoise, SmoothField, SpotNoise, squared_ranges
from stflow_graph.flow.kriging import Kriging, Sites
from stflow_graph.flow.levels import GeneLevels, at_level
from stflow_graph.graph.arrays import Rows
from stflow_graph.nn.expression_field import ExpressionField
from stflow_graph.nn.measured_genes import MeasuredGenes

_ROWS = 8192
_SPOTS_OF_COHORT = 20
_SCALE_RANGE = (0.2, 5.0)
_FIELDS_OF_GENES = 16  # of which what changes slowly for each gene by itself is mixed, anew a draw


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """Expression measured at some spots of a slide.

    Attributes:
        rows: ``[n]`` the spots.
        genes: ``[M]`` the genes.
        values: ``[n, M]`` log1p units.
        expected: ``[n, G]`` what the prediction expects there, log1p units.
    """

    rows: Tensor
    genes: Tensor
    values: Tensor
    expected: Tensor


class InformedDraws:
    """Draws of a slide of which some spots are measured; as ``FieldDraws``.

    The expected expression is brought to the genes' levels on the slide, that of genes which are
    not measured to the level that the others share. The residuals about it are taken apart into the
    field's directions and what each gene has for itself, each a Gaussian process on the slide. What
    is most probable of them is added to the expected expression. A draw is one that knows
    nothing, corrected by what the measured spots say of its error there (Matheron's rule; Journel
    and Huijbregts 1978). At a measured spot the other genes' noise is that which goes with the
    noise of those measured.

    Args:
        field: its distribution.
        noise: of the slide.
        pos: ``[N, 2]`` the spots.
        measured: at some of them.
        n_samples: S; 0 leaves the expected expression.
        as_measured: whether measured values are given back as they are, in all samples.
    """

    def __init__(
        self,
        field: ExpressionField,
        noise: SlideNoise,
        pos: np.ndarray,
        measured: Measured,
        n_samples: int,
        *,
        as_measured: bool = True,
    ) -> None:
        self.field, self.noise, self.pos = field, noise, pos
        self._levels = _levels_of(field, measured)
        expected = at_level(measured.expected, self._levels)
        measured = dataclasses.replace(measured, expected=expected)
        self.measured, self.as_measured = measured, as_measured
        rows, genes = measured.rows, measured.genes
        self._panel = MeasuredGenes.of(field, genes)
        self._scale = _scale_of(field, measured)
        residuals = (measured.values - measured.expected[:, genes]) / self._scale[genes]
        self._told = residuals @ self._panel.of_residuals.t()
        explained = self._told @ self._panel.to_factors.t() @ field.smooth_loadings[genes].t()
        self._own = (residuals - explained) / field.own_scale[genes]

        at, keys = pos[rows.cpu().numpy()], noise.keys[rows].cpu().numpy()
        ranges = squared_ranges(noise.average, torch.from_numpy(pos).to(rows.device)).cpu().numpy()
        told, own = (x.double().cpu().numpy() for x in (self._told, self._own))
        sites = Sites.of(at, ranges, [*told.T[:, :, None], own], keys)
        cohort = self._panel.processes
        self.processes = cohort.adapted(sites)
        self._kriging = Kriging(at, keys, self.processes, ranges, rows.device)

        # how strong the noise of a spot is on this slide follows from what is expected there
        variances, of_genes = field.noise_variances[:-1], field.noise_own[:-1]
        self._spot_noise = SpotNoise(
            field.noise_loadings, variances.quantile(0.5, dim=0), of_genes.quantile(0.5, dim=0)
        )
        unseen = torch.ones_like(field.scale, dtype=torch.bool)
        unseen[genes] = False
        self._others = unseen.nonzero()[:, 0]
        of_noise, left = self._noise_told()
        self._noise_of_others = of_noise[self._others]
        self._noise_left = torch.where(unseen, left, 1)
        variance = self._spot_noise.variance()
        self._marginals = field.marginals.centred(variance)
        self._of_measured = field.marginals.centred(variance * self._noise_left.square())
        self._at_measured = torch.full((len(pos),), -1, device=rows.device)
        self._at_measured[rows] = torch.arange(len(rows), device=rows.device)
        self._draws = [_Draw(self, sample) for sample in range(n_samples)]
        self._expected_factors = self._inform()
        self._expected_level = self._expected_factors.mean(0)
        self._last: tuple[Rows, tuple[Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self._draws)

    def expected(self, mean: Tensor, rows: Rows) -> Tensor:
        """Return the expected expression ``[n, G]`` of some spots, log1p units.

        Args:
            mean: ``[n, G]`` what is expected with nothing measured.
            rows: which spots they are.
        """
        mean = at_level(mean, self._levels)
        own = self._own_error(*self._weights_of_genes(rows), self._own)
        about = self._corrected(mean, self._expected_factors[rows], own, self._expected_level)
        self._tell_noise(about, rows)
        if self.as_measured:
            self._give_back(about, rows)
        return about

    def expression(self, mean: Tensor, rows: Rows) -> Iterator[Tensor]:
        """Yield each draw's expression ``[n, G]`` of some spots, log1p units.

        Args:
            mean: ``[n, G]`` what is expected with nothing measured.
            rows: which spots they are.
        """
        weights, here = self._weights_of_genes(rows), self._measured_among(rows)[0]
        mean = at_level(mean, self._levels)
        for sample, draw in enumerate(self._draws):
            own = self._own_error(*weights, draw.own_errors) + draw.own(rows)
            about = self._corrected(mean, draw.factors[rows], own, draw.level_told)
            self._tell_noise(about, rows)
            scores = self._spot_noise.scores(self.noise, sample, rows)
            drawn = self._marginals.expression(about, scores)
            if len(here):
                left = scores[here] * self._noise_left
                drawn[here] = self._of_measured.expression(about[here], left)
            if self.as_measured:
                self._give_back(drawn, rows)
            yield drawn

    def _tell_noise(self, about: Tensor, rows: Rows) -> None:
        """Add to the expectation of measured spots what their measured genes say of the others."""
        here, at = self._measured_among(rows)
        if len(here) and len(self._others):
            genes, scale = self.measured.genes, self._scale
            noise = (self.measured.values[at] - about[here][:, genes]) / scale[genes]
            change = (noise @ self._noise_of_others.t()) * scale[self._others]
            place = here[:, None], self._others
            about[place] = (about[place] + change).clamp(min=0)

    def _give_back(self, values: Tensor, rows: Rows) -> None:
        here, at = self._measured_among(rows)
        values[here[:, None], self.measured.genes] = self.measured.values[at]

    def _corrected(self, mean: Tensor, factors: Tensor, own: Tensor, level: Tensor) -> Tensor:
        loadings = self.field.smooth_loadings
        error = factors @ loadings.t() + self.field.own_scale * own
        # levels of genes differ between patients in other ways than genes vary over a slide
        error[:, self._others] -= loadings[self._others] @ level
        return (mean + self._scale * error).clamp(min=0)

    def _measured_among(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return places of measured spots among some rows, and among the measured."""
        at = self._at_measured[rows]
        here = (at >= 0).nonzero()[:, 0]
        return here, at[here]

    def _weights_of_genes(self, rows: Rows) -> tuple[Tensor, Tensor]:
        # expectation and draws of a block need the same, the dearest part of both
        if self._last is None or self._last[0] is not rows:
            at = rows.cpu().numpy() if isinstance(rows, Tensor) else rows
            index, weights = self._kriging.weights(self.pos[at], slice(-1, None))
            self._last = rows, (index, weights[:, 0])
        return self._last[1]

    def _own_error(self, index: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        """Return what values ``[n, M]`` say of the genes' own processes elsewhere, ``[b, G]``."""
        error = values.new_zeros(len(index), len(self.field.scale))
        error[:, self.measured.genes] = torch.einsum("bm,bmg->bg", weights, values[index])
        return error

    def _inform(self) -> Tensor:
        """Correct the draws' factors everywhere; return the most probable ones ``[N, R]``."""
        to_factors = self._panel.to_factors.t()
        most_probable = self._told.new_empty(len(self.pos), to_factors.size(1))
        for start in range(0, len(self.pos), _ROWS):
            part = slice(start, start + _ROWS)
            index, weights = self._kriging.weights(self.pos[part], slice(0, -1))

            def elsewhere(
                values: Tensor, index: Tensor = index, weights: Tensor = weights
            ) -> Tensor:
                return torch.einsum("bkm,bmk->bk", weights, values[index]) @ to_factors

            most_probable[part] = elsewhere(self._told)
            for draw in self._draws:
                draw.factors[part] += elsewhere(draw.errors)
        return most_probable

    def _noise_told(self) -> tuple[Tensor, Tensor]:
        """Return what the noise of measured genes says of that of all genes ``[G, M]``.

        In units of the genes' deviations; and the fraction ``[G]`` of a gene's deviation that it
        leaves. Genes share noise along the field's directions.
        """
        if not len(self._others):
            nothing = self.field.scale.new_zeros(len(self.field.scale), len(self.measured.genes))
            return nothing, torch.ones_like(self.field.scale)
        q, genes = self.field.smooth_loadings.double(), self.measured.genes
        noise = torch.from_numpy(self.field.processes.noise).to(q)
        own = noise[-1] * self.field.own_scale.double().square()
        shared = (noise[:-1] - q.square().t() @ own).clamp(min=0)
        across = (q * shared) @ q[genes].t()
        among = across[genes] + own[genes].diag()
        told = torch.linalg.solve(among, across.t()).t()
        total = q.square() @ shared + own
        left = (1 - (told * across).sum(1) / total).clamp(min=0).sqrt()
        return told.to(self.field.scale), left.to(self.field.scale)


def _levels_of(field: ExpressionField, measured: Measured) -> Tensor:
    """Return the genes' levels on the slide, ``[G]``."""
    genes, scale = measured.genes.cpu().numpy(), field.scale.double().cpu().numpy()
    expected, values = (x.cpu().numpy() for x in (measured.expected, measured.values))
    found = GeneLevels.fit(expected[:, genes], values, scale[genes])
    return torch.from_numpy(found.of_all(genes, len(scale))).to(field.scale)


def _scale_of(field: ExpressionField, measured: Measured) -> Tensor:
    """Return ``[G]`` the genes' deviations of residuals on the slide.

    Variances on held-out slides count as so many spots. Other genes differ from those as the
    measured ones do in the mean.
    """
    genes = measured.genes
    residuals = measured.values - measured.expected[:, genes]
    n, expected = len(residuals), field.scale[genes].square()
    squares = (residuals - residuals.mean(0)).square().sum(0)
    ratios = ((squares / expected + _SPOTS_OF_COHORT) / (n - 1 + _SPOTS_OF_COHORT)).sqrt()
    ratios = ratios.clamp(*_SCALE_RANGE)  # of a gene that hardly varied on held-out slides
    scale = field.scale * ratios.log().mean().exp()
    scale[genes] = field.scale[genes] * ratios
    return scale


class _Draw:
    """The processes of a draw that knows nothing, and its errors at the measured spots.

    Args:
        of: the draws that it is one of.
        sample: its number.
    """

    def __init__(self, of: InformedDraws, sample: int) -> None:
        field, noise, rows, panel = of.field, of.noise, of.measured.rows, of._panel
        n_genes, rank = field.smooth_loadings.shape
        n_told = len(panel.of_factors)
        smooth, level, deviation = (
            torch.from_numpy(table).to(field.scale)
            for table in (of.processes.smooth, of.processes.level, np.sqrt(of.processes.noise))
        )
        # the slide differs from the cohort by as much in every process
        amplitude = smooth[-1] / torch.from_numpy(panel.processes.smooth[-1]).to(smooth)
        parts = [field.process_smooth[:-1] * amplitude, field.process_level[:-1, None]]
        prior = SmoothField(
            field.smooth_loadings, torch.cat(parts, dim=1), torch.zeros_like(field.scale)
        )
        self.factors = prior.factors(noise, sample)
        self._level_before = self.factors.mean(0)
        # columns of the spots' numbers that other noise is made of come first
        first = (len(STEPS) + 1) * rank + n_genes
        blur = deviation[:-1] * noise.spots(n_told, sample, first=first, rows=rows)
        self.errors = of._told - self.factors[rows] @ panel.of_factors.t() - blur
        first += rank
        blur = deviation[-1] * noise.spots(n_genes, sample, first=first, rows=rows)
        first += n_genes
        self._fields = noise.smooth(smooth[-1].expand(_FIELDS_OF_GENES, -1), sample, first=first)
        numbers = noise.slide(n_genes * (1 + _FIELDS_OF_GENES), sample, first=rank)
        self._level = level[-1].sqrt() * numbers[:n_genes]
        mixture = numbers[n_genes:].view(n_genes, _FIELDS_OF_GENES)
        self._mixture = mixture / mixture.norm(dim=1, keepdim=True)
        genes = of.measured.genes
        self.own_errors = of._own - (self.own(rows) + blur)[:, genes]

    @functools.cached_property
    def level_told(self) -> Tensor:
        """By how much the measured spots have changed the mean of the factors, ``[R]``."""
        return self.factors.mean(0) - self._level_before

    def own(self, rows: Tensor | slice) -> Tensor:
        """Return ``[n, G]`` what genes have for themselves, in units of its deviation."""
        return self._fields[rows] @ self._mixture.t() + self._level
