"""A ridge regression as a part of a network's mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stflow_graph.graph.diffusion import Average
from stflow_graph.nn.context_embedding import ContextEmbedding
from stflow_graph.nn.eigenvectors import leading_eigenvectors


class RidgeHead(nn.Module):
    r"""A linear map of low rank from embeddings and their context to expression.

    Its weights are solved for, not trained by gradient steps. Its ``mixing_weight`` s averages it
    into the mean μ of a network, :math:`(1 - s) μ + s\, \ell(x)`; it is 0 until weights are set.

    Args:
        in_channels: F.
        n_genes: G.
        rank: r.
        hops: as of ``ContextEmbedding``.
    """

    mixing_weight: Tensor

    def __init__(self, in_channels: int, n_genes: int, rank: int, hops: Sequence[int] = ()) -> None:
        super().__init__()
        self.down = ContextEmbedding(in_channels, min(rank, n_genes), hops)
        self.up = nn.Linear(self.down.out_features, n_genes)
        self.register_buffer("mixing_weight", torch.zeros(()))
        self.requires_grad_(False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all weights to zero."""
        for tensor in (*self.parameters(), self.mixing_weight):
            nn.init.zeros_(tensor)

    @torch.no_grad()
    def set_weights(
        self, weights: Tensor, bias: Tensor, predicted: Tensor, mixing_weight: float
    ) -> None:
        """Set the best approximation of ``x @ weights + bias`` of this rank.

        Args:
            weights: ``[(1 + len(hops)) F, G]``.
            bias: ``[G]``.
            predicted: ``[N, G]`` x @ weights on the training slides: the rank keeps the directions
                of largest variance there (Izenman 1975: reduced-rank regression).
            mixing_weight: s.
        """
        basis = _main_directions(predicted.double(), self.down.out_features)
        self.down.weight.copy_((weights.double() @ basis).T)
        self.up.weight.copy_(basis)
        self.up.bias.copy_(bias)
        self.mixing_weight.fill_(mixing_weight)

    def forward(self, x: Tensor, average: Average) -> Tensor:
        """Return ``[N, G]``; arguments as of ``ContextEmbedding``."""
        return self.up(self.down(x, average))

    def mix(self, mean: Tensor, ridge: Tensor) -> Tensor:
        """Return the average of a network's mean and the ridge's, both ``[n, G]``."""
        return torch.lerp(mean, ridge, self.mixing_weight)


def _main_directions(predicted: Tensor, rank: int) -> Tensor:
    """Return ``[G, rank]``: the leading right singular vectors of ``predicted [N, G]``."""
    p = predicted.cpu().numpy()
    vectors = leading_eigenvectors(lambda v: p.T @ (p @ v), p.shape[1], rank)
    return torch.from_numpy(vectors).to(predicted.device)
