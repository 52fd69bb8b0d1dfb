"""The denoisers whose cost is compared, on slides made for it; used by speed and memory.

The setting is one for all: 128 channels, 4 heads, 4 layers, k = 8, 50 genes, embeddings of 1024
channels, float32, and as many network calls a sample for every flow. The default has no steps: its
encoder runs once, and a sample is drawn from a random field on the slide's graph.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from stflow_graph.flow.field import SlideNoise
from stflow_graph.flow.sampler import euler
from stflow_graph.graph import NeighbourhoodContext, SpatialGraph, STFlowGraph, view_of
from stflow_graph.graph.tiles import GraphView
from stflow_graph.graph.whole import WholeGraph
from stflow_graph.nn.denoiser import GraphDenoiser
from stflow_graph.nn.encoder import GraphEncoder
from stflow_graph.nn.expression_field import ExpressionField
from stflow_graph.nn.stflow.denoiser import TransformerDenoiser
from stflow_graph.nn.two_stage import TwoStageDenoiser

IN_CHANNELS, N_GENES, K, STEPS = 1024, 50, 8, 5
SIZE = {"hidden_channels": 128, "n_heads": 4, "n_layers": 4}
TINY = {"hidden_channels": 16, "n_heads": 4, "n_layers": 1}
REFERENCE = "transformer, same graph"
PUBLISHED = "transformer, as published"


def synthetic_slide(n: int, seed: int = 0) -> Data:
    """Return a slide of n spots: a hexagonal array with jitter, in pixels, random embeddings."""
    generator = torch.Generator().manual_seed(seed)
    side = math.ceil(math.sqrt(n))
    i, j = (
        g.flatten()[:n].double() for g in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij")
    )
    pos = torch.stack([i + 0.5 * (j % 2), j * math.sqrt(3) / 2], 1)
    pos = 100 * (pos + 0.1 * torch.randn(n, 2, generator=generator).double())
    return Data(
        x=torch.randn(n, IN_CHANNELS, generator=generator),
        pos=pos,
        y=torch.randn(n, N_GENES, generator=generator),
    )


class FieldDenoiser(TwoStageDenoiser):
    """The default model: an encoder, and a random field whose tables are drawn, not measured.

    Args:
        encoder: the network that passes messages.
        flow: None.
    """

    def __init__(self, encoder: GraphEncoder, flow: None = None) -> None:
        super().__init__(encoder, flow)
        self.field = ExpressionField(encoder.n_genes, encoder.in_channels, n_fields=5)
        for name, table in self.field.named_buffers():
            if "variances" in name or "own" in name:
                table.uniform_(0.05, 0.2)
        spread = torch.linspace(0.5, 1.5, self.field.ratios.size(2))
        self.field.ratios.copy_(spread.expand_as(self.field.ratios))

    def draw(self, data: Data, view: GraphView | None = None) -> Tensor:
        """Return one sample of a slide, ``[N, G]``."""
        graph = WholeGraph.of(data) if view is None else view
        compiled = hasattr(self.encoder, "_orig_mod")  # traces the making of the view too
        mean = self.encoder(data, view if compiled else graph).mean.add(1)  # above 0 for the most
        keys = torch.arange(data.x.size(0), device=data.x.device)
        noise = SlideNoise(keys, "slide", graph.average, seed=0)
        draws = self.field.draw(noise, data.x.new_zeros(self.encoder.in_channels), 1)
        return next(draws.expression(mean, slice(None)))


@dataclasses.dataclass(frozen=True)
class Contender:
    """A denoiser and the graph that it is given before the first network call.

    Attributes:
        make: makes the model, of a size.
        graph: makes the graph; None: the model makes it in every call.
        tiles: whether sampling runs over the graph tile by tile.
        context: averages of the embeddings that are computed with the graph for training.
    """

    make: Callable[..., Any]
    graph: BaseTransform | None
    tiles: bool = False
    context: tuple[int, ...] = ()

    def prepare(self, slide: Data, *, training: bool = False) -> Data:
        """Return the slide with its graph and, for training, its context."""
        data = copy.copy(slide)
        if self.graph is not None:
            data = self.graph(data)
        return NeighbourhoodContext(self.context)(data) if self.context and training else data

    def view(self, data: Data, *, whole: bool = False) -> GraphView | None:
        """Return the view of the graph that sampling uses; None: the model's own choice."""
        return view_of(data) if self.tiles and not whole else None


