"""Several denoisers as one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from stflow_graph.nn.spot_flow import Condition, Conditional, conditional


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
        found = [member.condition(data) for member in self._halves()]
        return Condition(torch.stack([each.mean for each in found]).mean(0), found)

    def denoise(self, y_t: Tensor, t: Tensor, data: Data, condition: Condition) -> Tensor:
        """Return the estimate of y₁ given what :meth:`condition` made, ``[N, G]``."""
        pairs = zip(self._halves(), condition.states, strict=True)
        found = [member.denoise(y_t, t, data, each) for member, each in pairs]
        return torch.stack(found).mean(0)

    def forward(self, y_t: Tensor, t: Tensor, data: Data) -> Tensor:
        """Return the estimate of y₁, ``[N, G]``; arguments as of the members."""
        return torch.stack([member(y_t, t, data) for member in self.members]).mean(0)
