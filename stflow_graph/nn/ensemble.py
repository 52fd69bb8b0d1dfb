"""Several denoisers as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from stflow_graph.flow.sampler import Model
from stflow_graph.graph.tiles import GraphView
from stflow_graph.nn.encoder import Encoding
from stflow_graph.nn.two_stage import TwoStageDenoiser


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

    def forward(self, y_t: Tensor, t: Tensor, data: Data) -> Tensor:
        """Return the estimate of y₁, ``[N, G]``; arguments as of the members."""
        return torch.stack([member(y_t, t, data) for member in self.members]).mean(0)

    def bind(self, data: Data, graph: GraphView | None = None) -> Model:
        """Return :meth:`forward` on one slide or batch, see ``GraphDenoiser.bind``."""
        members: list[Any] = list(self.members)
        models = [member.bind(data, graph) for member in members]
        return lambda y_t, t: torch.stack([model(y_t, t) for model in models]).mean(0)


def flows_about_the_mean(
    members: Sequence[TwoStageDenoiser], mean: Tensor, states: Sequence[Tensor]
) -> list[Model]:
    """Return each member's flow about the mean of all, which samples take in turn.

    A sample is thus as unlike the mean as one member's is, which is what the spread was calibrated
    on; a mean of the members' flows would make it smoother.

    Args:
        members: denoisers with a flow.
        mean: ``[N, G]`` the members' mean.
        states: of each member ``[N, C]``.
    """
    pairs = zip(members, states, strict=True)
    return [member.flow_from(Encoding(mean, own)) for member, own in pairs]