def _graph_denoiser(**options: Any) -> Callable[..., nn.Module]:
    return partial(GraphDenoiser, IN_CHANNELS, N_GENES, **options)


def _two_stage(kind: type[TwoStageDenoiser], **options: Any) -> Callable[..., nn.Module]:
    options = {"in_channels": IN_CHANNELS, "n_genes": N_GENES, "input_dropout": 0.5, **options}
    return partial(kind.make, **options)


def _transformer(**size: int) -> nn.Module:
    return TransformerDenoiser(IN_CHANNELS, N_GENES, n_neighbors=K, **size)


_HOPS = (1, 4, 16)
_STFLOW = {"conv": "stflow", "conv_options": {"edge_channels": 128}, "global_attention": None}
CONTENDERS = {
    PUBLISHED: Contender(_transformer, None),
    REFERENCE: Contender(_transformer, STFlowGraph(K)),
    "graph, stflow mode": Contender(
        _graph_denoiser(context_hops=(), dropout=0.2, **_STFLOW), STFlowGraph(K), tiles=True
    ),
    "graph, in every step": Contender(
        _graph_denoiser(context_hops=(), dropout=0.2), SpatialGraph(K), tiles=True
    ),
    "graph, spot flow": Contender(
        _two_stage(TwoStageDenoiser), SpatialGraph(K), tiles=True, context=_HOPS
    ),
    "graph, default": Contender(
        _two_stage(FieldDenoiser, flow=False), SpatialGraph(K), tiles=True, context=_HOPS
    ),
}


@torch.inference_mode()
def call(model: Any, data: Data, y_t: Tensor, view: GraphView | None = None) -> Tensor:
    """Return the estimate of y₁ of one network call, all that it needs included."""
    t = torch.full((1,), 0.3, device=y_t.device)
    if view is None:
        return model(y_t, t, data)
    return model.bind(data, view)(y_t, t)


@torch.inference_mode()
def sample(
    model: Any, data: Data, y_0: Tensor, view: GraphView | None = None, n_steps: int = STEPS
) -> Tensor:
    """Return one sample of a slide that has its graph; a field has no steps."""
    if isinstance(model, FieldDenoiser):
        return model.draw(data, view)
    return euler(model.bind(data, view), y_0, n_steps)


def training_step(model: Any, optimizer: torch.optim.Optimizer, data: Data) -> None:
    """Do one step: forward, backward, optimiser."""
    if isinstance(model, TwoStageDenoiser):
        estimate = model.encoder(data).mean
    else:
        estimate = model(data.y, torch.full((1,), 0.3, device=data.x.device), data)
    loss = (estimate - data.y).square().mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def draw_costs(costs: dict[str, dict[str, dict[int, float]]], unit: str, file: Path) -> None:
    """Draw a panel a part: a line a denoiser of its cost against the spots of the slide."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(costs), figsize=(4.5 * len(costs), 3.6), layout="constrained"
    )
    colour = {name: f"C{i}" for i, name in enumerate(CONTENDERS)}  # one in every panel
    for axis, (part, of_denoiser) in zip(axes, costs.items(), strict=True):
        for name, points in of_denoiser.items():
            if points:
                values = list(points.values())
                axis.plot(
                    list(points), values, "o-", label=name, markersize=4, color=colour.get(name)
                )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("spots of the slide")
        axis.set_ylabel(f"{unit}, {part}")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8)
    figure.savefig(file, dpi=120)
    plt.close(figure)
