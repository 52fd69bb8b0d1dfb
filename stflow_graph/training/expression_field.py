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
from stflow_graph.flow.field import STEPS, SlideNoise, squared_ranges
from stflow_graph.flow.kriging import Processes, Sites
from stflow_graph.flow.marginals import Marginals
from stflow_graph.flow.noise import open_uniform, spot_keys
from stflow_graph.inference.inputs import SlideInputs
from stflow_graph.nn.expression_field import RANK, ExpressionField
from stflow_graph.stats.calibration import HeldOut
from stflow_graph.stats.scales import REGIONS, region_mean

_N_PROBES = 256
_DENSE = 500  # genes of which the correlation matrix is made
_N_SPOTS = 4096  # drawn to measure the gain, about
_MAX_DRAWS = 8
_MIN_GAIN = 0.3
_MIN_VARIANCE = 0.05  # of the noise in a direction, of a gene's own noise
_LEAST_OWN = 1e-4
_NEAR = 9  # spots whose mean is taken off to leave what each spot has for itself
# The field of a patient like none of the training slides: its smooth variances over those of the
# slides' median, and the variance of levels over that of single spots' residuals. In her2st B4,
# held out while the slides of another patient were learnt from, had five times their smooth
# variance and ten times their variance of levels, .1 to .2 of that of spots. One patient tells
# little of the next: with one degree of freedom an 80% interval is 2.4 times wider than with many.
_SMOOTH_OF_UNKNOWN = 5.0
_LEVEL_OF_UNKNOWN = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class _Slide:
    """A held-out slide: what its truth has beyond its prediction.

    Attributes:
        inputs: its graph.
        residuals: ``[N, G]`` in units of the genes' deviations.
        scores: ``[N, G]`` normal scores of the truth less those of the spots around, divided by the
            gain; of unit variance where a spot has only its own noise.
        gain: ``[G]`` how much of a latent score shows in the score of the expression: where most
            values are 0, scores are mostly drawn at random, and latent scores are more alike.
        regions: averages over the spots of regions of each size.
        units: ``[regions, 4]`` variances of region means of fields of unit variance.
    """

    inputs: SlideInputs
    residuals: np.ndarray
    scores: np.ndarray
    gain: np.ndarray
    regions: list[sp.csr_matrix]
    units: np.ndarray


def fit_expression_field(
    parts: Sequence[tuple[SlideInputs, HeldOut]], normalisation: Normalisation, *, stream: int
) -> ExpressionField:
    """Return the field of the residuals.

    Each gene's distribution is taken from all parts; the noise of a part is measured with the
    distributions of the other parts, where there are others, so that what is special about a slide
    shows in its field.

    Args:
        parts: slides, or parts of slides, with their predictions by a model that had not seen them.
        normalisation: of the fold.
        stream: seed of the random numbers.
    """
    generator = torch.Generator().manual_seed(stream)
    scale = np.sqrt(np.mean([(p.truth - p.mean).var(axis=0) for _, p in parts], axis=0))
    scale = np.maximum(scale, 1e-6)
    slides = [_slide(parts, i, scale, generator) for i in range(len(parts))]
    marginals = _marginals([part for _, part in parts])
    embeddings = [inputs.slide.x.mean(axis=0, dtype=np.float64) for inputs, _ in parts]
    smooth, noise_left = _smooth_fields(slides)
    tables = {
        "scale": scale,
        **smooth,
        **_noises(slides, noise_left),
        **_processes(slides, smooth["smooth_loadings"]),
        "gain": np.mean([slide.gain for slide in slides], axis=0),
        "places": np.stack([normalisation.place(mean) for mean in embeddings]),
    }
    n_genes, n_channels = len(scale), tables["places"].shape[1]
    field = ExpressionField(n_genes, n_channels, len(parts) + 1)
    weights = {name: torch.from_numpy(table).float() for name, table in tables.items()}
    field.load_state_dict({**weights, "knots": marginals.knots, "ratios": marginals.ratios})
    return field.eval()


