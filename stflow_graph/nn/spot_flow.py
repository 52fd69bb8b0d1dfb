"""A flow in gene space, spot by spot, given what the graph says of the spot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from stflow_graph.nn.time_embedding import TimeEmbedding

_OUTSIDE = 0.01  # share of the training spots whose states lie below, and above, what is learned


class Condition(NamedTuple):
    """What a denoiser knows of the spots before any noise: made once, used in every step.

    Attributes:
        mean: ``[N, G]`` the expected expression, which is also the estimate of y₁ at t = 0.
        states: ``[N, C]``, of an ensemble the conditions of its members.
    """

    mean: Tensor
    states: Tensor | list[Condition]


# (y_t [N, G], t [n_slides], data) -> estimate of y₁ [N, G]
Flow = Callable[[Tensor, Tensor, Data], Tensor]


class Conditional(Protocol):
    """A denoiser in two halves: the graph, once a slide, and the steps."""

    def condition(self, data: Data) -> Condition:
        """Return what the graph says of the spots."""

    def flows(self, condition: Condition) -> list[Flow]:
        """Return the flows, given the condition, that samples take in turn; one or several."""


def conditional(model: nn.Module) -> Conditional | None:
    """Return the denoiser as its two halves, None if its graph takes part in every step."""
    return cast(Conditional, model) if getattr(model, "conditions", False) else None


def bound(model: nn.Module, data: Data) -> Flow:
    """Return a denoiser on one slide, what is the same in all its network calls made once.

    Only ``data`` of that slide may be handed to the result; denoisers that have nothing to make
    beforehand are returned as they are.
    """
    bind = getattr(model, "bind", None)
    return cast(Flow, model if bind is None else bind(data))


class SpotFlow(nn.Module):
    r"""Estimates y₁ from y_t given the expected expression μ and the spot's state c.

    .. math::
        \hat y_1 = μ + \frac{t s^2}{t^2 s^2 + (1 - t)^2} e_t + t\, m(e_t, c, t), \qquad
        e_t = y_t - t μ

    The second term is the exact denoiser of residuals :math:`y_1 - μ` that are independent normal
    with deviation :math:`s = s(c)` of each spot and gene, from a standard normal prior; the MLP m
    adds what is not so: zeros, skewness, genes that vary together. At t = 0 the estimate is μ, as
    it must be: before any noise is removed nothing is known but the condition.

    No spot sees another here, so a step costs two thin matrix products; the graph acts through
    μ and c (the plan of FLAG, ICML 2026).

    States outside the range of the training spots, as another patient's slide has them, are read
    as its nearest end (:meth:`set_range`): deviations are exponential in c, and where they are
    extrapolated samples run away, the further the more steps are made.

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
        """Draw new weights: unit variance everywhere, no correction, no range to begin with."""
        for module in (self.from_state, self.from_residual, *self.from_time.mlp):
            if isinstance(module, nn.Linear):
                module.reset_parameters()
        for parameter in (*self.log_variance.parameters(), *self.mlp[2].parameters()):
            nn.init.zeros_(parameter)
        most = torch.finfo(self.lowest.dtype).max  # averaged over steps, so not infinite
        nn.init.constant_(self.lowest, -most)
        nn.init.constant_(self.highest, most)

    @torch.no_grad()
    def set_range(self, states: Tensor) -> None:
        """Read states from now on as within those of the training spots ``[N, C]``.

        That is between the 1% quantile of each channel and the 99% quantile.
        """
        n = states.size(0)
        least = min(n, 1 + int(_OUTSIDE * n))
        self.lowest.copy_(states.kthvalue(least, dim=0).values)
        self.highest.copy_(states.kthvalue(n + 1 - least, dim=0).values)

    def forward(self, y_t: Tensor, t: Tensor, batch: Tensor, condition: Condition) -> Tensor:
        """Return the estimate of y₁, ``[N, G]``.

        Args:
            y_t: ``[N, G]``.
            t: ``[n_slides]`` flow times.
            batch: ``[N]`` slide of each spot.
            condition: the mean ``[N, G]`` and states ``[N, C]`` of the spots.
        """
        mean, states = condition
        assert isinstance(states, Tensor)
        states = states.clamp(self.lowest, self.highest)
        time = t[batch][:, None]
        residual = y_t - time * mean
        variance = self.log_variance(states).clamp(-10, 10).exp()
        gain = time * variance / (time.square() * variance + (1 - time).square())
        hidden = self.from_state(states) + self.from_residual(residual) + self.from_time(t)[batch]
        return mean + gain * residual + time * self.mlp(hidden)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("lowest", "highest"):  # weights from before there was a range have none
            state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *args)
