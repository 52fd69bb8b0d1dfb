"""Several denoisers as one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from stflow_graph.nn.spot_flow import Condition, Conditional, Flow, bound, conditional


class DenoiserEnsemble(nn.Module):
    r"""The mean of several denoisers' estimates of y₁ (Lakshminarayanan et al., NeurIPS 2017).

    An estimate of y₁ is a conditional mean, so the mean over members trained on different slides
    is one too, with less of the error that each made by chance.

    Args:
        members: denoisers of the same genes.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        if not self.members:
            raise ValueError("an ensemble needs a member")

    @property
    def conditions(self) -> bool:
        """Whether the members run their graph once a slide, see ``GraphDenoiser``."""
        return all(conditional(member) for member in self.members)

    def _halves(self) -> list[Conditional]:
        return [half for member in self.members if (half := conditional(member)) is not None]

    def condition(self, data: Data) -> Condition:
        """Return the members' mean and their conditions."""
        return self.join([member.condition(data) for member in self._halves()])

    def join(self, found: list[Condition]) -> Condition:
        """Return the members' mean and their conditions, given these."""
        return Condition(torch.stack([each.mean for each in found]).mean(0), found)

    def flows(self, condition: Condition) -> list[Flow]:
        """Return each member's flow about the mean of all, which samples take in turn.

        A sample is thus as unlike the mean as one member's is, which is what the spread was
        calibrated on; a mean of the members' flows would make it smoother.
        """
        pairs = zip(self._halves(), condition.states, strict=True)
        return [
            flow
            for member, own in pairs
            for flow in member.flows(Condition(condition.mean, own.states))
        ]

    def bind(self, data: Data) -> Flow:
        """Return :meth:`forward` on one slide, see ``GraphDenoiser.bind``."""
        members = [bound(member, data) for member in self.members]

        def estimate(y_t: Tensor, t: Tensor, data: Data) -> Tensor:
            return torch.stack([member(y_t, t, data) for member in members]).mean(0)

        return estimate

    def forward(self, y_t: Tensor, t: Tensor, data: Data) -> Tensor:
        """Return the estimate of y₁, ``[N, G]``; arguments as of the members."""
        return torch.stack([member(y_t, t, data) for member in self.members]).mean(0)
