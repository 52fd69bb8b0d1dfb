"""A block of a graph network: local attention, global attention, MLP, read-out of expression."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stflow_graph.graph.arrays import Rows
from stflow_graph.graph.tiles import GraphView
from stflow_graph.graph.whole import Edges
from stflow_graph.nn.conv import CONVS, STFlowConv
from stflow_graph.nn.dropout import CheapDropout
from stflow_graph.nn.global_attention import LatentAttention
from stflow_graph.nn.stflow.gene_head import GeneHead
from stflow_graph.nn.stflow.swiglu import SwiGLU

# rows [n] of a slide -> their estimate of expression [n, G]
Estimate = Callable[[Rows], Tensor]
# (channels, n_genes) -> a layer, see ``nn.conv``
ConvFactory = Callable[[int, int], nn.Module]
# channels -> global attention, see ``nn.global_attention``
GlobalFactory = Callable[[int], nn.Module]


class GraphBlock(nn.Module):
    r"""One block: new states from a spot's neighbours, the whole slide and itself.

    .. math::
        h \leftarrow h + \mathrm{conv}(h, y), \qquad
        h \leftarrow h + γ \circ \mathrm{global}(h), \qquad
        h \leftarrow h + \mathrm{MLP}(h)

    and ``read_out(h)``, the new estimate y. The gate γ starts at 0: a network learns to look
    further only where that helps.

    Args:
        channels: C.
        conv: the local layer, see ``nn.conv``.
        global_attention: the global layer, or None.
        mlp: maps ``[N, C]`` to ``[N, C]``.
        read_out: maps ``[N, C]`` to ``[N, G]``.
    """

    def __init__(
        self,
        channels: int,
        conv: nn.Module,
        global_attention: nn.Module | None,
        mlp: nn.Module,
        read_out: nn.Module,
    ) -> None:
        super().__init__()
        self.conv = conv
        self.global_attention = global_attention
        self.gate = nn.Parameter(torch.zeros(channels)) if global_attention is not None else None
        self.mlp = mlp
        self.read_out = read_out

    def reset_parameters(self) -> None:
        """Close the gate; the layers reset themselves."""
        if self.gate is not None:
            nn.init.zeros_(self.gate)

    def forward(self, h: Tensor, y: Estimate, graph: GraphView) -> Tensor:
        """Return the new states ``[N, C]``.

        Args:
            h: ``[N, C]``.
            y: the current estimate of expression.
            graph: the slides' graph, as a whole or in tiles.
        """

        def local(rows: Rows, edges: Edges) -> Tensor:
            update: Tensor = self.conv(h[rows], y(rows), *edges)
            return update

        h = graph.run(local, h)
        if self.global_attention is not None and self.gate is not None:
            h = graph.attend(self.global_attention, h, self.gate)
        return graph.by_rows(self.mlp, h, h)


class BlockStack(nn.ModuleList):
    """L blocks, each of which sees the estimate that the one before reads out.

    Args:
        blocks: the blocks.
    """

    def __init__(self, blocks: Iterable[GraphBlock]) -> None:
        super().__init__(blocks)

    @property
    def _blocks(self) -> list[Any]:
        return list(self)

    @property
    def convs(self) -> list[nn.Module]:
        """The local layers."""
        return [block.conv for block in self._blocks]

    def forward(
        self, h: Tensor, y: Estimate, graphs: Sequence[GraphView]
    ) -> tuple[list[Tensor], list[Estimate]]:
        """Return the states after each block, and the estimates that are read out of them.

        Args:
            h: ``[N, C]`` states before the first block.
            y: the estimate of expression that the first block sees.
            graphs: the slides' graph as each block takes it.
        """
        states, estimates = [], []
        for block, graph in zip(self._blocks, graphs, strict=True):
            h = block(h, y, graph)
            y = graph.estimate(block.read_out, h)
            states.append(h)
            estimates.append(y)
        return states, estimates

    def read_out(self, states: Iterable[Tensor]) -> Tensor:
        """Return the mean of the blocks' read-outs ``[n, G]`` of their states, each ``[n, C]``."""
        pairs = zip(self._blocks, states, strict=True)
        return mean_estimate([block.read_out(h) for block, h in pairs])


def mean_estimate(estimates: list[Tensor]) -> Tensor:
    """Return the mean of estimates ``[n, G]``, the output of the published model."""
    total = torch.zeros_like(estimates[0])
    for estimate in estimates:
        total = total + estimate
    return total / len(estimates)


def zero_estimate(n_genes: int, h: Tensor) -> Estimate:
    """Return the estimate before the first block where nothing is known: zeros."""
    return lambda rows: h.new_zeros(h[rows].size(0), n_genes)


def make_blocks(
    channels: int,
    n_genes: int,
    n_layers: int,
    *,
    n_heads: int,
    dropout: float,
    conv: str | ConvFactory,
    conv_options: Mapping[str, Any],
    global_attention: str | GlobalFactory | None,
) -> BlockStack:
    """Return new blocks; around ``STFlowConv`` they are the published ones.

    Args:
        channels: C.
        n_genes: G.
        n_layers: L.
        n_heads: H of layers that are given by name.
        dropout: in MLP and read-out.
        conv: a name in ``nn.conv.CONVS``, or what makes the local layers.
        conv_options: further arguments of a layer that is given by name.
        global_attention: ``"latent"``, what makes the global layers, or None.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(conv, str):
        conv = _named_conv(conv, n_heads, dropout, conv_options)
    if isinstance(global_attention, str):
        if global_attention != "latent":
            raise ValueError(f"unknown global attention {global_attention!r}; 'latent' or None")
        global_attention = partial(LatentAttention, heads=n_heads)

    def block() -> GraphBlock:
        layer = conv(channels, n_genes)
        parts = _stflow_parts if isinstance(layer, STFlowConv) else _parts
        mlp, read_out = parts(channels, n_genes, dropout)
        whole = None if global_attention is None else global_attention(channels)
        return GraphBlock(channels, layer, whole, mlp, read_out)

    return BlockStack(block() for _ in range(n_layers))


def _named_conv(name: str, heads: int, dropout: float, options: Mapping[str, Any]) -> ConvFactory:
    if name not in CONVS:
        raise ValueError(f"unknown conv {name!r}; one of {', '.join(CONVS)}, or a factory")
    if name == "stflow":
        options = {"mlp_dropout": dropout, **options}
    return partial(CONVS[name], heads=heads, **options)


def _parts(channels: int, n_genes: int, dropout: float) -> tuple[nn.Module, nn.Module]:
    """Return a block's MLP and read-out, both pre-normalised."""
    mlp = nn.Sequential(
        nn.LayerNorm(channels),
        nn.Linear(channels, 2 * channels),
        nn.SiLU(),
        CheapDropout(dropout),
        nn.Linear(2 * channels, channels),
    )
    read_out = nn.Sequential(
        nn.LayerNorm(channels),
        nn.Linear(channels, channels),
        nn.GELU(),
        CheapDropout(dropout),
        nn.Linear(channels, n_genes),
    )
    return mlp, read_out


def _stflow_parts(channels: int, n_genes: int, dropout: float) -> tuple[nn.Module, nn.Module]:
    """Return the published block's MLP and read-out."""
    mlp = SwiGLU(channels, 4 * channels, channels, dropout)
    return mlp, GeneHead(channels, n_genes, dropout)
