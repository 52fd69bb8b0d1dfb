"""The denoiser that passes messages in every step of the flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch_geometric.data import Data

from stflow_graph.flow.sampler import Model
from stflow_graph.graph.tiles import GraphView
from stflow_graph.graph.whole import WholeGraph, slide_of_spots
from stflow_graph.nn.block import (
    ConvFactory,
    GlobalFactory,
    make_blocks,
    mean_estimate,
)
from stflow_graph.nn.checks import check_graph, check_spots
from stflow_graph.nn.context_embedding import ContextEmbedding
from stflow_graph.nn.edge_cache import EdgeEncodingCache
from stflow_graph.nn.pretrained import Pretrained, plain_arguments
from stflow_graph.nn.time_embedding import TimeEmbedding

# budget for encoded edges that are kept for all network calls on a slide
MAX_CACHE_BYTES = 2**30


class GraphDenoiser(Pretrained):
    r"""Predicts expression y₁ from a noised y_t, patch embeddings and the spatial graph.

    States :math:`h = W_x x + W_t τ(t)` pass L blocks (``nn.GraphBlock``), the first of which sees
    y_t, each further one the estimate that the one before reads out. The output is the mean of the
    L estimates (the plan of STFlow: Huang et al., ICML 2025). Unlike in the published model,
    geometry comes from the graph's ``edge_attr`` (computed once per slide), residual branches are
    pre-normalised and a global term of linear cost is mixed in by a learned gate.

    With ``conv="stflow"`` and ``global_attention=None`` it is the published function, equal to
    ``TransformerDenoiser`` on the same graph.

    Args:
        in_channels: F, embedding channels.
        n_genes: G.
        hidden_channels: C.
        n_layers: L.
        n_heads: heads of local and global attention.
        dropout: in the blocks' MLPs and read-outs.
        input_dropout: of the embeddings and their context.
        context_hops: averages of the embeddings around a spot that the first layer sees beside
            the spot's own, see ``nn.ContextEmbedding``.
        conv: a name in ``nn.conv.CONVS``, or a function of (channels, n_genes) that returns a
            layer as described in ``nn.conv``.
        conv_options: further arguments of a layer that is given by name.
        global_attention: ``"latent"``, a function of the channels that returns a layer as described
            in ``nn.global_attention``, or None.

    Raises:
        ValueError: heads that do not divide the channels, or an unknown name.
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
        conv: str | ConvFactory = "additive",
        conv_options: Mapping[str, Any] | None = None,
        global_attention: str | GlobalFactory | None = "latent",
    ) -> None:
        super().__init__()
        self.arguments = plain_arguments(locals())
        self.in_channels, self.n_genes = in_channels, n_genes
        self.embed_x = ContextEmbedding(in_channels, hidden_channels, context_hops, input_dropout)
        self.embed_t = TimeEmbedding(hidden_channels)
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

    def forward(self, y_t: Tensor, t: Tensor, data: Data) -> Tensor:
        """Return the estimate of y₁, ``[N, G]``.

        Args:
            y_t: ``[N, G]`` noised expression of all spots of the batch.
            t: ``[n_slides]`` flow time of each slide, in [0, 1].
            data: ``x [N, F]`` and the tensors of ``graph.SpatialGraph`` (of ``graph.STFlowGraph``
                for ``STFlowConv``); ``batch [N]`` if there are several slides.

        Raises:
            ValueError: shapes, dtypes or edges that do not fit; the message prints them.
        """
        check_spots(y_t, t, data.x, data.batch, self.in_channels, self.n_genes)
        check_graph(data)
        graph = WholeGraph.of(data, t.size(0))
        return self._estimate(
            self._embed(data, graph), y_t, t, slide_of_spots(data), [graph] * len(self.blocks)
        )

    def bind(self, data: Data, graph: GraphView | None = None) -> Model:
        """Return :meth:`forward` on one slide or batch, all that depends on neither y_t nor t done.

        For sampling, in eval mode: the embedded spots and, within a memory budget, the encoded
        edges of each block are computed once.

        Args:
            data: as of :meth:`forward`.
            graph: the view of the graph to use; None makes one of the whole.

        Returns:
            ``model(y_t [N, G], t [1])``.

        Raises:
            ValueError: as :meth:`forward`.
        """
        if graph is None:
            check_graph(data)
            graph = WholeGraph.of(data)
        cache = EdgeEncodingCache(MAX_CACHE_BYTES)
        graphs = [cache.encode(conv, graph) for conv in self.blocks.convs]
        h, batch, n_slides = self._embed(data, graph), slide_of_spots(data), graph.n_slides

        def model(y_t: Tensor, t: Tensor) -> Tensor:
            t = t.expand(n_slides)
            check_spots(y_t, t, data.x, data.batch, self.in_channels, self.n_genes)
            return self._estimate(h, y_t, t, batch, graphs)

        return model

    def _embed(self, data: Data, graph: GraphView) -> Tensor:
        context = data.context if "context" in data else None
        return self.embed_x(data.x, lambda z: graph.average(z), context)

    def _estimate(
        self, h: Tensor, y_t: Tensor, t: Tensor, batch: Tensor, graphs: Sequence[GraphView]
    ) -> Tensor:
        """Return the estimate from the embedded spots ``h``; each block has its view."""
        h = h + self.embed_t(t)[batch]
        _, estimates = self.blocks(h, lambda rows: y_t[rows], graphs)
        return mean_estimate([estimate(slice(None)) for estimate in estimates])
