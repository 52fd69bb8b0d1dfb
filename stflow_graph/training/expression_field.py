"""The field of the residuals of training slides whose prediction had not seen them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import torch
from scipy.optimize import nnls
from torch import Tensor

from stflow_graph.data.normalise import Normalisation
from stflow_graph.flow.field import STEPS, SlideNoise
from stflow_graph.flow.marginals import Marginals
from stflow_graph.flow.noise import open_uniform, spot_keys
from stflow_graph.inference.inputs import SlideInputs
from stflow_graph.nn.expression_field import ExpressionField
from stflow_graph.stats.calibration import HeldOut
from stflow_graph.stats.panels import genes_by_slides, mean_of_measured, measured_genes, take_genes
from stflow_graph.stats.scales import REGIONS, region_mean
from stflow_graph.training.gene_directions import gene_directions
from stflow_graph.training.processes import fit_processes

_N_PROBES = 256
_N_SPOTS = 4096  # drawn to measure the gain, about
_MAX_DRAWS = 8
_MIN_GAIN = 0.3
_MIN_VARIANCE = 0.05  # of the noise in a direction, of a gene's own noise
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
    """A held-out slide: what its truth has beyond its prediction, 0 in genes it does not measure.

    Attributes:
        measured: ``[G]`` the genes that it measures.
        residuals: ``[N, G]`` in units of the genes' deviations.
        scores: ``[N, G]`` normal scores of the truth less those of the spots around, divided by the
            gain; of unit variance where a spot has only its own noise.
        gain: ``[G]`` how much of a latent score shows in the score of the expression: where most
            values are 0, scores are mostly drawn at random, and latent scores are more alike; 1
            for genes that are not measured.
        regions: averages over the spots of regions of each size.
        units: ``[regions, 4]`` variances of region means of fields of unit variance.
    """

    measured: np.ndarray
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
    shows in its field. What is of a gene is measured on the slides that have it; a slide varies in
    the genes that it lacks as the others do in the mean.

    Args:
        parts: slides, or parts of slides, with their predictions by a model that had not seen them.
        normalisation: of the fold.
        stream: seed of the random numbers.
    """
    generator = torch.Generator().manual_seed(stream)
    variances = np.stack([(p.truth - p.mean).var(axis=0) for _, p in parts])
    scale = np.fmax(np.sqrt(mean_of_measured(variances)), 1e-6)
    slides = [_slide(parts, i, scale, generator) for i in range(len(parts))]
    marginals = _marginals([part for _, part in parts])
    embeddings = [inputs.slide.x.mean(axis=0, dtype=np.float64) for inputs, _ in parts]
    smooth, noise_left = _smooth_fields(slides)
    tables = {
        "scale": scale,
        **smooth,
        **_noises(slides, noise_left),
        **fit_processes(
            [inputs for inputs, _ in parts],
            [slide.residuals for slide in slides],
            np.stack([slide.measured for slide in slides]),
            smooth["smooth_loadings"],
        ),
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
    marginals = _marginals(others, part)
    measured = measured_genes(part.truth)
    known = np.where(measured, part.truth, part.mean)
    mean, truth = (torch.from_numpy(values).float() for values in (part.mean, known))
    gain = _gain(marginals, mean, generator)
    gain[torch.from_numpy(~measured)] = 1.0
    scores = marginals.scores(mean, truth, open_uniform(mean.shape, generator)) / gain
    coords, n_near = inputs.slide.coords, min(_NEAR, len(mean))
    z = scores.double().numpy()
    if n_near > 1:  # of n independent spots, 1 - 1/n of the variance is left
        z = (z - region_mean(coords, n_near) @ z) / np.sqrt(1 - 1 / n_near)
    regions = [region_mean(coords, size) for size in REGIONS if size < len(mean)]
    residuals = (known - part.mean) / scale
    units = _unit_variances(inputs, regions)
    return _Slide(measured, residuals, z * measured, gain.double().numpy(), regions, units)


def _smooth_fields(slides: Sequence[_Slide]) -> tuple[dict[str, np.ndarray], float]:
    """Return directions, variances and own levels of what changes slowly, of each field.

    And the fraction of the noise of single spots that is left to an unknown patient, of whose
    residuals, as large as those of the slides, more changes slowly.

    In each direction a slide's variances are those with which the variances of means over 1, 9, 25
    and 64 spots are nearest to those of its residuals, none negative; what is left at single spots
    is noise, and not of interest here.
    """
    measured = np.stack([slide.measured for slide in slides])
    directions, seen = gene_directions([slide.residuals for slide in slides], measured)
    spots = np.stack([(slide.residuals @ directions).var(axis=0) for slide in slides])
    smooth = np.stack([_shares(slide, directions) for slide in slides])
    levels = [slide.residuals.mean(axis=0) for slide in slides]
    shared = np.stack([level @ directions for level in levels])
    rest = np.stack(levels) - shared @ directions.T
    own = [np.square(row[genes]).mean() for row, genes in zip(rest, measured, strict=True)]
    spots, smooth, squares = (_filled(part, seen) for part in (spots, smooth, np.square(shared)))
    total, typical = np.median(spots, axis=0), np.median(smooth, axis=0)
    larger = total / np.maximum(typical.sum(axis=1), 1e-12)
    unknown = typical * np.minimum(larger, _SMOOTH_OF_UNKNOWN)[:, None]
    variances = [np.column_stack(pair) for pair in zip(smooth, squares, strict=True)]
    variances.append(np.column_stack([unknown, _LEVEL_OF_UNKNOWN * total]))
    of_gene = np.median([s.residuals.var(axis=0)[s.measured].mean() for s in slides])
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
    measured = np.stack([slide.measured for slide in slides])
    scores = [slide.scores for slide in slides]
    directions, seen = gene_directions(scores, measured, of_unit_variance=True)
    explained = np.square(directions)
    # what the gain has enlarged beside the latent scores
    excess = [1 / np.square(slide.gain) - 1 for slide in slides]
    shared = np.stack(
        [(z @ directions).var(axis=0) - e @ explained for z, e in zip(scores, excess, strict=True)]
    )
    variances = np.maximum(_filled(shared, seen), _MIN_VARIANCE)
    triples = zip(scores, excess, variances, strict=True)
    rest = np.stack([z.var(axis=0) - e - explained @ shares for z, e, shares in triples])
    own = np.maximum(np.where(measured, rest, np.nan), _MIN_VARIANCE)
    own = np.fmax(np.where(measured, own, mean_of_measured(own)), _MIN_VARIANCE)
    return {
        "noise_loadings": directions,
        "noise_variances": np.stack([*variances, noise_left * np.median(variances, axis=0)]),
        "noise_own": np.stack([*own, noise_left * np.median(own, axis=0)]),
    }


def _filled(values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return variances of slides with what the genes that a slide lacks add, as in the others.

    Args:
        values: ``[S, R, ...]`` variances in each direction, of the genes that a slide measures.
        seen: ``[S, R]`` fraction of the variance in a direction that these genes have, see
            :func:`gene_directions`.
    """
    seen = seen.reshape(*seen.shape, *[1] * (values.ndim - seen.ndim))
    typical = values.sum(axis=0) / np.maximum(seen.sum(axis=0), 1e-9)
    filled: np.ndarray = values + (1 - seen) * typical
    return filled


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


def _marginals(parts: Sequence[HeldOut], otherwise: HeldOut | None = None) -> Marginals:
    """Return each gene's distribution in the parts that measure it.

    Genes that none of them measures are those of the part ``otherwise``.
    """
    last = [] if otherwise is None else [otherwise]
    n_genes = [*parts, *last][0].mean.shape[1]
    tables, left = Marginals.empty(n_genes), np.ones(n_genes, bool)
    for source in filter(None, (parts, last)):
        for numbers, of_numbers in genes_by_slides([part.truth for part in source]):
            genes = of_numbers[left[of_numbers]]
            if not len(genes):
                continue
            chosen = [source[i] for i in numbers]
            fitted = Marginals.fit(
                np.concatenate([take_genes(part.mean, genes) for part in chosen]),
                np.concatenate([take_genes(part.truth, genes) for part in chosen]),
            )
            tables.knots[genes], tables.ratios[genes] = fitted.knots, fitted.ratios
            left[genes] = False
    return tables


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
