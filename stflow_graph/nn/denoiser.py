"""The graph denoiser: message passing on a slide's spatial graph predicts its expression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from stflow_graph.graph.neighbor_sum import is_sorted, sorted_edges
from stflow_graph.graph.stflow import published_edge_geometry
from stflow_graph.graph.tiles import Tiles
from stflow_graph.nn.block import (
    DenoiserBlock,
    Edges,
    Estimate,
    block_parts,
    published_block_parts,
)
from stflow_graph.nn.checks import check_edges, check_positions, check_spots
from stflow_graph.nn.context_embedding import ContextEmbedding
from stflow_graph.nn.conv import FrameAveragedConv
from stflow_graph.nn.global_attention import GLOBAL_ATTENTIONS
from stflow_graph.nn.kept_edges import EdgeKeeper
from stflow_graph.nn.pretrained import Pretrained, plain_arguments
from stflow_graph.nn.ridge_head import LinearPart
from stflow_graph.nn.spot_flow import Condition, Flow, SpotFlow
from stflow_graph.nn.time_embedding import TimeEmbedding

# encoded edges of a slide that are kept for all network calls on it
KEEP_BYTES = 2**30


class _Slide(NamedTuple):
    """All that the blocks see of a slide beside y_t and t.

    Attributes:
        h: ``[N, C]`` embedded spots.
        batch: ``[N]`` slide of each spot, if there are several.
        n_slides: number of slides.
        relations: the edges as each block reads them; of a slide in tiles none.
        tiles: the tiles as each block reads them, or None.
    """

    h: Tensor
    batch: Tensor
    n_slides: int
    relations: Sequence[Sequence[Edges]]
    tiles: Sequence[Tiles] | None


class GraphDenoiser(Pretrained):
    r"""Predicts expression y₁ from a noised y_t, patch embeddings and the spatial graph.

    Layers share the published model's plan (Huang et al., ICML 2025): states
    :math:`h = W_x x + W_t τ(t) + W_y y_t` pass L blocks; each updates h from the neighbours, the
    whole slide and itself, and reads out an estimate of y that the next block's attention sees.
    The output is the mean of the L estimates. Unlike in the published model, geometry comes from
    the graph's ``edge_attr`` (made once per slide), residual branches are pre-normalised, a
    global term of linear cost is mixed in by a learned gate, and :math:`W_y` is there if asked
    for (without it y is seen by the attention alone, as published).

    With ``graph_once`` the blocks see neither y_t nor t: they run once a slide, and their output
    is the expected expression, the condition of a flow that goes on spot by spot
    (``nn.SpotFlow``). Sampling then costs one pass over the graph, whatever the number of steps
    and samples. :meth:`condition` and :meth:`denoise` are the two halves.

    A slide may come in tiles (``graph.SpatialTiles``): blocks then go over all tiles one after the
    other, and what they hold beside the states of the spots is of one tile, in training too.
    Output and gradient are those of the whole slide, whatever the tiles, also with global
    attention. Layers given by ``conv`` must see no more than a spot's neighbours and the edges
    to them.

    With ``attention="stflow"`` blocks are the published ones, and with ``global_attention=None``
    the function is the published one, equal to ``TransformerDenoiser`` on the same graph.

    Args:
        in_channels: F, embedding channels.
        n_genes: G.
        hidden_channels: C.
        edge_channels: channels of the encoded edges.
        n_heads: heads of local and global attention.
        n_layers: L.
        attention: kind of local attention, see ``FrameAveragedConv``.
        global_attention: a name in ``nn.global_attention.GLOBAL_ATTENTIONS``, or None.
        n_latents: tokens of the ``latent`` global attention.
        dropout: dropout in the blocks.
        attn_dropout: dropout of local attention.
        input_dropout: dropout of embedding channels; strong values suit small cohorts.
        condition_on_y: whether :math:`W_y` is there: h then sees y_t itself.
        similarity_edges: whether each block has a second local attention, over the edges that
            ``graph.SimilarityEdges`` adds between spots of similar embeddings.
        context_hops: averages of the embeddings around a spot that the first layer sees beside
            the spot's own, see ``nn.ContextEmbedding``.
        graph_once: see above.
        ridge_rank: rank of a ridge regression that has a part in the expected expression, see
            ``nn.LinearPart``; 0: none. It takes no part before its weights are set.
        signed_attention: whether local attention may be negative, see ``FrameAveragedConv``.
        three_body: whether pairs of neighbours act together, see ``FrameAveragedConv``.
        edge_encoder: how edges are encoded, see ``FrameAveragedConv``.
        conv: makes a layer called as ``conv(h, y, edge_index, edge_attr, edge_weight) -> [N, C]``
            in place of ``FrameAveragedConv``; it is given ``(channels, n_genes)``.

    Raises:
        ValueError: an unknown kind of attention, heads that do not divide the channels, or
            ``graph_once`` with what needs y_t in the graph, ``ridge_rank`` without it.
    """

    def __init__(
        self,
        in_channels: int,
        n_genes: int,
        hidden_channels: int = 128,
        edge_channels: int = 32,
        n_heads: int = 4,
        n_layers: int = 4,
        attention: str = "additive",
        global_attention: str | None = "latent",
        n_latents: int = 16,
        dropout: float = 0.2,
        attn_dropout: float = 0.0,
        input_dropout: float = 0.0,
        condition_on_y: bool = False,
        similarity_edges: bool = False,
        context_hops: Sequence[int] = (),
        graph_once: bool = False,
        ridge_rank: int = 0,
        signed_attention: bool = False,
        three_body: bool = False,
        edge_encoder: str = "invariants",
        conv: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.arguments = plain_arguments(locals())
        if global_attention is not None and global_attention not in GLOBAL_ATTENTIONS:
            kinds = ", ".join(GLOBAL_ATTENTIONS)
            raise ValueError(f"unknown global attention {global_attention!r}; {kinds} or None")
        if graph_once and condition_on_y:
            raise ValueError("with graph_once the graph sees no y_t: leave condition_on_y out")
        if ridge_rank and not graph_once:
            raise ValueError("ridge_rank needs graph_once: it is a part of the expected expression")
        self.in_channels, self.n_genes = in_channels, n_genes
        self.similarity_edges = similarity_edges
        self.published = attention == "stflow" and conv is None
        self.embed_x = ContextEmbedding(in_channels, hidden_channels, context_hops, input_dropout)
        self.embed_t = None if graph_once else TimeEmbedding(hidden_channels)
        self.spot_flow = SpotFlow(hidden_channels, n_genes) if graph_once else None
        self.linear_part = (
            LinearPart(in_channels, n_genes, ridge_rank, context_hops) if ridge_rank else None
        )
        self.embed_y = nn.Linear(n_genes, hidden_channels, bias=False) if condition_on_y else None

        def local(kind: str) -> nn.Module:
            if conv is not None:
                return conv(hidden_channels, n_genes)
            return FrameAveragedConv(
                hidden_channels,
                n_genes,
                n_heads,
                edge_channels,
                kind,
                attn_dropout,
                dropout,
                signed_attention,
                three_body,
                edge_encoder,
            )

        def block() -> DenoiserBlock:
            convs = [local(attention)]
            if similarity_edges:  # their geometry has no published form
                convs.append(local("additive" if self.published else attention))
            parts = published_block_parts if self.published else block_parts
            mlp, read_out = parts(hidden_channels, n_genes, dropout)
            whole = None
            if global_attention is not None:
                options = {"n_latents": n_latents} if global_attention == "latent" else {}
                whole = GLOBAL_ATTENTIONS[global_attention](
                    hidden_channels, heads=n_heads, **options
                )
            return DenoiserBlock(hidden_channels, convs, whole, mlp, read_out)

        self.blocks = nn.ModuleList(block() for _ in range(n_layers))

    def reset_parameters(self) -> None:
        """Draw new weights."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()

    def forward(self, y_t: Tensor, t: Tensor, data: Data) -> Tensor:
        """Return the estimate of y₁, ``[N, G]``.

        Args:
            y_t: ``[N, G]`` noised expression of all spots of the batch.
            t: ``[n_slides]`` flow time of each slide, in [0, 1].
            data: ``x [N, F]``, the tensors of ``graph.SpatialGraph`` (with ``attention="stflow"``
                of ``graph.PublishedGraph``; or ``pos`` and ``edge_index``, and the frames are
                made anew), and ``batch [N]`` if there are several slides; or the ``tiles`` of one
                slide, in training with ``context`` if the first layer has hops.

        Raises:
            ValueError: shapes, dtypes or edges that do not fit; the message prints them.
        """
        check_spots(y_t, t, data.x, data.batch, self.in_channels, self.n_genes)
        batch = _slide_of_spots(data, data.x)
        if self.spot_flow is not None:
            return self.spot_flow(y_t, t, batch, self._condition(data, batch, t.size(0)))
        return self._estimate(y_t, t, self._slide(data, batch, t.size(0)))

    def bind(self, data: Data, most_bytes: int = KEEP_BYTES) -> Flow:
        """Return :meth:`forward` on one slide, with what depends on neither y_t nor t made once.

        That is with ``graph_once`` all of the graph (:meth:`condition`), else the embedded spots
        and the encoded edges of each block. For sampling, in eval mode.

        Args:
            data: as of :meth:`forward`; the result's own ``data`` is not read.
            most_bytes: what encoded edges may take; those of later blocks that do not fit are
                encoded in every call.

        Returns:
            A function of y_t, t and data.

        Raises:
            ValueError: as :meth:`forward`.
        """
        if self.conditions:
            return self.flows(self.condition(data))[0]
        batch = _slide_of_spots(data, data.x)
        n_slides = _n_slides(batch)
        slide = self._slide(data, batch, n_slides, EdgeKeeper(most_bytes))

        def estimate(y_t: Tensor, t: Tensor, _: Data) -> Tensor:
            check_spots(y_t, t, data.x, data.batch, self.in_channels, self.n_genes)
            return self._estimate(y_t, t, slide)

        return estimate

    def _slide(
        self, data: Data, batch: Tensor, n_slides: int, keeper: EdgeKeeper | None = None
    ) -> _Slide:
        tiles, relations = self._tiles(data), None
        if tiles is None:
            relations = self._relations(data, batch)
        of_blocks: list[Sequence[Edges]] = []
        tiles_of_blocks: list[Tiles] = []
        for block in self.blocks:
            assert isinstance(block, DenoiserBlock)
            if relations is not None:
                of_blocks.append(keeper.edges(block, relations) if keeper else relations)
            elif tiles is not None:
                tiles_of_blocks.append(keeper.tiles(block, tiles) if keeper else tiles)
        h = self._embed(data, tiles)
        return _Slide(h, batch, n_slides, of_blocks, tiles_of_blocks if tiles else None)

    def _estimate(self, y_t: Tensor, t: Tensor, slide: _Slide) -> Tensor:
        assert self.embed_t is not None
        h = slide.h + self.embed_t(t)[slide.batch]
        if self.embed_y is not None:
            h = h + self.embed_y(y_t)
        if slide.tiles is None:
            return self._run_blocks(h, y_t, slide)[1]

        def noised(rows: Tensor, states: Tensor) -> Tensor:
            return y_t[rows]

        if torch.is_grad_enabled():
            return self._learn_by_tiles(h, noised, slide.tiles)[1]
        code = h.new_empty(h.size(0), len(self.blocks) * h.size(1))
        self._run_blocks_by_tiles(h, noised, slide.tiles, code)
        return self._read_out(code)

    @property
    def conditions(self) -> bool:
        """Whether the graph runs once a slide: :meth:`condition`, then :meth:`denoise`."""
        return self.spot_flow is not None

    def condition(self, data: Data) -> Condition:
        """Return what the graph says of the spots, the same for every step and sample.

        Args:
            data: as of :meth:`forward`.

        Raises:
            ValueError: as :meth:`forward`; or the denoiser was not made with ``graph_once``.
        """
        if not self.conditions:
            raise ValueError("a denoiser made with graph_once=True is needed")
        batch = _slide_of_spots(data, data.x)
        n_slides = _n_slides(batch)
        y, t = data.x.new_zeros(data.x.size(0), self.n_genes), data.x.new_zeros(n_slides)
        check_spots(y, t, data.x, data.batch, self.in_channels, self.n_genes)
        return self._condition(data, batch, n_slides)

    def denoise(self, y_t: Tensor, t: Tensor, data: Data, condition: Condition) -> Tensor:
        """Return the estimate of y₁ given what :meth:`condition` made, ``[N, G]``.

        Of ``data`` only ``batch`` is read: no spot sees another here.

        Raises:
            ValueError: ``y_t`` is not of the condition's shape.
        """
        assert self.spot_flow is not None
        if y_t.shape != condition.mean.shape:
            raise ValueError(f"y_t must be {list(condition.mean.shape)}, got {list(y_t.shape)}")
        return self.spot_flow(y_t, t, _slide_of_spots(data, y_t), condition)

    def flows(self, condition: Condition) -> list[Flow]:
        """Return :meth:`denoise` with its condition as the one flow of all samples."""
        return [partial(self.denoise, condition=condition)]

    def _condition(self, data: Data, batch: Tensor, n_slides: int) -> Condition:
        tiles = self._tiles(data)
        if tiles is not None and not torch.is_grad_enabled():
            return self.decode(self.encode(self.gather(self.project(data.x), tiles), tiles))
        slide = self._slide(data, batch, n_slides)
        if slide.tiles is not None:
            states, mean = self._learn_by_tiles(slide.h, self._nothing_known, slide.tiles)
        else:
            y = slide.h.new_zeros(slide.h.size(0), self.n_genes)
            states, mean = self._run_blocks(slide.h, y, slide)
        if self.linear_part is not None and not self.training:
            if tiles is not None:
                down = self.linear_part.down
                linear = self.linear_part.up(down.gather(down.project(data.x), tiles.average))
            else:
                linear = self.linear_part(data.x, data.edge_index, data.edge_weight)
            mean = torch.lerp(mean, linear, self.linear_part.share)
        return Condition(mean, states)

    def _nothing_known(self, rows: Tensor, states: Tensor) -> Tensor:
        """Return the estimate of expression before the first block."""
        return states.new_zeros(len(rows), self.n_genes)

    def project(self, x: Tensor) -> Tensor:
        """Return all that the graph reads of the embeddings ``x [n, F]`` of some spots.

        With :meth:`gather`, :meth:`encode` and :meth:`decode` it is :meth:`condition` in four
        steps, the first and the last of which go spot by spot: embeddings and expression of a
        large slide need never be in memory as a whole.

        Returns:
            ``[n, P]``, P = (1 + number of hops) · (C + rank of the linear part).
        """
        parts = [self.embed_x.project(x)]
        if self.linear_part is not None:
            parts.append(self.linear_part.down.project(x))
        return torch.cat(parts, dim=1)

    def gather(self, projected: Tensor, tiles: Tiles) -> Tensor:
        """Average what :meth:`project` made of all spots of a slide along its graph.

        Args:
            projected: ``[N, P]``.
            tiles: the slide's.

        Returns:
            ``[N, C + rank]``: the states before the first block, and the linear part.
        """
        if self.linear_part is None:
            return self.embed_x.gather(projected, tiles.average)
        down = self.linear_part.down
        own = projected.size(1) - down.project_width
        states = self.embed_x.gather(projected[:, :own], tiles.average)
        return torch.cat([states, down.gather(projected[:, own:], tiles.average)], dim=1)

    def encode(self, gathered: Tensor, tiles: Tiles) -> Tensor:
        """Run the blocks over a slide's tiles.

        Args:
            gathered: ``[N, C + rank]`` from :meth:`gather`.
            tiles: the slide's.

        Returns:
            ``[N, L · C + rank]``: the states after each block, and the linear part.

        Raises:
            ValueError: as :meth:`condition`.
        """
        if not self.conditions:
            raise ValueError("a denoiser made with graph_once=True is needed")
        channels = self.embed_x.out_features
        h, linear = gathered[:, :channels], gathered[:, channels:]
        width = len(self.blocks) * channels
        code = h.new_empty(h.size(0), width + linear.size(1))
        code[:, width:] = linear
        of_blocks = [tiles] * len(self.blocks)
        self._run_blocks_by_tiles(h, self._nothing_known, of_blocks, code[:, :width])
        return code

    def decode(self, code: Tensor) -> Condition:
        """Return what the graph says of the spots whose rows of :meth:`encode` are given."""
        width = len(self.blocks) * self.embed_x.out_features
        mean = self._read_out(code[:, :width])
        if self.linear_part is not None:
            linear = self.linear_part.up(code[:, width:])
            mean = torch.lerp(mean, linear, self.linear_part.share)
        return Condition(mean, code[:, width - self.embed_x.out_features : width])

    def _tiles(self, data: Data) -> Tiles | None:
        if "tiles" not in data:
            return None
        found: Tiles = data.tiles
        n_relations = 1 + self.similarity_edges
        if any(len(tile.relations) != n_relations for tile in found):
            raise ValueError(f"data.tiles must have {n_relations} types of edges")
        return found

    def _run_blocks_by_tiles(
        self, h: Tensor, y: Estimate, tiles: Sequence[Tiles], code: Tensor
    ) -> None:
        """Write the states after each block into ``code [N, L · C]``."""
        outs = code.split(h.size(1), dim=1)
        for block, its_tiles, out in zip(self.blocks, tiles, outs, strict=True):
            assert isinstance(block, DenoiserBlock)
            block.by_tiles(h, y, its_tiles, out)
            h, y = out, partial(_read_out_of, block)

    def _learn_by_tiles(
        self, h: Tensor, y: Estimate, tiles: Sequence[Tiles]
    ) -> tuple[Tensor, Tensor]:
        """Return what :meth:`_run_blocks` does, and the same gradient."""
        total = h.new_zeros(h.size(0), self.n_genes)
        for block, its_tiles in zip(self.blocks, tiles, strict=True):
            assert isinstance(block, DenoiserBlock)
            h = block.learn_by_tiles(h, y, its_tiles)
            total = total + block.read_out(h)
            y = partial(_read_out_of, block)
        return h, total / len(self.blocks)

    def _read_out(self, code: Tensor) -> Tensor:
        """Return the mean of the blocks' estimates of expression, ``[n, G]``."""
        states = code.split(self.embed_x.out_features, dim=1)
        total = code.new_zeros(code.size(0), self.n_genes)
        for block, h in zip(self.blocks, states, strict=True):
            assert isinstance(block, DenoiserBlock)
            total = total + block.read_out(h)
        return total / len(self.blocks)

    def _embed(self, data: Data, tiles: Tiles | None = None) -> Tensor:
        context = data.context if "context" in data else None
        if tiles is None or not self.embed_x.hops or (self.training and context is not None):
            return self.embed_x(data.x, data.edge_index, data.edge_weight, context)
        if self.training and self.embed_x.dropout:
            raise ValueError("to learn in tiles, put the slide through graph.NeighbourhoodContext")
        return self.embed_x.gather(self.embed_x.project(data.x), tiles.average)

    def _run_blocks(self, h: Tensor, y: Tensor, slide: _Slide) -> tuple[Tensor, Tensor]:
        """Return the last states and the mean of the blocks' estimates of expression."""
        total = torch.zeros_like(y)
        for block, relations in zip(self.blocks, slide.relations, strict=True):
            h, y = block(h, y, relations, slide.batch, slide.n_slides)
            total = total + y
        return h, total / len(self.blocks)

    def _relations(self, data: Data, batch: Tensor) -> list[Edges]:
        """Return the edges in space and, if asked for, those of similarity."""
        check_edges(data.edge_index, batch)
        edge_attr = data.edge_attr
        if edge_attr is None:
            if not self.published:
                raise ValueError(
                    "data.edge_attr [E, 6] is needed: put the slide through graph.SpatialGraph"
                )
            check_positions(data.pos, data.x.size(0))
            edge_attr = published_edge_geometry(data.pos, data.edge_index).to(data.x.dtype)
        relations = [Edges(_by_spot(data.edge_index, batch), edge_attr, data.edge_weight)]
        if self.similarity_edges:
            if "similar_edge_index" not in data:
                raise ValueError(
                    "data.similar_edge_index [2, E] is needed: put the slide through "
                    "graph.SimilarityEdges"
                )
            check_edges(data.similar_edge_index, batch, "data.similar_edge_index")
            similar = _by_spot(data.similar_edge_index, batch)
            relations.append(Edges(similar, data.similar_edge_attr, None))
        return relations


def _slide_of_spots(data: Data, rows: Tensor) -> Tensor:
    """Return the slide of each spot, ``[N]``; ``rows`` has a row a spot."""
    if data.batch is not None:
        return data.batch
    return torch.zeros(rows.size(0), dtype=torch.long, device=rows.device)


def _n_slides(batch: Tensor) -> int:
    """Return the number of slides that :func:`_slide_of_spots` tells of."""
    return int(batch.max()) + 1 if batch.numel() else 1


def _by_spot(edges: Tensor, batch: Tensor) -> Tensor:
    """Return edges that are sorted by spot as such, so that layers sum them the faster way."""
    if torch.compiler.is_compiling():  # values are not known while a graph is traced
        return edges
    plain = type(edges) is Tensor and edges.layout == torch.strided
    return sorted_edges(edges, batch.size(0)) if plain and is_sorted(edges[1]) else edges


def _read_out_of(block: DenoiserBlock, rows: Tensor, states: Tensor) -> Tensor:
    """Return the estimate of expression that a block reads out of its states."""
    estimate: Tensor = block.read_out(states)
    return estimate
