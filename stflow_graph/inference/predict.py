"""One slide through a trained denoiser: noise, sampler, and back to log expression."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from stflow_graph.config import Config
from stflow_graph.data.normalise import Normalisation
from stflow_graph.data.slide import Slide
from stflow_graph.errors import BadConfig, BadInput, unquoted
from stflow_graph.flow.noise import spot_keys, spot_uniform
from stflow_graph.flow.sampler import Denoiser, n_slides
from stflow_graph.models.build import build_graph, build_prior, build_sampler
from stflow_graph.nn.spot_flow import bound, conditional


def pick_device(name: str) -> torch.device:
    """Return the device named; ``"auto"`` takes a GPU where there is one.

    Raises:
        BadConfig: an unknown device, or one that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadConfig(f"device {name!r}: {str(error).splitlines()[0]}") from None
    return device


def check_spots(n_spots: int, n_neighbors: int, file: str | Path) -> None:
    """Refuse a slide that has not more spots than each spot has neighbours.

    Raises:
        BadInput: names the slide's file and the number of its spots.
    """
    if n_spots <= n_neighbors:
        expected = f"more than the {n_neighbors} neighbours of each spot"
        fix = "lower --n-neighbors (graph.n_neighbors) or leave the slide out"
        raise BadInput(file, "spots", unquoted(f"{n_spots} spots"), expected, fix)


def slide_data(slide: Slide, config: Config, normalisation: Normalisation) -> Data:
    """Return a slide as the denoiser's input: scaled ``x`` and ``y``, ``pos``, and the graph."""
    return build_graph(config)(scaled_data(slide, normalisation))


def scaled_data(slide: Slide, normalisation: Normalisation) -> Data:
    """Return a slide's ``Data`` with ``x`` and ``y`` scaled, without a graph."""
    data = slide.to_data()
    data.x = torch.from_numpy(normalisation.embeddings(slide.x))
    if slide.y is not None:
        data.y = torch.from_numpy(normalisation.targets(slide.y))
    return data


@dataclasses.dataclass(frozen=True)
class Predicted:
    """A slide's predicted expression in log1p units.

    Attributes:
        mean: ``[N, G]`` float32 expected expression: what the denoiser says before any noise if
            it runs its graph once (``GraphDenoiser.condition``), else the mean of the samples.
        samples: ``[S, N, G]`` float32; None if only the mean was asked for.
    """

    mean: np.ndarray
    samples: np.ndarray | None


@torch.inference_mode()
def predict(
    model: nn.Module,
    data: Data,
    slide: Slide,
    config: Config,
    normalisation: Normalisation,
    *,
    n_samples: int = 1,
    seed: int = 0,
) -> Predicted:
    """Predict a slide's expression: its mean and, with ``n_samples`` > 1, samples.

    The noise of a spot depends on the seed, the slide's name, its barcode and the sample alone.

    Args:
        model: the denoiser, in eval mode.
        data: from :func:`slide_data`, on the model's device.
        slide: the slide, for its name and barcodes.
        config: prior, sampler and number of steps.
        normalisation: scaling of the output.
        n_samples: S; of 1 only the mean is kept.
        seed: of the noise.

    Raises:
        BadConfig: samples of a denoiser that was trained as a regression.
    """
    check_samples(config, n_samples)
    if config.train.objective == "regression":
        y_0 = data.x.new_zeros(data.x.size(0), len(normalisation.y_mean))
        mean = model(y_0, data.x.new_zeros(n_slides(data)), data)
        return Predicted(as_expression(mean, normalisation), None)
    flows: Sequence[Denoiser]
    mean, halves = None, conditional(model)
    if halves is None:
        flows = [bound(model, data)]
    else:
        condition = halves.condition(data)
        mean = as_expression(condition.mean, normalisation)
        if n_samples == 1:
            return Predicted(mean, None)
        flows = halves.flows(condition)

    keys = spot_keys(slide.name, slide.barcodes).to(data.x.device)
    samples = draw_samples(flows, keys, data, config, normalisation, n_samples, seed)
    if mean is None:
        mean = samples.mean(axis=0, dtype=np.float64).astype(np.float32)
    return Predicted(mean, samples if n_samples > 1 else None)


def check_samples(config: Config, n_samples: int) -> None:
    """Refuse samples of a denoiser that has none.

    Raises:
        BadConfig: several samples of a denoiser that was trained as a regression.
    """
    if config.train.objective == "regression" and n_samples > 1:
        raise BadConfig("n_samples: a denoiser trained as a regression has no samples")


def draw_samples(
    flows: Sequence[Denoiser],
    keys: Tensor,
    data: Data,
    config: Config,
    normalisation: Normalisation,
    n_samples: int,
    seed: int,
) -> np.ndarray:
    """Return samples ``[S, N, G]`` in log1p units, which take the flows in turn.

    Args:
        flows: what gives the estimate of y₁ from y_t, t and ``data``.
        keys: ``[N]`` the spots' keys for their noise, on the flows' device.
        data: what the flows read.
        config: prior, sampler and number of steps.
        normalisation: scaling of the output.
        n_samples: S.
        seed: of the noise.
    """
    prior, sampler = build_prior(config.flow), build_sampler(config.flow)
    n_genes = len(normalisation.y_mean)
    drawn = []
    for sample in range(n_samples):
        y_0 = prior(spot_uniform(keys, n_genes, seed=seed, sample=sample))
        y_1 = sampler(flows[sample % len(flows)], y_0, data, config.flow.n_sample_steps)
        drawn.append(as_expression(y_1, normalisation))
    return np.stack(drawn)


def as_expression(y: Tensor, normalisation: Normalisation) -> np.ndarray:
    """Return a denoiser's output in log1p units, float32 in memory."""
    return normalisation.expression(y.float().cpu().numpy())
