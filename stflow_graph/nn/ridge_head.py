"""A ridge regression inside of a denoiser."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stflow_graph.nn.context_embedding import ContextEmbedding


class LinearPart(nn.Module):
    r"""A linear map of low rank from embeddings and their context to expression.

    Its weights are solved for and not trained by steps. Its ``share`` s mixes it with the mean μ
    of a network, :math:`(1 - s) μ + s\, \ell(x)`; it is 0 until weights are set.

    Args:
        in_channels: F.
        n_genes: G.
        rank: r.
        hops: as of ``ContextEmbedding``.
    """

    share: Tensor

    def __init__(self, in_channels: int, n_genes: int, rank: int, hops: Sequence[int] = ()) -> None:
        super().__init__()
        self.down = ContextEmbedding(in_channels, min(rank, n_genes), hops)
        self.up = nn.Linear(self.down.out_features, n_genes)
        self.register_buffer("share", torch.zeros(()))
        self.requires_grad_(False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Take all weights away."""
        for tensor in (*self.parameters(), self.share):
            nn.init.zeros_(tensor)

    @torch.no_grad()
    def set_weights(self, weights: Tensor, bias: Tensor, predicted: Tensor, share: float) -> None:
        """Take the best approximation of ``x @ weights + bias`` that the rank allows.

        Args:
            weights: ``[(1 + len(hops)) F, G]``.
            bias: ``[G]``.
            predicted: ``[N, G]`` x @ weights on the slides that count: the rank keeps what varies
                most there (Izenman 1975: reduced-rank regression).
            share: s.
        """
        values, vectors = torch.linalg.eigh(predicted.double().T @ predicted.double())
        basis = vectors[:, values.argsort(descending=True)[: self.down.out_features]]
        self.down.weight.copy_((weights.double() @ basis).T)
        self.up.weight.copy_(basis)
        self.up.bias.copy_(bias)
        self.share.fill_(share)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Return ``[N, G]``; arguments as of ``ContextEmbedding``."""
        return self.up(self.down(x, edge_index, edge_weight))
