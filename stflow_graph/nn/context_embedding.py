"""The first layer of a denoiser: a spot's embedding and those of its surroundings."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from stflow_graph.graph.diffusion import Average, check_hops, diffuse, diffuse_sum
from stflow_graph.nn.dropout import dropped_linear


class ContextEmbedding(nn.Linear):
    r"""Maps embeddings and their neighbourhood averages to channels.

    .. math::
        h_i = W [x_i \,\|\, \sqrt{1 + n_1} (A^{n_1} x)_i \,\|\, \sqrt{1 + n_2} (A^{n_2} x)_i
              \,\|\, \dots] + b

    with A the averaging over neighbours of ``graph.diffuse``. Without dropout the map is applied
    first and its results are averaged, C channels instead of F: the same function by algebra at a
    fraction of the cost. In training the wide features are needed, since dropout drops single
    channels of single distances; ``graph.NeighbourhoodContext`` computes them once as ``context``.

    Args:
        in_channels: F.
        out_channels: C.
        hops: numbers of averaging steps n, ascending; none: a plain linear map.
        dropout: of the wide features.
    """

    def __init__(
        self, in_channels: int, out_channels: int, hops: Sequence[int] = (), dropout: float = 0.0
    ) -> None:
        check_hops(hops)
        super().__init__((1 + len(hops)) * in_channels, out_channels)
        self.hops, self.dropout = tuple(hops), dropout
        self.in_channels = in_channels

    def forward(  # type: ignore[override]
        self, x: Tensor, average: Average, context: Tensor | None = None
    ) -> Tensor:
        """Return ``[N, C]``.

        Args:
            x: ``[N, F]`` embeddings.
            average: the mean over the spots' neighbours; not called without hops.
            context: ``[N, len(hops) · F]`` from ``graph.NeighbourhoodContext``, or None.
        """
        if not self.hops:
            return self._map([x])
        if context is None:
            if not (self.training and self.dropout):
                parts = self.project(x).split(self.out_features, dim=1)
                return self.bias + diffuse_sum(reversed(parts), (0, *self.hops), average)
            context = diffuse(x, self.hops, average)
        return self._map([x, context])

    def _map(self, parts: list[Tensor]) -> Tensor:
        return dropped_linear(parts, self.dropout, self.weight, self.bias, self.training)

    @property
    def project_weight(self) -> Tensor:
        """The map of :meth:`project`, ``[(1 + len(hops)) · C, F]``."""
        by_hop = self.weight.view(self.out_features, -1, self.in_channels).transpose(0, 1)
        return by_hop.reshape(-1, self.in_channels)

    def project(self, x: Tensor) -> Tensor:
        """Return each spot's contribution at each distance, ``[N, (1 + len(hops)) · C]``."""
        return F.linear(x, self.project_weight)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.in_channels}, {self.out_features}, "
            f"hops={self.hops}, dropout={self.dropout})"
        )
