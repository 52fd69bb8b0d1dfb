"""The encoder: a message-passing network that runs once a slide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from stflow_graph.graph.diffusion import Average, diffuse_sum
from stflow_graph.graph.tiles import GraphView
from stflow_graph.graph.whole import WholeGraph
from stflow_graph.nn.block import (
    ConvFactory,
    Estimate,
    GlobalFactory,
    make_blocks,
    mean_estimate,
    zero_estimate,
)
from stflow_graph.nn.checks import check_graph, check_rows
from stflow_graph.nn.context_embedding import ContextEmbedding
from stflow_graph.nn.ridge_head import RidgeHead


class Encoding(NamedTuple):
    """What the encoder computes of the spots, once for all flow times and samples.

    Attributes:
        mean: ``[N, G]`` the expected expression, which is also the estimate of y₁ at t = 0.
        states: ``[N, C]`` the spots' states.
    """

    mean: Tensor
    states: Tensor


class GraphEncoder(nn.Module):
    r"""Predicts the expected expression of spots, and states that a flow starts from.

    States :math:`h = W [x \,\|\, \text{context}]` pass L blocks (``nn.GraphBlock``); each updates h
    from the neighbours, the whole slide and the spot itself, and reads out an estimate of
    expression that the next block's attention sees. The mean of the L estimates, averaged with a
    ridge regression (``nn.RidgeHead``), is the expected expression.

    A slide may be seen in tiles (``graph.TiledGraph``): layers then run over all tiles one after
    the other, with the same result. For slides of which not all embeddings or expression fit into
    memory, a product with :attr:`project_weight`, :meth:`gather`, :meth:`encode` and :meth:`decode`
    are :meth:`forward` in four steps, the first and the last of which take some spots at a time.

    Args:
        in_channels: F, embedding channels.
        n_genes: G.
        hidden_channels: C.
        n_layers: L.
        n_heads: heads of local and global attention.
        dropout: in the blocks' MLPs and read-outs.
        input_dropout: of the embeddings and their context; strong values suit small cohorts.
        context_hops: averages of the embeddings around a spot that the first layer sees beside
            the spot's own, see ``nn.ContextEmbedding``.
        ridge_rank: rank of the ridge regression; 0: none. Its weight is 0 before it is fitted.
        conv: a name in ``nn.conv.CONVS``, or a function of (channels, n_genes) that returns a
            layer as described in ``nn.conv``.
        conv_options: further arguments of a layer that is given by name.
        global_attention: ``"latent"``, a function of the channels that returns a layer as described
            in ``nn.global_attention``, or None.

    Raises:
        ValueError: heads that do not divide the channels, hops that do not ascend, or an unknown
            name.
    """

    def __init__(
        self,
        in_channels: int,
        n_genes: int,
        hidden_channels: int = 64,
        n_layers: int = 2,
        n_heads: int = 4,
        dropout: float = 0.3,
        input_dropout: float = 0.0,
        context_hops: Sequence[int] = (1, 4, 16),
        ridge_rank: int = 8,
        conv: str | ConvFactory = "additive",
        conv_options: Mapping[str, Any] | None = None,
        global_attention: str | GlobalFactory | None = "latent",
    ) -> None:
        super().__init__()
        self.in_channels, self.n_genes, self.channels = in_channels, n_genes, hidden_channels
        self.embed_x = ContextEmbedding(in_channels, hidden_channels, context_hops, input_dropout)
        self.ridge_head = (
            RidgeHead(in_channels, n_genes, ridge_rank, context_hops) if ridge_rank else None
        )
        self.blocks = make_blocks(
            hidden_channels,
            n_genes,
            n_layers,
            n_heads=n_heads,
            dropout=dropout,
            conv=conv,
            conv_options=conv_options or {},
            global_attention=global_attention,
        )

    def forward(self, data: Data, graph: GraphView | None = None) -> Encoding:
        """Return the expected expression and the states of all spots.

        Args:
            data: ``x [N, F]`` and the tensors of ``graph.SpatialGraph``; ``batch [N]`` if there
                are several slides; in training ``context`` from ``graph.NeighbourhoodContext``
                saves time.
            graph: the view of the graph to use; None makes one of the whole.

        Raises:
            ValueError: shapes, dtypes or edges that do not fit; the message prints them.
        """
        check_rows("data.x", data.x, (data.x.size(0), self.in_channels))
        if graph is None:
            check_graph(data)
            graph = WholeGraph.of(data)
        context = data.context if "context" in data else None
        h = self.embed_x(data.x, lambda z: graph.average(z), context)
        states, estimates = self._run(h, graph)
        mean = mean_estimate([estimate(slice(None)) for estimate in estimates])
        if self.ridge_head is not None and not self.training:
            mean = self.ridge_head.mix(mean, self.ridge_head(data.x, graph.average))
        return Encoding(mean, states[-1])

    def _run(self, h: Tensor, graph: GraphView) -> tuple[list[Tensor], list[Estimate]]:
        return self.blocks(h, zero_estimate(self.n_genes, h), [graph] * len(self.blocks))

    @property
    def project_weight(self) -> Tensor:
        """The linear map, ``[P, F]``, to all that the network reads of an embedding.

        P = (1 + number of hops) · (C + rank of the ridge head), distance by distance.
        """
        weights = [first.project_weight for first in self._first]
        parts = zip(*(w.chunk(1 + len(self.hops)) for w in weights), strict=True)
        return torch.cat([rows for part in parts for rows in part])

    @property
    def hops(self) -> tuple[int, ...]:
        """Numbers of averaging steps that the first layer sees beside the spot itself."""
        return self.embed_x.hops

    @property
    def _first(self) -> list[ContextEmbedding]:
        return [self.embed_x] if self.ridge_head is None else [self.embed_x, self.ridge_head.down]

    def gather(
        self, projected: Iterable[Tensor], average: Average, columns: slice = slice(None)
    ) -> Tensor:
        """Average what was projected of all spots of a slide along its graph.

        Args:
            projected: of each distance ``[N, C + rank]``, or some columns of them, the furthest
                first.
            average: the mean over the spots' neighbours.
            columns: which ones.

        Returns:
            These columns of ``[N, C + rank]``: the states before the first block, and the ridge
            head's.
        """
        bias = torch.cat([first.bias for first in self._first])[columns]
        return bias + diffuse_sum(projected, (0, *self.hops), average)

    def encode(self, gathered: Tensor, graph: GraphView) -> list[Tensor]:
        """Run the blocks on the result of :meth:`gather`.

        Returns:
            The states after each block, ``[N, C]``; with a ridge head also ``[N, rank]``.
        """
        h = gathered[:, : self.channels]
        states, _ = self._run(h, graph)
        if self.ridge_head is None:
            return states
        return [*states, gathered[:, self.channels :].clone()]  # a view would keep all of it

    def decode(self, code: Sequence[Tensor]) -> Encoding:
        """Return the encoding of the spots whose rows of :meth:`encode` are given."""
        states = code[: len(self.blocks)]
        mean = self.blocks.read_out(states)
        if self.ridge_head is not None:
            mean = self.ridge_head.mix(mean, self.ridge_head.up(code[-1]))
        return Encoding(mean, states[-1])
