"""Slides in memory whose expression is linear in their embeddings, for the training core."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from stflow_graph.config import Config, load_config
from stflow_graph.data.normalise import Normalisation
from stflow_graph.data.slide import Slide
from stflow_graph.inference.inputs import SlideInputs, slide_data, slide_inputs
from stflow_graph.models.build import build_context, build_denoiser
from stflow_graph.models.checkpoint import Checkpoint
from stflow_graph.nn.expression_field import ExpressionField
from stflow_graph.nn.pretrained import Pretrained, join_weights
from stflow_graph.stats.calibration import Calibration
from stflow_graph.training.fold import FittedFold, FoldTraining

GENES = ["G0", "G1", "G2", "G3"]
CHANNELS, N_GENES = 6, len(GENES)
WEIGHTS = np.random.default_rng(0).normal(size=(CHANNELS, N_GENES)) / 2
LEVEL = np.array([8.0, 9.0, 10.0, 11.0])  # so high that expression is never cut at 0
CPU = torch.device("cpu")
# a network that is small and fast, and a loop that takes a few steps
SETTINGS: dict[str, Any] = {
    "data.source_dataroot": "unused",
    "data.embed_dataroot": "unused",
    "data.encoder": "toy",
    "graph.n_neighbors": 4,
    "denoiser.hidden_channels": 8,
    "denoiser.n_heads": 2,
    "denoiser.n_layers": 1,
    "train.batch_size": 1,
    "train.regions_per_slide": 1,
    "train.epochs": 2,
    "train.members": 2,
    "train.flow_steps": 4,
    "train.device": "cpu",
}
# arguments of the encoder alone
GRAPH = {
    "denoiser.input_dropout": 0.2,
    "denoiser.context_hops": (1,),
    "denoiser.ridge_rank": 4,
    "denoiser.global_attention": "none",
}
KINDS: dict[str, dict[str, Any]] = {
    "field": GRAPH,
    "two-stage": {**GRAPH, "flow.kind": "spot", "flow.n_sample_steps": 2},
    "regression": {**GRAPH, "flow.kind": "none"},
    "graph": {**GRAPH, "flow.kind": "graph", "flow.n_sample_steps": 2},
    "transformer": {
        "flow.n_sample_steps": 2,
        "denoiser.name": "transformer",
        "denoiser.edge_channels": 8,
    },
}


def configured(kind: str = "two-stage", **changes: Any) -> Config:
    """Return the configuration of a small model; ``train__lr=1`` sets ``train.lr``."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return load_config(None, {**SETTINGS, **KINDS[kind], **named})


def linear_slide(
    name: str = "A", n: int = 40, *, noise: float | np.ndarray = 0.5, seed: int | None = None
) -> Slide:
    """Return a slide of n spots with ``y = LEVEL + x @ WEIGHTS + noise``.

    Args:
        name: the slide's name, which also decides its random numbers if there is no seed.
        n: number of spots, on a jittered square array.
        noise: standard deviation, or ``[G, G]`` factor of the noise's covariance.
        seed: of the slide.
    """
    rng = np.random.default_rng(sum(map(ord, name)) if seed is None else seed)
    side = int(np.ceil(np.sqrt(n)))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)[:n]
    x = rng.normal(size=(n, CHANNELS)).astype(np.float32)
    factor = noise if isinstance(noise, np.ndarray) else noise * np.eye(N_GENES)
    y = LEVEL + x @ WEIGHTS + rng.normal(size=(n, N_GENES)) @ factor.T
    coords = 100.0 * grid + rng.uniform(-9, 9, (n, 2))
    barcodes = [f"{name}-{i}" for i in range(n)]
    return Slide(name, x, coords, barcodes, y.astype(np.float32), encoder="toy")


def scaling_of(slides: Sequence[Slide], config: Config) -> Normalisation:
    data = config.data
    xs, ys = [slide.x for slide in slides], [slide.truth for slide in slides]
    return Normalisation.fit(xs, ys, data.standardize, data.center_targets)


def prepared(slide: Slide, config: Config, scaling: Normalisation) -> SlideInputs:
    """Return a slide with its graph and context as one network input, on the CPU."""
    data = build_context(config)(slide_data(slide, config, scaling))
    return slide_inputs(slide, data, CPU, above=len(slide))


def new_network(config: Config, seed: int = 0) -> Pretrained:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_denoiser(config, CHANNELS, N_GENES)


def fit_fold(*arguments: Any, **options: Any) -> FittedFold:
    """Train all members of a fold, one after the other."""
    return FoldTraining(*arguments, **options).finish()


def same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def lively(network: Any, seed: int = 0) -> Any:
    """Give a network weights all of which take part, and set it to eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for parameter in network.parameters():
            # strong maps: the noise of other spots acts through attention alone
            std = 0.8 if parameter.dim() > 1 else 0.3
            parameter.data.add_(torch.randn(parameter.shape), alpha=std)
    for name, buffer in network.named_buffers():
        if name.endswith("mixing_weight"):
            buffer.fill_(0.25)
    return network.eval()


def checkpoint_of(
    kind: str = "two-stage",
    n_members: int = 2,
    calibration: Calibration | None = None,
    **changes: Any,
) -> Checkpoint:
    """Return a checkpoint of members that were never trained but differ."""
    config = configured(kind, **changes)
    members = [lively(new_network(config), seed) for seed in range(n_members)]
    return Checkpoint(
        config,
        GENES,
        CHANNELS,
        scaling_of([linear_slide("A"), linear_slide("B")], config),
        join_weights(members),
        {"fold": 1, "dataset": "D", "train_slides": ["A", "B"], "protocol": "p"},
        n_members,
        calibration,
        field_of(0.0, 1.0) if config.flow.kind == "field" else None,
    )


def field_of(*places: float) -> ExpressionField:
    """Return a lively field of slides with such mean embeddings, and of an unknown patient."""
    field = ExpressionField(N_GENES, CHANNELS, len(places) + 1)
    generator = torch.Generator().manual_seed(0)
    levels = torch.linspace(-0.5, 0.5, field.ratios.size(2))
    field.ratios.copy_((1 + levels).expand_as(field.ratios))
    field.knots.copy_(torch.linspace(5, 15, field.knots.size(1)).expand_as(field.knots))
    for buffer in (field.smooth_variances, field.noise_variances, field.noise_own):
        buffer.copy_(torch.rand(buffer.shape, generator=generator))
    field.places.copy_(torch.tensor(places)[:, None].expand_as(field.places))
    return field


@contextlib.contextmanager
def optimiser_steps() -> Iterator[list[dict[str, float]]]:
    """Collect the gradient's norm and the settings of every step that optimisers take."""
    steps: list[dict[str, float]] = []

    def record(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        (group,) = optimizer.param_groups
        grads = [p.grad.flatten() for p in group["params"] if p.grad is not None]
        norm = torch.cat(grads).norm().item()
        steps.append({"norm": norm, "lr": group["lr"], "weight_decay": group["weight_decay"]})

    handle = register_optimizer_step_pre_hook(record)
    try:
        yield steps
    finally:
        handle.remove()
