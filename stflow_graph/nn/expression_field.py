"""How expression differs from what is expected, in all spots and genes of a slide at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from stflow_graph.flow.field import STEPS, Field, SlideNoise
from stflow_graph.flow.marginals import Marginals

RANK = 16
# distances of slides' mean embeddings, in deviations of single spots: sections of one tumour of
# her2st are .1 to .25 apart, patients more than .4
_NEAR = 0.12
_UNKNOWN = 0.3
_GOLDEN = 0.6180339887498949


class ExpressionField(nn.Module):
    """Draws the expression of all spots and genes of a slide together, around what is expected.

    A draw is a Gaussian field on the slide's graph (``flow.field``), whose values become
    expression through each gene's distribution (``flow.marginals``): a Gaussian copula. Nothing
    here is trained by gradient; all is measured on slides that the prediction had not seen. There
    is a field for every such slide, and one for a patient like none of them; draws take them in
    proportion to how like the slide's embeddings are.

    Args:
        n_genes: G.
        in_channels: F, embedding channels.
        n_fields: number of fields, one of them for the unknown patient.
    """

    loadings: Tensor
    variances: Tensor
    own: Tensor
    places: Tensor
    knots: Tensor
    ratios: Tensor

    def __init__(self, n_genes: int, in_channels: int, n_fields: int) -> None:
        super().__init__()
        rank = min(RANK, n_genes)
        marginals = Marginals.empty(n_genes)
        self.register_buffer("loadings", torch.eye(n_genes, rank))
        self.register_buffer("variances", torch.zeros(n_fields, rank, len(STEPS) + 2))
        self.register_buffer("own", torch.zeros(n_fields, n_genes, 2))
        self.register_buffer("places", torch.zeros(n_fields - 1, in_channels))
        self.register_buffer("knots", marginals.knots)
        self.register_buffer("ratios", marginals.ratios)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor]) -> ExpressionField:
        """Return the field whose state dict is given."""
        n_fields, n_genes, _ = weights["own"].shape
        field = cls(n_genes, weights["places"].size(1), n_fields)
        field.load_state_dict(weights)
        return field.eval()

    @property
    def marginals(self) -> Marginals:
        """The genes' distributions."""
        return Marginals(self.knots, self.ratios)

    def component(self, number: int) -> Field:
        """Return one of the fields; the last is the unknown patient's."""
        return Field(self.loadings, self.variances[number], self.own[number])

    def likeness(self, place: Tensor) -> Tensor:
        """Return the weights of the fields for a slide, which sum to 1.

        Args:
            place: ``[F]`` the slide's mean embedding in deviations of single spots.
        """
        squares = (self.places - place).square().mean(1)
        squares = torch.cat([squares, squares.new_tensor([_UNKNOWN**2])])
        return torch.softmax(-squares / (2 * _NEAR**2), dim=0)

    def draw(self, noise: SlideNoise, place: Tensor, n_samples: int) -> FieldDraws:
        """Return draws for a slide.

        Args:
            noise: of the slide.
            place: see :meth:`likeness`.
            n_samples: S.
        """
        ends = self.likeness(place).cumsum(0)
        steps = (torch.arange(n_samples, device=ends.device) * _GOLDEN + 0.5) % 1
        numbers = torch.searchsorted(ends, steps).clamp(max=len(ends) - 1)
        return FieldDraws([self.component(int(i)) for i in numbers], self.marginals, noise)


class FieldDraws:
    """Draws for a slide: what the spots share is kept, what is a gene's own is made when needed.

    Args:
        fields: a field for each draw.
        marginals: the genes' distributions.
        noise: of the slide.
    """

    def __init__(self, fields: Sequence[Field], marginals: Marginals, noise: SlideNoise) -> None:
        self.fields, self.marginals, self.noise = fields, marginals, noise
        self.factors = [field.factors(noise, sample) for sample, field in enumerate(fields)]

    def expression(self, mean: Tensor, rows: slice) -> Iterator[Tensor]:
        """Yield each draw's expression ``[n, G]`` of some spots, log1p units.

        Args:
            mean: ``[n, G]`` their expected expression, log1p units.
            rows: which spots they are.
        """
        for sample, (field, factors) in enumerate(zip(self.fields, self.factors, strict=True)):
            scores = field.scores(factors[rows], self.noise, sample, rows)
            yield self.marginals.expression(mean, scores)
