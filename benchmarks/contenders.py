"""The denoisers whose cost is compared, on slides made for it; used by speed and memory.

The setting is one for all: 128 channels, 4 heads, 4 layers, k = 8, 50 genes, embeddings of 1024
channels, float32, and as many network calls a sample for everyone.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from stflow_graph.flow.sampler import euler
from stflow_graph.graph import NeighbourhoodContext, SpatialGraph, SpatialTiles, STFlowGraph
from stflow_graph.nn.denoiser import GraphDenoiser
from stflow_graph.nn.spot_flow import bound, conditional
from stflow_graph.nn.stflow.denoiser import TransformerDenoiser

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


@dataclasses.dataclass(frozen=True)
class Contender:
    """A denoiser and the graph that it is given before the first network call.

    Attributes:
        make: makes the model, of a size.
        graph: makes the graph; None: the model makes it in every call.
        tiles: whether whole slides are worked on tile by tile where nothing is learned.
        context: whether training reads averages of the embeddings that are made with the graph.
    """

    make: Callable[..., nn.Module]
    graph: BaseTransform | None
    tiles: bool = False
    context: tuple[int, ...] = ()

    def prepare(self, slide: Data, *, training: bool = False, whole: bool = False) -> Data:
        """Return the slide with what belongs to the graph; ``whole``: not in tiles."""
        data = copy.copy(slide)
        if self.graph is not None:
            data = self.graph(data)
        if self.tiles and not training and not whole:
            return SpatialTiles()(data)
        return NeighbourhoodContext(self.context)(data) if self.context and training else data


def _graph_denoiser(**options: object) -> Callable[..., nn.Module]:
    def make(**size: int) -> nn.Module:
        return GraphDenoiser(IN_CHANNELS, N_GENES, **size, **options)  # type: ignore[arg-type]

    return make


def _transformer(**size: int) -> nn.Module:
    return TransformerDenoiser(IN_CHANNELS, N_GENES, n_neighbors=K, **size)


_HOPS = (1, 4, 16)
CONTENDERS = {
    PUBLISHED: Contender(_transformer, None),
    REFERENCE: Contender(_transformer, STFlowGraph(K)),
    "graph, stflow mode": Contender(
        _graph_denoiser(attention="stflow", global_attention=None, edge_channels=128),
        STFlowGraph(K),
        tiles=True,
    ),
    "graph, in every step": Contender(_graph_denoiser(), SpatialGraph(K), tiles=True),
    "graph, default": Contender(
        _graph_denoiser(
            graph_once=True, context_hops=_HOPS, ridge_rank=8, input_dropout=0.5, dropout=0.3
        ),
        SpatialGraph(K),
        tiles=True,
        context=_HOPS,
    ),
}


@torch.inference_mode()
def call(model: nn.Module, data: Data, y_t: Tensor) -> Tensor:
    """Return the estimate of y₁ of one network call."""
    return model(y_t, torch.full((1,), 0.3, device=y_t.device), data)


@torch.inference_mode()
def sample(model: nn.Module, data: Data, y_0: Tensor, n_steps: int = STEPS) -> Tensor:
    """Return one sample of a slide whose graph is there."""
    return euler(bound(model, data), y_0, data, n_steps)


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, data: Data) -> None:
    """Do one step: forward, backward, optimiser."""
    halves, t = conditional(model), torch.full((1,), 0.3, device=data.x.device)
    if halves is not None:
        estimate = halves.condition(data).mean
    else:
        estimate = model(data.y, t, data)
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
