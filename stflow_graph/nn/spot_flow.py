"""A flow in gene space, spot by spot, given the encoder's states."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stflow_graph.nn.time_embedding import TimeEmbedding

_OUTSIDE = 0.01  # fraction of the training spots whose states are clamped at either end


class SpotFlow(nn.Module):
    r"""Estimates y₁ from y_t given the expected expression μ and the spot's state c.

    .. math::
        \hat y_1 = μ + \frac{t s^2}{t^2 s^2 + (1 - t)^2} e_t + t\, m(e_t, c, t), \qquad
        e_t = y_t - t μ

    The second term is the exact denoiser of residuals :math:`y_1 - μ` that are independent normal
    with deviation :math:`s = s(c)` of each spot and gene, from a standard normal prior; the MLP m
    adds deviations from that: zeros, skewness, genes that vary together. At t = 0 the estimate is
    μ, as it must be: before any noise is removed only the encoding is informative.

    Spots do not see each other here, so a step costs two thin matrix products; the graph acts
    through μ and c (the plan of FLAG, ICML 2026).

    States outside the range of the training spots, such as another patient's, are clamped to it
    (:meth:`set_range`): deviations are exponential in c, and where they are extrapolated samples
    run away, the further the more steps are made.

    Args:
        channels: C.
        n_genes: G.
        hidden_channels: width of the MLP.
        dropout: in the MLP.
    """

    lowest: Tensor
    highest: Tensor

    def __init__(
        self, channels: int, n_genes: int, hidden_channels: int = 64, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.log_variance = nn.Linear(channels, n_genes)
        self.from_state = nn.Linear(channels, hidden_channels)
        self.from_residual = nn.Linear(n_genes, hidden_channels, bias=False)
        self.from_time = TimeEmbedding(hidden_channels)
        self.mlp = nn.Sequential(
            nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden_channels, n_genes)
        )
        self.register_buffer("lowest", torch.empty(channels))
        self.register_buffer("highest", torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights: unit variance, no correction and no range to begin with."""
        for module in (self.from_state, self.from_residual, *self.from_time.mlp):
            if isinstance(module, nn.Linear):
                module.reset_parameters()
        for parameter in (*self.log_variance.parameters(), *self.mlp[2].parameters()):
            nn.init.zeros_(parameter)
        largest = torch.finfo(self.lowest.dtype).max  # averaged over steps, so not infinite
        nn.init.constant_(self.lowest, -largest)
        nn.init.constant_(self.highest, largest)

    @torch.no_grad()
    def set_range(self, states: Tensor) -> None:
        """Clamp states from now on to the range of the training spots' ``[N, C]``.

        That is between the 1% quantile of each channel and the 99% quantile.
        """
        n = states.size(0)
        rank = min(n, 1 + int(_OUTSIDE * n))
        self.lowest.copy_(states.kthvalue(rank, dim=0).values)
        self.highest.copy_(states.kthvalue(n + 1 - rank, dim=0).values)

    def forward(self, y_t: Tensor, t: Tensor, mean: Tensor, states: Tensor) -> Tensor:
        """Return the estimate of y₁, ``[N, G]``.

        Args:
            y_t: ``[N, G]``.
            t: flow times, ``[1]`` for all spots or ``[N]``.
            mean: ``[N, G]`` expected expression.
            states: ``[N, C]`` of the spots.

        Raises:
            ValueError: ``y_t`` is not of the mean's shape.
        """
        if y_t.shape != mean.shape:
            raise ValueError(f"y_t must be {list(mean.shape)}, got {list(y_t.shape)}")
        states = states.clamp(self.lowest, self.highest)
        time = t[:, None]
        residual = y_t - time * mean
        variance = self.log_variance(states).clamp(-10, 10).exp()
        gain = time * variance / (time.square() * variance + (1 - time).square())
        hidden = self.from_state(states) + self.from_residual(residual) + self.from_time(t)
        return mean + gain * residual + time * self.mlp(hidden)
