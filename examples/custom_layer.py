"""A message-passing layer of one's own, used without touching the package.

From this folder:  stflow-graph train ... --set denoiser.conv=custom_layer:MyConv
"""

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing


class MyConv(MessagePassing):
    """Gated messages: each neighbour's state, let through by distance and estimated expression."""

    def __init__(self, channels: int, n_genes: int) -> None:
        super().__init__(aggr="mean")
        self.norm = nn.LayerNorm(channels)
        self.value = nn.Linear(channels, channels)
        self.expression = nn.Linear(n_genes, channels, bias=False)
        self.distance = nn.Linear(1, channels)

    def forward(
        self, h: Tensor, y: Tensor, edge_index: Tensor, edge_attr: Tensor, edge_weight: Tensor
    ) -> Tensor:
        """Return the update of the states: h [N, C], y [N, G], edge_attr [E, 6] of SpatialGraph."""
        # column 2 is the distance in spot pitches; the weight fades edges out at the cut-off
        return self.propagate(
            edge_index,
            v=self.value(self.norm(h)),
            y=self.expression(y),
            distance=self.distance(edge_attr[:, 2:3]),
            weight=edge_weight[:, None],
        )

    def message(
        self, v_j: Tensor, y_i: Tensor, y_j: Tensor, distance: Tensor, weight: Tensor
    ) -> Tensor:
        """Return the gated state of the neighbour, [E, C]."""
        return weight * torch.sigmoid(distance + y_j - y_i) * v_j