def _slide(
    parts: Sequence[tuple[SlideInputs, HeldOut]],
    number: int,
    scale: np.ndarray,
    generator: torch.Generator,
) -> _Slide:
    inputs, part = parts[number]
    others = [other for i, (_, other) in enumerate(parts) if i != number]
    marginals = _marginals(others or [part])
    mean, truth = (torch.from_numpy(values).float() for values in (part.mean, part.truth))
    gain = _gain(marginals, mean, generator)
    scores = marginals.scores(mean, truth, open_uniform(mean.shape, generator)) / gain
    coords, n_near = inputs.slide.coords, min(_NEAR, len(mean))
    z = scores.double().numpy()
    if n_near > 1:  # of n independent spots, 1 - 1/n of the variance is left
        z = (z - region_mean(coords, n_near) @ z) / np.sqrt(1 - 1 / n_near)
    regions = [region_mean(coords, size) for size in REGIONS if size < len(mean)]
    residuals = (part.truth - part.mean) / scale
    units = _unit_variances(inputs, regions)
    return _Slide(inputs, residuals, z, gain.double().numpy(), regions, units)


def _smooth_fields(slides: Sequence[_Slide]) -> tuple[dict[str, np.ndarray], float]:
    """Return directions, variances and own levels of what changes slowly, of each field.

    And the fraction of the noise of single spots that is left to an unknown patient, of whose
    residuals, as large as those of the slides, more changes slowly.

    In each direction a slide's variances are those with which the variances of means over 1, 9, 25
    and 64 spots are nearest to those of its residuals, none negative; what is left at single spots
    is noise, and not of interest here.
    """
    directions = _directions([slide.residuals for slide in slides])
    spots = np.stack([(slide.residuals @ directions).var(axis=0) for slide in slides])
    smooth = np.stack([_shares(slide, directions) for slide in slides])
    levels = [slide.residuals.mean(axis=0) for slide in slides]
    shared = np.stack([level @ directions for level in levels])
    rest = np.stack(levels) - shared @ directions.T
    own = np.square(rest).mean(axis=1)
    total, typical = np.median(spots, axis=0), np.median(smooth, axis=0)
    larger = total / np.maximum(typical.sum(axis=1), 1e-12)
    unknown = typical * np.minimum(larger, _SMOOTH_OF_UNKNOWN)[:, None]
    variances = [np.column_stack(pair) for pair in zip(smooth, np.square(shared), strict=True)]
    variances.append(np.column_stack([unknown, _LEVEL_OF_UNKNOWN * total]))
    of_gene = np.median([slide.residuals.var(axis=0).mean() for slide in slides])
    own_of_unknown = _LEVEL_OF_UNKNOWN * max(0.0, of_gene - total.sum() / len(directions))
    noise = [of_gene * len(directions) - part.sum() for part in (unknown, typical)]
    tables = {
        "smooth_loadings": directions,
        "smooth_variances": np.stack(variances),
        "smooth_own": np.repeat([*own, own_of_unknown], len(directions)).reshape(len(own) + 1, -1),
    }
    return tables, float(np.clip(noise[0] / max(noise[1], 1e-12), _MIN_VARIANCE, 1))


def _shares(slide: _Slide, directions: np.ndarray) -> np.ndarray:
    """Return the variances ``[R, 3]`` of a slide's averages over 2, 8 and 32 steps."""
    variances = np.maximum(_by_scale(slide.regions, slide.residuals @ directions), 1e-9)
    columns = zip(variances.T, (1 / variances).T, strict=True)
    return np.stack([nnls(slide.units * w[:, None], v * w)[0][1:] for v, w in columns])


