"""The graph denoiser: message passing on a slide's spatial graph predicts its expression."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from stflow_graph.nn.conv import FrameAveragedConv
from stflow_graph.nn.global_attention import LatentAttention
from stflow_graph.nn.time_embedding import TimeEmbedding


class GraphDenoiser(nn.Module):
    r"""Predicts expression y₁ from a noised y_t, patch embeddings and the spatial graph.

    Layers share the published model's plan (Huang et al., ICML 2025): states
    :math:`h = W_x x + W_t τ(t) + W_y y_t` pass L blocks; each updates h from the neighbours, the
    whole slide and itself, and reads out an estimate of y that the next block's attention sees.
    The output is the mean of the L estimates. Unlike in the published model, geometry comes from
    the graph's ``edge_attr`` (made once per slide), residual branches are pre-normalised, a
    global term of linear cost is mixed in by a learned gate, and :math:`W_y` is there if asked
    for (without it y is seen by the attention alone, as published).

    Args:
        in_channels: F, embedding channels.
        n_genes: G.
        hidden_channels: C.
        edge_channels: channels of the encoded edges.
        n_heads: heads of local and global attention.
        n_layers: L.
        attention: kind of local attention, see ``FrameAveragedConv``.
        global_attention: ``"latent"`` or None.
        n_latents: tokens of the global attention.
        dropout: dropout in the blocks.
        attn_dropout: dropout of local attention.
        input_dropout: dropout of embedding channels; strong values suit small cohorts.
        condition_on_y: whether :math:`W_y` is there: h then sees y_t itself.
        conv: makes a layer called as ``conv(h, y, edge_index, edge_attr, edge_weight) -> [N, C]``
            in place of ``FrameAveragedConv``; it is given ``(channels, n_genes)``.
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
        conv: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if global_attention not in ("latent", None):
            raise ValueError(f"unknown global attention {global_attention!r}; 'latent' or None")
        self.in_channels, self.n_genes = in_channels, n_genes
        self.input_dropout = nn.Dropout(input_dropout)
        self.embed_x = nn.Linear(in_channels, hidden_channels)
        self.embed_t = TimeEmbedding(hidden_channels)
        self.embed_y = nn.Linear(n_genes, hidden_channels, bias=False) if condition_on_y else None

        def make_conv() -> nn.Module:
            if conv is not None:
                return conv(hidden_channels, n_genes)
            return FrameAveragedConv(
                hidden_channels, n_genes, n_heads, edge_channels, attention, attn_dropout
            )

        def make_global() -> nn.Module | None:
            if global_attention is None:
                return None
            return LatentAttention(hidden_channels, n_latents, n_heads)

        self.blocks = nn.ModuleList(
            DenoiserBlock(hidden_channels, n_genes, make_conv(), make_global(), dropout)
            for _ in range(n_layers)
        )

    def forward(self, y_t: Tensor, t: Tensor, data: Data) -> Tensor:
        """Return the estimate of y₁, ``[N, G]``.

        Args:
            y_t: ``[N, G]`` noised expression of all spots of the batch.
            t: ``[n_slides]`` flow time of each slide, in [0, 1].
            data: ``x [N, F]``, the tensors of ``graph.SpatialGraph``, and ``batch [N]`` if there
                are several slides.

        Raises:
            ValueError: shapes that do not fit; the message prints them.
        """
        batch = data.batch if "batch" in data else data.x.new_zeros(data.x.size(0)).long()
        self._check(y_t, t, data.x, batch)
        h = self.embed_x(self.input_dropout(data.x)) + self.embed_t(t)[batch]
        if self.embed_y is not None:
            h = h + self.embed_y(y_t)
        y, total = y_t, torch.zeros_like(y_t)
        for block in self.blocks:
            h, y = block(h, y, data, batch, t.size(0))
            total = total + y
        return total / len(self.blocks)

    def _check(self, y_t: Tensor, t: Tensor, x: Tensor, batch: Tensor) -> None:
        n = x.size(0)
        if tuple(x.shape) != (n, self.in_channels):
            raise ValueError(f"data.x must be [N, {self.in_channels}], got {list(x.shape)}")
        if tuple(y_t.shape) != (n, self.n_genes):
            raise ValueError(f"y_t must be [{n}, {self.n_genes}], got {list(y_t.shape)}")
        if t.dim() != 1 or tuple(batch.shape) != (n,):
            raise ValueError(
                f"t must be [n_slides] and batch [{n}], got {list(t.shape)} and {list(batch.shape)}"
            )


class DenoiserBlock(nn.Module):
    """One block: local attention, global attention, MLP, and a read-out of expression."""

    def __init__(
        self,
        channels: int,
        n_genes: int,
        conv: nn.Module,
        global_attention: nn.Module | None,
        dropout: float,
    ) -> None:
        super().__init__()
        self.conv = conv
        self.global_attention = global_attention
        # the gate starts at 0: a model learns to look further only where that helps
        self.gate = nn.Parameter(torch.zeros(channels)) if global_attention is not None else None
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, 2 * channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(2 * channels, channels),
        )
        self.read_out = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, channels),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(channels, n_genes),
        )

    def forward(
        self, h: Tensor, y: Tensor, data: Data, batch: Tensor, n_slides: int
    ) -> tuple[Tensor, Tensor]:
        """Return the new states ``[N, C]`` and the new estimate of expression ``[N, G]``."""
        h = h + self.conv(h, y, data.edge_index, data.edge_attr, data.edge_weight)
        if self.global_attention is not None:
            h = h + self.gate * self.global_attention(h, batch, n_slides)
        h = h + self.mlp(h)
        return h, self.read_out(h)
