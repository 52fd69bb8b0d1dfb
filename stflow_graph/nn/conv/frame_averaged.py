"""Local attention on the spatial graph with frame-averaged edges."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import softmax

Attention = Literal["additive", "dot"]
ATTENTIONS: tuple[Attention, ...] = ("additive", "dot")
_SIGNS = ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0))
_EDGE_FEATURES = 6


class FrameEncoder(nn.Module):
    r"""Encodes an edge without regard to the arbitrary signs of its frame.

    .. math::
        f_{ij} = w_i \tfrac14 \sum_{s \in \{-1, 1\}^2} φ([((r_{ij} - c_i) U_i) \circ s, ‖r_{ij}‖])
               + (1 - w_i) φ_0([‖r_{ij}‖, ‖r_{ij} - c_i‖, q_{ij}])

    The first term is the frame average of STFlow (Huang et al., ICML 2025, section 3.3); the
    weight w and the second term keep it continuous where the frame is undefined. φ and φ₀ share
    their last linear map, which commutes with the average.

    Args:
        out_channels: channels of f.
        hidden_channels: width of φ's hidden layer, ``2 * out_channels`` if None.
    """

    signs: Tensor

    def __init__(self, out_channels: int, hidden_channels: int | None = None) -> None:
        super().__init__()
        hidden_channels = hidden_channels or 2 * out_channels
        self.framed = nn.Linear(3, hidden_channels)
        self.isotropic = nn.Linear(3, hidden_channels)
        self.out = nn.Linear(hidden_channels, out_channels)
        self.register_buffer("signs", torch.tensor(_SIGNS), persistent=False)

    def reset_parameters(self) -> None:
        """Draw new weights."""
        for module in (self.framed, self.isotropic, self.out):
            module.reset_parameters()

    def forward(self, edge_attr: Tensor) -> Tensor:
        """Map ``edge_attr [E, 6]`` of ``graph.edge_geometry`` to ``[E, out_channels]``."""
        axes, distance, weight = edge_attr[:, :2], edge_attr[:, 2:3], edge_attr[:, 5:]
        flipped = axes[:, None] * self.signs  # [E, 4, 2]
        inputs = torch.cat([flipped, distance[:, None].expand(-1, 4, 1)], dim=-1)
        framed = F.silu(self.framed(inputs)).mean(dim=1)
        isotropic = F.silu(self.isotropic(edge_attr[:, 2:5]))
        return self.out(weight * framed + (1 - weight) * isotropic)


class FrameAveragedConv(MessagePassing):
    r"""Multi-head attention over a spot's neighbours that sees geometry and expression.

    .. math::
        h'_i = W_o \Big[ \sum_j α_{ij} v_j \,\Big\|\, \sum_j α_{ij} f_{ij} \Big], \qquad
        α_{ij} = \frac{w_{ij} e^{l_{ij}}}{\sum_m w_{im} e^{l_{im}}}

    ``additive`` (as GATv2, Brody et al., ICLR 2022):
    :math:`l_{ij} = a^\top \mathrm{SiLU}(W_q q_i + W_k k_j + W_f f_{ij} + W_y (y_j - y_i))`, with
    every product taken per spot or per edge before the sum, so that nothing of width G is made
    per edge. ``dot``: :math:`l_{ij} = (q_i^\top (k_j + W_f f_{ij}) +
    (W_y y_j - W_y y_i)^\top a) / \sqrt{C/H}`.
    Here y is the current estimate of expression, f the :class:`FrameEncoder`, w the edge weights.

    Args:
        channels: C, width of the spots' states.
        n_genes: G, width of y.
        heads: H; divides ``channels`` and ``edge_channels``.
        edge_channels: width of f.
        attention: ``"additive"`` or ``"dot"``.
        dropout: dropout of α.
    """

    def __init__(
        self,
        channels: int,
        n_genes: int,
        heads: int = 4,
        edge_channels: int = 32,
        attention: str = "additive",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(aggr="add", node_dim=0)
        if channels % heads or edge_channels % heads:
            raise ValueError(
                f"heads must divide channels and edge_channels, got {heads}, {channels}, "
                f"{edge_channels}"
            )
        if attention not in ATTENTIONS:
            raise ValueError(f"unknown attention {attention!r}; one of {', '.join(ATTENTIONS)}")
        self.channels, self.n_genes, self.heads = channels, n_genes, heads
        self.attention, self.dropout = attention, dropout
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.lin_y = nn.Linear(n_genes, channels, bias=False)
        self.edge_encoder = FrameEncoder(edge_channels)
        self.lin_edge = nn.Linear(edge_channels, channels, bias=False)
        self.score = nn.Parameter(torch.empty(heads, channels // heads))
        self.out = nn.Linear(channels + edge_channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights."""
        super().reset_parameters()
        for module in (
            self.norm,
            self.qkv,
            self.lin_y,
            self.edge_encoder,
            self.lin_edge,
            self.out,
        ):
            module.reset_parameters()
        nn.init.xavier_uniform_(self.score)

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor,
        edge_weight: Tensor | None = None,
    ) -> Tensor:
        """Return the update of the spots' states, ``[N, C]``.

        Args:
            x: ``[N, C]`` states.
            y: ``[N, G]`` current estimate of expression.
            edge_index: ``[2, E]`` neighbours (row 0) and spots (row 1).
            edge_attr: ``[E, 6]`` geometry from ``graph.edge_geometry``.
            edge_weight: ``[E]`` weights in (0, 1]; None means 1.

        Raises:
            ValueError: shapes that do not fit; the message prints them.
        """
        self._check(x, y, edge_index, edge_attr)
        heads, width = self.heads, self.channels // self.heads
        q, k, v = self.qkv(self.norm(x)).view(-1, 3, heads, width).unbind(1)
        y = self.lin_y(y).view(-1, heads, width)
        f = self.edge_encoder(edge_attr)
        log_weight = None if edge_weight is None else edge_weight.clamp(min=1e-30).log()
        alpha = self.edge_updater(
            edge_index,
            q=q,
            k=k,
            y=y,
            e=self.lin_edge(f).view(-1, heads, width),
            log_weight=log_weight,
        )
        f = f.view(-1, heads, f.size(1) // heads)
        context = self.propagate(edge_index, alpha=alpha, v=v, f=f)
        return self.out(context)

    def edge_update(
        self,
        q_i: Tensor,
        k_j: Tensor,
        y_i: Tensor,
        y_j: Tensor,
        e: Tensor,
        log_weight: Tensor | None,
        index: Tensor,
        ptr: Tensor | None,
        size_i: int | None,
    ) -> Tensor:
        """Return the attention α, ``[E, H]``."""
        if self.attention == "additive":
            logit = (F.silu(q_i + k_j + e + y_j - y_i) * self.score).sum(-1)
        else:
            scale = q_i.size(-1) ** -0.5
            logit = ((q_i * (k_j + e)).sum(-1) + ((y_j - y_i) * self.score).sum(-1)) * scale
        if log_weight is not None:
            logit = logit + log_weight[:, None]
        alpha = softmax(logit, index, ptr, size_i)
        return F.dropout(alpha, self.dropout, self.training)

    def message(self, alpha: Tensor, v_j: Tensor, f: Tensor) -> Tensor:
        """Return ``α_ij [v_j, f_ij]``, ``[E, C + D_e]``."""
        alpha = alpha[..., None]
        return torch.cat([(alpha * v_j).flatten(1), (alpha * f).flatten(1)], dim=1)

    def _check(self, x: Tensor, y: Tensor, edge_index: Tensor, edge_attr: Tensor) -> None:
        n, e = x.size(0), edge_attr.size(0)
        expected = {
            "x": (x, (n, self.channels)),
            "y": (y, (n, self.n_genes)),
            "edge_attr": (edge_attr, (e, _EDGE_FEATURES)),
        }
        for name, (value, shape) in expected.items():
            if tuple(value.shape) != shape:
                raise ValueError(f"{name} must be {list(shape)}, got {list(value.shape)}")
        if isinstance(edge_index, Tensor) and tuple(edge_index.shape) != (2, e):
            raise ValueError(f"edge_index must be [2, {e}], got {list(edge_index.shape)}")

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.channels}, n_genes={self.n_genes}, heads={self.heads}, "
            f"attention={self.attention!r})"
        )
