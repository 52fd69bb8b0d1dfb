"""The second part of training: the flow of single spots, given what the graph says of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data

from stflow_graph.config import Config
from stflow_graph.errors import Diverged
from stflow_graph.flow.noise import open_uniform
from stflow_graph.flow.path import linear_path
from stflow_graph.flow.prior import Prior
from stflow_graph.graph.tiles import in_tiles
from stflow_graph.models.build import build_prior
from stflow_graph.nn.denoiser import GraphDenoiser
from stflow_graph.nn.spot_flow import Condition

_CHECK_EVERY = 20
_DRAWS = 8


def fit_spot_flow(
    model: GraphDenoiser,
    learn: Sequence[Data],
    validate: Sequence[Data],
    config: Config,
    *,
    stream: int,
) -> float:
    """Train ``model.spot_flow`` by flow matching; the rest of the model stays as it is.

    The graph has been run before and its output is kept, so a step costs some thin matrix
    products and every spot can have a flow time of its own. The weights with the least flow loss
    on the validation slides are left in the model.

    Args:
        model: a denoiser made with ``graph_once``, on the device to use; its graph is trained.
        learn: scaled slides with their graphs.
        validate: slides held out of training, with their graphs.
        config: the run's configuration.
        stream: seed of the random numbers.

    Returns:
        The least flow loss on the validation slides.

    Raises:
        Diverged: a loss is not finite.
    """
    assert model.spot_flow is not None
    settings, device = config.train, next(model.parameters()).device
    prior, flow = build_prior(config.flow), model.spot_flow
    generator = torch.Generator().manual_seed(stream)
    spots, held_out = (
        _frozen(model, slides, device, settings.max_region_spots) for slides in (learn, validate)
    )
    held_out = _Spots(*(each.repeat(_DRAWS, 1) for each in held_out))
    n = len(spots.y)
    optimizer = torch.optim.AdamW(flow.parameters(), lr=settings.flow_lr, weight_decay=1e-2)
    best, best_loss = flow.state_dict(), math.inf
    check = _Noise.draw(len(held_out.y), spots.y.size(1), prior, generator, device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stream)  # weights and dropout draw from the global generator
        flow.reset_parameters()
        flow.set_range(spots.states)
        with torch.no_grad():  # the gains are about right from the first step on
            flow.log_variance.bias.copy_((spots.y - spots.mean).var(0).clamp(min=1e-4).log())
        for step in range(settings.flow_steps + 1):
            if step % _CHECK_EVERY == 0:
                flow.eval()
                with torch.no_grad():
                    loss = _flow_loss(flow, held_out, check).item()
                if not math.isfinite(loss):
                    raise Diverged(
                        f"flow, step {step}: loss {loss:g}. Fix: lower the learning rate "
                        "(train.flow_lr)"
                    )
                if loss < best_loss:
                    best_loss = loss
                    best = {key: value.detach().clone() for key, value in flow.state_dict().items()}
            if step == settings.flow_steps:
                break
            flow.train()
            rows = torch.randint(n, (min(n, settings.flow_spots),), generator=generator)
            rows = rows.to(device)
            noise = _Noise.draw(len(rows), spots.y.size(1), prior, generator, device)
            loss_now = _flow_loss(flow, _Spots(*(each[rows] for each in spots)), noise)
            optimizer.zero_grad(set_to_none=True)
            loss_now.backward()
            optimizer.step()
    flow.load_state_dict(best)
    return best_loss


def _frozen(
    model: GraphDenoiser, slides: Sequence[Data], device: torch.device, most: int
) -> _Spots:
    """Return what the graph says of all spots of the slides, beside their expression.

    Slides of more than ``most`` spots are worked on in tiles.
    """
    model.eval()
    found = []
    with torch.no_grad():
        for data in slides:
            here = copy.copy(data).to(device)
            condition = model.condition(in_tiles(here, above=most))
            found.append((condition.mean, condition.states, data.y.to(device)))
    return _Spots(*(torch.cat(columns) for columns in zip(*found, strict=True)))


class _Spots(NamedTuple):
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


def _flow_loss(flow: nn.Module, spots: _Spots, noise: _Noise) -> Tensor:
    each = torch.arange(len(spots.y), device=spots.y.device)  # every spot has its own time
    path = linear_path(noise.y_0, spots.y, noise.t, each)
    estimate = flow(path.y_t, noise.t, each, Condition(spots.mean, spots.states))
    return F.mse_loss(estimate, spots.y)
