"""One slide through one network: noise, sampler, and back to log expression."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stflow_graph.config import FlowConfig
from stflow_graph.data.normalise import Normalisation
from stflow_graph.errors import BadConfig
from stflow_graph.flow.noise import spot_keys, spot_uniform
from stflow_graph.flow.sampler import Model
from stflow_graph.inference.inputs import SlideInputs
from stflow_graph.models.build import build_prior, build_sampler
from stflow_graph.nn.two_stage import TwoStageDenoiser


@dataclasses.dataclass(frozen=True)
class Predicted:
    """A slide's predicted expression in log1p units.

    Attributes:
        mean: ``[N, G]`` float32 expected expression: of a two-stage denoiser the encoder's, else
            the mean of the samples.
        samples: ``[S, N, G]`` float32; None if only the mean was asked for.
    """

    mean: np.ndarray
    samples: np.ndarray | None


@torch.no_grad()
def predict(
    network: Any,
    inputs: SlideInputs,
    flow: FlowConfig,
    normalisation: Normalisation,
    *,
    n_samples: int = 1,
    seed: int = 0,
) -> Predicted:
    """Predict a slide's expression: its mean and, with ``n_samples`` > 1, samples.

    The noise of a spot depends on the seed, the slide's name, its barcode and the sample alone.

    Args:
        network: a denoiser or ensemble in eval mode.
        inputs: the slide, on the network's device.
        flow: prior, sampler and number of steps.
        normalisation: scaling of the output.
        n_samples: S; of 1 only the mean is kept.
        seed: of the noise.

    Raises:
        BadConfig: samples of a regression.
    """
    check_samples(flow, n_samples)
    mean: np.ndarray | None = None
    if isinstance(network, TwoStageDenoiser):
        encoding = network.encoder(inputs.data, inputs.graph)
        mean = as_expression(encoding.mean, normalisation)
        if n_samples == 1:
            return Predicted(mean, None)
        model = network.flow_from(encoding)
    else:
        model = network.bind(inputs.data, inputs.graph)
    keys = spot_keys(inputs.slide.name, inputs.slide.barcodes).to(inputs.data.x.device)
    samples = draw_samples([model], keys, flow, normalisation, n_samples, seed)
    if mean is None:
        mean = samples.mean(axis=0, dtype=np.float64).astype(np.float32)
    return Predicted(mean, samples if n_samples > 1 else None)


def check_samples(flow: FlowConfig, n_samples: int) -> None:
    """Refuse samples of a denoiser that has none.

    Raises:
        BadConfig: several samples of a denoiser that was trained as a regression.
    """
    if flow.kind == "none" and n_samples > 1:
        raise BadConfig("n_samples: a denoiser trained as a regression has no samples")


def draw_samples(
    models: Sequence[Model],
    keys: Tensor,
    flow: FlowConfig,
    normalisation: Normalisation,
    n_samples: int,
    seed: int,
) -> np.ndarray:
    """Return samples ``[S, N, G]`` in log1p units, drawn from the models in turn.

    Args:
        models: denoisers bound to the spots, see ``flow.sampler``.
        keys: ``[N]`` the spots' keys for their noise, on the models' device.
        flow: prior, sampler and number of steps.
        normalisation: scaling of the output.
        n_samples: S.
        seed: of the noise.
    """
    prior, sampler = build_prior(flow), build_sampler(flow)
    n_genes = len(normalisation.y_mean)
    samples = []
    for sample in range(n_samples):
        y_0 = prior(spot_uniform(keys, n_genes, seed=seed, sample=sample))
        y_1 = sampler(models[sample % len(models)], y_0, flow.n_sample_steps)
        samples.append(as_expression(y_1, normalisation))
    return np.stack(samples)


def as_expression(y: Tensor, normalisation: Normalisation) -> np.ndarray:
    """Return a network's output in log1p units, float32 in memory."""
    return normalisation.expression(y.float().cpu().numpy())
