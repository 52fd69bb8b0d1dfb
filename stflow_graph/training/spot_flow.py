"""The second stage of training: the flow of single spots, given the trained encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stflow_graph.config import Config
from stflow_graph.errors import Diverged
from stflow_graph.flow.loss import squared_error, without_missing
from stflow_graph.flow.noise import open_uniform
from stflow_graph.flow.path import linear_path
from stflow_graph.flow.prior import Prior
from stflow_graph.inference.inputs import SlideInputs
from stflow_graph.models.build import build_prior
from stflow_graph.nn.encoder import GraphEncoder
from stflow_graph.nn.two_stage import TwoStageDenoiser

_CHECK_EVERY = 20
_DRAWS = 8


def fit_spot_flow(
    network: TwoStageDenoiser,
    learn: Sequence[SlideInputs],
    validate: Sequence[SlideInputs],
    config: Config,
    *,
    stream: int,
) -> float:
    """Train the flow of a two-stage denoiser by flow matching; its encoder stays as it is.

    The encoder is run once beforehand, so a step costs some thin matrix products and every spot
    has a flow time of its own. A gene that a spot's slide does not measure is not in the loss, and
    has no residual in the input. The weights with the lowest flow loss on the validation slides
    are left in the network.

    Args:
        network: with a trained encoder, on the device to use.
        learn: scaled slides to learn from.
        validate: slides held out of training.
        config: the run's configuration.
        stream: seed of the random numbers.

    Returns:
        The lowest flow loss on the validation slides.

    Raises:
        Diverged: a loss is not finite.
    """
    flow = network.flow
    assert flow is not None
    settings, device = config.train, next(network.parameters()).device
    prior, generator = build_prior(config.flow), torch.Generator().manual_seed(stream)
    spots, held_out = (_encoded(network.encoder, slides) for slides in (learn, validate))
    held_out = _Spots(*(values.repeat(_DRAWS, 1) for values in held_out))
    n, n_genes = spots.y.shape
    optimizer = torch.optim.AdamW(flow.parameters(), lr=settings.flow_lr, weight_decay=1e-2)
    best, best_loss = flow.state_dict(), math.inf
    check = _Noise.draw(len(held_out.y), n_genes, prior, generator, device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stream)  # weights and dropout draw from the global generator
        flow.reset_parameters()
        flow.set_range(spots.states)
        with torch.no_grad():  # the gains are about right from the first step on
            flow.log_variance.bias.copy_(_variance(spots.y - spots.mean).clamp(min=1e-4).log())
        for step in range(settings.flow_steps + 1):
            if step % _CHECK_EVERY == 0 or step == settings.flow_steps:
                loss = _validation_loss(flow, held_out, check, step)
                if loss < best_loss:
                    best_loss = loss
                    best = {key: value.detach().clone() for key, value in flow.state_dict().items()}
            if step == settings.flow_steps:
                break
            flow.train()
            rows = torch.randint(n, (min(n, settings.flow_spots),), generator=generator).to(device)
            noise = _Noise.draw(len(rows), n_genes, prior, generator, device)
            optimizer.zero_grad(set_to_none=True)
            _flow_loss(flow, _Spots(*(values[rows] for values in spots)), noise).backward()
            optimizer.step()
    flow.load_state_dict(best)
    return best_loss


class _Spots(NamedTuple):
    """Spots of several slides: encodings and expression, a row each."""

    mean: Tensor
    states: Tensor
    y: Tensor


class _Noise(NamedTuple):
    y_0: Tensor
    t: Tensor

    @classmethod
    def draw(
        cls, n: int, n_genes: int, prior: Prior, generator: torch.Generator, device: torch.device
    ) -> _Noise:
        """Return a sample of the prior ``[n, G]`` and a time for each spot ``[n]``."""
        uniform = open_uniform((n, n_genes), generator)
        t = torch.rand(n, generator=generator)
        return cls(prior(uniform).to(device), t.to(device))


@torch.no_grad()
def _encoded(encoder: GraphEncoder, slides: Sequence[SlideInputs]) -> _Spots:
    encoder.eval()
    parts = [(*encoder(inputs.data, inputs.graph), inputs.data.y) for inputs in slides]
    return _Spots(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


@torch.no_grad()
def _validation_loss(flow: nn.Module, spots: _Spots, noise: _Noise, step: int) -> float:
    flow.eval()
    loss = _flow_loss(flow, spots, noise).item()
    if not math.isfinite(loss):
        raise Diverged(
            f"flow, step {step}: loss {loss:g}. Fix: lower the learning rate (train.flow_lr)"
        )
    return loss


def _flow_loss(flow: nn.Module, spots: _Spots, noise: _Noise) -> Tensor:
    every = torch.arange(len(spots.y), device=spots.y.device)  # every spot has its own time
    path = linear_path(noise.y_0, spots.y, noise.t, every)
    y_t = without_missing(path.y_t, spots.y, noise.t[:, None] * spots.mean)
    return squared_error(flow(y_t, noise.t, spots.mean, spots.states), spots.y)


def _variance(residuals: Tensor) -> Tensor:
    """Return the variance of each gene ``[G]`` over the spots that measure it."""
    missing = residuals.isnan()
    if not missing.any():
        return residuals.var(0)
    squares = (residuals - residuals.nanmean(0)).square().nansum(0)
    return squares / ((~missing).sum(0) - 1).clamp(min=1)
