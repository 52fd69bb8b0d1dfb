"""How expression differs from what is expected, in all spots and genes of a slide at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from stflow_graph.flow.field import STEPS, SlideNoise, SmoothField, SpotNoise
from stflow_graph.flow.kriging import Processes
from stflow_graph.flow.marginals import Marginals
from stflow_graph.graph.arrays import IN_MEMORY, Arrays, Rows

RANK = 16
# distances of slides' mean embeddings, in deviations of single spots: sections of one tumour of
# her2st are .1 to .25 apart, patients more than .4
_NEAR = 0.12
_UNKNOWN = 0.3
# of the draws, are of the unknown patient whatever a slide is like: sections of two mice whose
# embeddings are as near as those of one differ more in their levels
_ALWAYS_UNKNOWN = 0.25
_GOLDEN = 0.6180339887498949


class ExpressionField(nn.Module):
    r"""Draws the expression of all spots and genes of a slide together, around what is expected.

    .. math::
        y_{ig} = μ'_{ig} R_g(μ'_{ig}, z_{ig}), \qquad μ'_{ig} = \max(0, μ_{ig} + s_g f_{ig})

    What is expected, μ, is itself off by a field f that changes slowly over the slide
    (``flow.field``); about the corrected expectation each spot varies by its own noise z, by the
    gene's distribution R (``flow.marginals``). Nothing here is trained by gradient; all is measured
    on slides that the prediction had not seen. There is a field for every such slide, and one for a
    patient like none of them; draws take them in proportion to how like the slide's embeddings are.

    Args:
        n_genes: G.
        in_channels: F, embedding channels.
        n_fields: number of fields, one of them for the unknown patient.
    """

    scale: Tensor
    smooth_loadings: Tensor
    smooth_variances: Tensor
    smooth_own: Tensor
    noise_loadings: Tensor
    noise_variances: Tensor
    noise_own: Tensor
    places: Tensor
    process_smooth: Tensor
    process_level: Tensor
    process_noise: Tensor
    own_scale: Tensor
    knots: Tensor
    ratios: Tensor

    def __init__(self, n_genes: int, in_channels: int, n_fields: int) -> None:
        super().__init__()
        rank = min(RANK, n_genes)
        marginals = Marginals.empty(n_genes)
        self.register_buffer("scale", torch.ones(n_genes))
        self.register_buffer("smooth_loadings", torch.eye(n_genes, rank))
        self.register_buffer("smooth_variances", torch.zeros(n_fields, rank, len(STEPS) + 1))
        self.register_buffer("smooth_own", torch.zeros(n_fields, n_genes))
        self.register_buffer("noise_loadings", torch.eye(n_genes, rank))
        self.register_buffer("noise_variances", torch.zeros(n_fields, rank))
        self.register_buffer("noise_own", torch.zeros(n_fields, n_genes))
        self.register_buffer("places", torch.zeros(n_fields - 1, in_channels))
        self.register_buffer("process_smooth", torch.full((rank + 1, len(STEPS)), 0.1))
        self.register_buffer("process_level", torch.ones(rank + 1))
        self.register_buffer("process_noise", torch.ones(rank + 1))
        self.register_buffer("own_scale", torch.ones(n_genes))
        self.register_buffer("knots", marginals.knots)
        self.register_buffer("ratios", marginals.ratios)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor]) -> ExpressionField:
        """Return the field whose state dict is given."""
        n_fields, n_genes = weights["noise_own"].shape
        field = cls(n_genes, weights["places"].size(1), n_fields)
        field.load_state_dict(weights)
        return field.eval()

    @property
    def marginals(self) -> Marginals:
        """The genes' distributions."""
        return Marginals(self.knots, self.ratios)

    @property
    def processes(self) -> Processes:
        """What measured spots are weighed with: of the directions, and of genes by themselves."""
        tables = (self.process_smooth, self.process_level, self.process_noise)
        return Processes(*(table.double().cpu().numpy() for table in tables))

    def smooth(self, number: int) -> SmoothField:
        """Return f of one of the fields; the last is the unknown patient's."""
        variances, own = self.smooth_variances[number], self.smooth_own[number]
        return SmoothField(self.smooth_loadings, variances, own)

    def noise(self, number: int) -> SpotNoise:
        """Return z of one of the fields."""
        return SpotNoise(self.noise_loadings, self.noise_variances[number], self.noise_own[number])

    def likeness(self, place: Tensor) -> Tensor:
        """Return the weights of the fields for a slide, which sum to 1.

        Args:
            place: ``[F]`` the slide's mean embedding in deviations of single spots.
        """
        squares = (self.places - place).square().mean(1)
        squares = torch.cat([squares, squares.new_tensor([_UNKNOWN**2])])
        weights = (1 - _ALWAYS_UNKNOWN) * torch.softmax(-squares / (2 * _NEAR**2), dim=0)
        weights[-1] += _ALWAYS_UNKNOWN
        return weights

    def draw(
        self, noise: SlideNoise, place: Tensor, n_samples: int, arrays: Arrays = IN_MEMORY
    ) -> FieldDraws:
        """Return draws for a slide.

        Args:
            noise: of the slide.
            place: see :meth:`likeness`.
            n_samples: S.
            arrays: where the draws keep what they have of all spots.
        """
        ends = self.likeness(place).cumsum(0)
        steps = (torch.arange(n_samples, device=ends.device) * _GOLDEN + 0.5) % 1
        numbers = torch.searchsorted(ends, steps).clamp(max=len(ends) - 1)
        return FieldDraws(self, noise, numbers.tolist(), arrays)


class FieldDraws:
    """Draws for a slide: what the spots share is kept, what is a spot's own is made when needed.

    Args:
        field: its distribution.
        noise: of the slide.
        numbers: which of the fields each draw is of.
        arrays: where the factors of all spots are kept.
    """

    def __init__(
        self,
        field: ExpressionField,
        noise: SlideNoise,
        numbers: Sequence[int],
        arrays: Arrays = IN_MEMORY,
    ) -> None:
        self.field, self.noise, self.numbers = field, noise, list(numbers)
        self.factors = [
            arrays.keep(field.smooth(number).factors(noise, sample))
            for sample, number in enumerate(self.numbers)
        ]

    def __len__(self) -> int:
        return len(self.numbers)

    def expected(self, mean: Tensor, rows: Rows) -> Tensor:
        """Return the expected expression ``[n, G]`` of some spots: the mean that is given."""
        return mean

    def expression(self, mean: Tensor, rows: Rows) -> Iterator[Tensor]:
        """Yield each draw's expression ``[n, G]`` of some spots, log1p units.

        Args:
            mean: ``[n, G]`` their expected expression, log1p units.
            rows: which spots they are.
        """
        field, marginals = self.field, self.field.marginals
        for sample, number in enumerate(self.numbers):
            factors = self.factors[sample][rows]
            error = field.smooth(number).values(factors, self.noise, sample)
            expected = (mean + field.scale * error).clamp(min=0)
            scores = field.noise(number).scores(self.noise, sample, rows)
            yield marginals.expression(expected, scores)
