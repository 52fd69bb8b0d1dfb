"""Layers of PyG in the place of ours."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from stflow_graph.nn.edge_encoder import InvariantEncoder


class AdaptedConv(nn.Module):
    """Lets a PyG layer pass messages in a denoiser's block.

    The layer gets ``LayerNorm(h) + W_y y`` and, if it is made with ``edge_dim``, the encoded edges
    times their weights; else, if its forward takes ``edge_weight``, the weights. Layers with heads
    concatenate to C channels.

    Args:
        layer: a class of ``torch_geometric.nn``, made as ``layer(C, C, **options)``.
        channels: C.
        n_genes: G.
        edge_channels: width of the encoded edges.
        options: further arguments of the layer (``{"heads": 4}``).

    Raises:
        ValueError: the layer does not take these arguments.
    """

    def __init__(
        self,
        layer: type[nn.Module],
        channels: int,
        n_genes: int,
        edge_channels: int = 32,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        forward = inspect.signature(layer.forward).parameters
        constructor = inspect.signature(layer.__init__).parameters
        options = dict(options or {})
        out_channels = channels
        if options.get("concat", True):
            out_channels //= options.get("heads", 1)
        if "edge_dim" in constructor:
            options.setdefault("edge_dim", edge_channels)
        try:
            self.layer = layer(channels, out_channels, **options)
        except (TypeError, AssertionError) as error:
            raise ValueError(
                f"{layer.__name__}({channels}, {out_channels}, {options}): {error}"
            ) from None
        self.norm = nn.LayerNorm(channels)
        self.lin_y = nn.Linear(n_genes, channels, bias=False)
        self.edge_encoder = InvariantEncoder(edge_channels) if "edge_dim" in constructor else None
        self.takes_weights = self.edge_encoder is None and "edge_weight" in forward

    def reset_parameters(self) -> None:
        """Draw new weights."""
        for name in ("layer", "norm", "lin_y", "edge_encoder"):
            if name in self._modules:
                getattr(self, name).reset_parameters()

    def forward(
        self,
        h: Tensor,
        y: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor,
        edge_weight: Tensor | None = None,
    ) -> Tensor:
        """Return the update of the spots' states; arguments as of ``EdgeAttentionConv``."""
        x = self.norm(h) + self.lin_y(y)
        if self.edge_encoder is not None:
            f = self.edge_encoder(edge_attr)
            if edge_weight is not None:
                f = f * edge_weight[:, None]
            return self.layer(x, edge_index, edge_attr=f)
        if self.takes_weights:
            return self.layer(x, edge_index, edge_weight=edge_weight)
        return self.layer(x, edge_index)
