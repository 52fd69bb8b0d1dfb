"""A step of training that several processes take together, each on some of its regions."""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from stflow_graph.flow.loss import counted_pairs
from stflow_graph.parallel.group import Group
from stflow_graph.parallel.ranks import RankFailed


class StepShare:
    """This process's share of a step; every process of the group makes one for every step.

    The step is that of one process with all its regions: losses are normalised by the spots, and
    by the pairs of slide and gene, of all of them, and gradients are added. One message brings the
    numbers, a second one the gradients. ``DistributedDataParallel`` is made for networks whose
    gradients take long to send and cannot leave out a process that has no region; these fit into
    one message.

    Args:
        batch: this process's regions, None if it has none.
        n_regions: of the step.
        group: the processes.
        device: of the network.

    Attributes:
        shape: numbers of regions and of spots, halos included, of the step.
        regions: numbers of this process's regions in the step.
        rows: of its spots among those of all regions.
        weights: ``[2]`` this process's parts of the squared error's spots and of the correlation's
            pairs.
    """

    def __init__(
        self, batch: Batch | None, n_regions: int, group: Group, device: torch.device
    ) -> None:
        self._group = group
        self.regions = list(group.own(range(n_regions)))
        numbers = torch.zeros(2 + n_regions, dtype=torch.float64)
        if batch is not None:
            y, of_slide = batch.y, batch.batch
            if "inner" in batch:
                y, of_slide = y[batch.inner], of_slide[batch.inner]
            numbers[0], numbers[1] = len(y), counted_pairs(y, of_slide)
            numbers[2:][self.regions] = torch.bincount(batch.batch).to(numbers)
        total = group.add(numbers)
        self.weights = (numbers[:2] / total[:2].clamp(min=1)).float().to(device)
        ends = list(accumulate((int(size) for size in total[2:]), initial=0))
        self.shape = n_regions, ends[-1]
        spots = [torch.arange(*ends_of) for ends_of in pairwise(ends)]
        self.rows = torch.cat([spots[i] for i in self.regions] or [torch.arange(0)])

    def add_gradients(self, network: nn.Module, loss: Tensor) -> Tensor:
        """Give the network's parameters the gradient of all processes; return the sum of losses.

        A parameter that no process has a gradient of keeps none.
        """
        learnt = [p for p in network.parameters() if p.requires_grad]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in learnt]
        used = torch.tensor([p.grad is not None for p in learnt]).to(loss)
        loss = loss.reshape(1).clone()
        self._group.add_each([*gradients, used, loss])
        for parameter, gradient, n in zip(learnt, gradients, used.tolist(), strict=True):
            parameter.grad = gradient if n else None
        return loss[0]


def check_same_state(group: Group, n_epochs: int) -> None:
    """Check that all processes of a group go on from the same epoch.

    Raises:
        RankFailed: they read different states.
    """
    every = torch.zeros(group.size, dtype=torch.float64)
    every[group.rank] = n_epochs
    epochs = group.add(every).tolist()
    if len(set(epochs)) > 1:
        raise RankFailed(
            f"the ranks read different states of one member, of epochs {epochs}: the file system "
            "shows them different files. Fix: the same command again"
        )
