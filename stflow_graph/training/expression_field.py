"""The field of the residuals of training slides whose prediction had not seen them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import torch
from scipy.optimize import nnls
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from stflow_graph.data.normalise import Normalisation
from stflow_graph.flow.field import STEPS, Field, SlideNoise
from stflow_graph.flow.marginals import Marginals
from stflow_graph.flow.noise import open_uniform, spot_keys
from stflow_graph.inference.inputs import SlideInputs
from stflow_graph.nn.expression_field import RANK, ExpressionField
from stflow_graph.stats.calibration import HeldOut
from stflow_graph.stats.scales import REGIONS, region_mean

_N_PROBES = 256
_DENSE = 500  # genes of which the correlation matrix is made
_N_DRAWS = 16
_MIN_GAIN = 0.3
_MIN_SHARE = 0.05  # of a direction's variance that neighbours do not share, at least
_MIN_OWN = 0.02  # of a gene's variance that other genes do not share, at least
# The field of a patient like none of the training slides: its smooth variances over those of the
# slides' median, and the variance of levels over that of spots. In her2st B4, held out while the
# slides of another patient were learnt from, had five times their smooth variance and ten times
# their variance of levels, .1 to .2 of that of spots. One patient tells little of the next: with
# one degree of freedom an 80% interval is 2.4 times wider than with many.
_SMOOTH_OF_UNKNOWN = 5.0
_LEVEL_OF_UNKNOWN = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class _Slide:
    """A held-out slide: what its truth has beyond its prediction.

    Attributes:
        regions: averages over the spots of regions of each size.
        units: ``[regions, 4]`` variances of region means of fields of unit variance.
        gain: ``[G]`` how much of a latent score shows in the score of the expression: where most
            values are 0, scores are mostly drawn at random, and latent scores are more alike.
        scores: ``[N, G]`` normal scores of the truth, divided by the gain.
    """

    regions: list[sp.csr_matrix]
    units: np.ndarray
    gain: np.ndarray
    scores: np.ndarray


def fit_expression_field(
    parts: Sequence[tuple[SlideInputs, HeldOut]], normalisation: Normalisation, *, stream: int
) -> ExpressionField:
    """Return the field of the residuals.

    Each gene's distribution is taken from all parts; each part's field is fitted with the
    distributions of the other parts, where there are others, so that what is special about a slide
    shows in its field.

    Args:
        parts: slides, or parts of slides, with their predictions by a model that had not seen them.
        normalisation: of the fold.
        stream: seed of the random numbers.
    """
    generator = torch.Generator().manual_seed(stream)
    slides = [_slide(parts, i, generator) for i in range(len(parts))]
    directions = _directions(slides)
    fields = [_field(slide, directions) for slide in slides]
    fields.append(_unknown_patient(fields))
    marginals = _marginals([part for _, part in parts])
    embeddings = [inputs.slide.x.mean(axis=0, dtype=np.float64) for inputs, _ in parts]
    places = np.stack([normalisation.place(mean) for mean in embeddings])
    field = ExpressionField(len(directions), places.shape[1], len(fields))
    field.load_state_dict(
        {
            "loadings": fields[0].loadings,
            "variances": torch.stack([field.variances for field in fields]),
            "own": torch.stack([field.own for field in fields]),
            "places": torch.from_numpy(places).float(),
            "knots": marginals.knots,
            "ratios": marginals.ratios,
        }
    )
    return field.eval()


def _slide(
    parts: Sequence[tuple[SlideInputs, HeldOut]], number: int, generator: torch.Generator
) -> _Slide:
    inputs, part = parts[number]
    others = [other for i, (_, other) in enumerate(parts) if i != number]
    marginals = _marginals(others or [part])
    mean, truth = (torch.from_numpy(values).float() for values in (part.mean, part.truth))
    gain = _gain(marginals, mean, generator)
    scores = marginals.scores(mean, truth, open_uniform(mean.shape, generator)) / gain
    sizes = [size for size in REGIONS if size < len(mean)]
    regions = [region_mean(inputs.slide.coords, size) for size in sizes]
    units = _unit_variances(inputs, regions)
    return _Slide(regions, units, gain.double().numpy(), scores.double().numpy())


def _unit_variances(inputs: SlideInputs, regions: Sequence[sp.csr_matrix]) -> np.ndarray:
    """Return the variances ``[regions, 4]`` of region means of fields of unit variance.

    Of white noise and of its averages over 2, 8 and 32 steps, estimated from draws.
    """
    slide, graph = inputs.slide, inputs.graph
    assert graph is not None
    keys = spot_keys(slide.name, slide.barcodes).to(inputs.data.pos.device)
    noise = SlideNoise(keys, slide.name, graph.average, seed=0)
    white, *parts = noise.spots((1 + len(STEPS)) * _N_PROBES, sample=0).split(_N_PROBES, dim=1)
    fields = [field.double().cpu().numpy() for field in (white, *noise.smoothing(parts))]
    return np.stack([_by_scale(regions, field).mean(axis=1) for field in fields], axis=1)


def _by_scale(regions: Sequence[sp.csr_matrix], values: np.ndarray) -> np.ndarray:
    """Return the variances ``[regions, C]`` of the means over regions of values ``[N, C]``."""
    centred = values - values.mean(axis=0)
    return np.stack([np.square(mean @ centred).mean(axis=0) for mean in regions])


def _field(slide: _Slide, directions: np.ndarray) -> Field:
    """Return a slide's field.

    In each direction its shares are those with which the variances of means over 1, 9, 25 and 64
    spots are nearest to those of its scores, none negative.
    """
    # what the gain has enlarged beside the latent scores is independent noise
    excess = 1 / np.square(slide.gain) - 1
    variances = _by_scale(slide.regions, slide.scores @ directions)
    variances -= slide.units[:, :1] * (excess @ np.square(directions))
    variances = np.maximum(variances, _MIN_SHARE * slide.units[:, :1])
    columns = zip(variances.T, (1 / variances).T, strict=True)
    shares = np.stack([nnls(slide.units * w[:, None], v * w)[0] for v, w in columns])
    level = slide.scores.mean(axis=0)
    of_directions = level @ directions
    own_level = np.square(level - directions @ of_directions).mean()
    explained = np.square(directions)
    own = slide.scores.var(axis=0) - excess - explained @ shares.sum(axis=1)
    # of a gene's own noise, the part along the directions is taken out
    own = np.maximum(own, _MIN_OWN) / np.maximum(1 - explained.sum(axis=1), 0.05)
    tables = (
        directions,
        np.column_stack([shares, np.square(of_directions)]),
        np.column_stack([own, np.full_like(own, own_level)]),
    )
    return Field(*(torch.from_numpy(table).float() for table in tables))


def _unknown_patient(fields: Sequence[Field]) -> Field:
    """Return the field of a patient like none of the slides."""
    variances = torch.stack([field.variances for field in fields]).quantile(0.5, dim=0)
    own = torch.stack([field.own for field in fields]).quantile(0.5, dim=0)
    total = variances[:, :-1].sum(1)
    smooth = variances[:, 1:-1].sum(1)
    larger = ((1 - _MIN_SHARE) * total / smooth.clamp(min=1e-9)).clamp(max=_SMOOTH_OF_UNKNOWN)
    variances[:, 1:-1] *= larger[:, None]
    variances[:, 0] = total - larger * smooth
    variances[:, -1] = _LEVEL_OF_UNKNOWN * total
    own[:, 1] = _LEVEL_OF_UNKNOWN * own[:, 0]
    return dataclasses.replace(fields[0], variances=variances, own=own)


def _marginals(parts: Sequence[HeldOut]) -> Marginals:
    return Marginals.fit(
        np.concatenate([part.mean for part in parts]),
        np.concatenate([part.truth for part in parts]),
    )


def _gain(marginals: Marginals, mean: Tensor, generator: torch.Generator) -> Tensor:
    """Return ``[G]`` the covariance of latent scores and the scores of their expression."""
    total = torch.zeros(mean.size(1))
    for _ in range(_N_DRAWS):
        latent = torch.special.ndtri(open_uniform(mean.shape, generator))
        expression = marginals.expression(mean, latent)
        shown = marginals.scores(mean, expression, open_uniform(mean.shape, generator))
        total += (latent * shown).mean(0) / _N_DRAWS
    return total.clamp(_MIN_GAIN, 1)


def _directions(slides: Sequence[_Slide]) -> np.ndarray:
    """Return the leading eigenvectors ``[G, R]`` of the slides' mean correlation of genes."""
    n_genes = slides[0].scores.shape[1]
    centred = [slide.scores - slide.scores.mean(axis=0) for slide in slides]
    # latent scores have unit variance, whatever noise the gain has added
    missing = [1 - np.square(z).mean(axis=0) for z in centred]

    def correlated(v: np.ndarray) -> np.ndarray:
        pairs = zip(centred, missing, strict=True)
        parts = [z.T @ (z @ v) / len(z) + (rest * v.T).T for z, rest in pairs]
        return np.mean(parts, axis=0)

    if n_genes <= _DENSE:
        vectors = np.linalg.eigh(correlated(np.eye(n_genes)))[1]
    else:
        shape = (n_genes, n_genes)
        operator = LinearOperator(shape, matvec=correlated, matmat=correlated, dtype=np.float64)
        vectors = eigsh(operator, k=RANK, v0=np.ones(n_genes))[1]
    return np.ascontiguousarray(vectors[:, : -1 - RANK : -1])