def _noises(slides: Sequence[_Slide], noise_left: float) -> dict[str, np.ndarray]:
    """Return directions, variances and own variances of what each spot has for itself.

    The unknown patient's are the fraction ``noise_left`` of the slides' medians.
    """
    directions = _directions([slide.scores for slide in slides], of_unit_variance=True)
    explained = np.square(directions)
    variances, own = [], []
    for slide in slides:
        # what the gain has enlarged beside the latent scores
        excess = 1 / np.square(slide.gain) - 1
        shared = (slide.scores @ directions).var(axis=0) - excess @ explained
        variances.append(np.maximum(shared, _MIN_VARIANCE))
        rest = slide.scores.var(axis=0) - excess - explained @ variances[-1]
        own.append(np.maximum(rest, _MIN_VARIANCE))
    return {
        "noise_loadings": directions,
        "noise_variances": np.stack([*variances, noise_left * np.median(variances, axis=0)]),
        "noise_own": np.stack([*own, noise_left * np.median(own, axis=0)]),
    }


def _processes(slides: Sequence[_Slide], directions: np.ndarray) -> dict[str, np.ndarray]:
    """Return the parameters of what measured spots are weighed with.

    In each direction the residuals are a process; what a gene has beside the directions is one too,
    with parameters that all genes share, in units of its deviation.
    """
    rank = directions.shape[1]
    factors = [slide.residuals @ directions for slide in slides]
    rests = [
        slide.residuals - factor @ directions.T
        for slide, factor in zip(slides, factors, strict=True)
    ]
    own = np.sqrt(np.maximum(np.mean([rest.var(axis=0) for rest in rests], axis=0), _LEAST_OWN))
    variances = np.ones(rank + 1)
    variances[:rank] = np.mean([factor.var(axis=0) for factor in factors], axis=0)
    variances = np.maximum(variances, _LEAST_OWN)
    sites = []
    for slide, factor, rest in zip(slides, factors, rests, strict=True):
        inputs = slide.inputs
        assert inputs.graph is not None
        pos = inputs.slide.coords
        on_device = torch.from_numpy(pos).to(inputs.data.pos.device)
        ranges = squared_ranges(inputs.graph.average, on_device).cpu().numpy()
        keys = spot_keys(inputs.slide.name, inputs.slide.barcodes).numpy()
        sites.append(Sites.of(pos, ranges, [*factor.T[:, :, None], rest / own], keys))
    processes = Processes.fit(sites, variances)
    return {
        "process_smooth": processes.smooth,
        "process_level": processes.level,
        "process_noise": processes.noise,
        "own_scale": own,
    }


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


def _marginals(parts: Sequence[HeldOut]) -> Marginals:
    return Marginals.fit(
        np.concatenate([part.mean for part in parts]),
        np.concatenate([part.truth for part in parts]),
    )


def _gain(marginals: Marginals, mean: Tensor, generator: torch.Generator) -> Tensor:
    """Return ``[G]`` the covariance of latent scores and the scores of their expression."""
    total = torch.zeros(mean.size(1))
    n_draws = min(max(_N_SPOTS // len(mean), 1), _MAX_DRAWS)
    for _ in range(n_draws):
        latent = torch.special.ndtri(open_uniform(mean.shape, generator))
        expression = marginals.expression(mean, latent)
        shown = marginals.scores(mean, expression, open_uniform(mean.shape, generator))
        total += (latent * shown).mean(0) / n_draws
    return total.clamp(_MIN_GAIN, 1)


def _directions(values: Sequence[np.ndarray], *, of_unit_variance: bool = False) -> np.ndarray:
    """Return the leading eigenvectors ``[G, R]`` of the slides' mean correlation of genes.

    Args:
        values: of each slide ``[N, G]``.
        of_unit_variance: take covariances, with variances of 1 whatever the values say.
    """
    n_genes = values[0].shape[1]
    centred = [z - z.mean(axis=0) for z in values]
    if not of_unit_variance:
        centred = [z / np.maximum(z.std(axis=0), 1e-9) for z in centred]
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
