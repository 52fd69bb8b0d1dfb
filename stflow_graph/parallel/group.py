"""Ranks that train one network together, step by step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from stflow_graph.errors import one_line
from stflow_graph.parallel.ranks import RESUME, RankFailed, Ranks, connect

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_Item = TypeVar("_Item")
_SIGNS = ("gloo", "NCCL", "onnection", "imed out")
# the others may take long over a step; one that dies closes its connections and is seen at once
_TIMEOUT = timedelta(minutes=10)


class Group:
    """This process among those that train a network: all take every step, each with its items.

    Args:
        handle: of ``torch.distributed``.
        rank: number of this one in the group; the first, 0, writes.
        size: of the group.
    """

    def __init__(self, handle: ProcessGroup, rank: int, size: int) -> None:
        self._handle, self.rank, self.size = handle, rank, size

    def own(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """Return this process's items; another process has each of the others."""
        return items[self.rank :: self.size]

    def add(self, values: Tensor) -> Tensor:
        """Return the sum of all processes' values, the same to the last bit for each of them.

        Raises:
            RankFailed: one of them is lost.
        """
        import torch.distributed as dist

        total = values.clone()
        with _as_lost():
            dist.all_reduce(total, group=self._handle)
        return total

    def of_all(self, values: Sequence[float], n: int) -> list[float]:
        """Return the values of n items, given those of :meth:`own`."""
        every = torch.zeros(n, dtype=torch.float64)
        every[self.rank :: self.size] = torch.tensor(values, dtype=torch.float64)
        return [float(value) for value in self.add(every)]

    def add_each(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum of all processes' values into tensors of one device and type.

        In one message: those of a small network are too short for several.
        """
        total = self.add(torch.cat([tensor.reshape(-1) for tensor in tensors]))
        parts = total.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def wait(self) -> None:
        """Wait for the others of the group."""
        self.add(torch.zeros(1))


@contextlib.contextmanager
def _as_lost() -> Iterator[None]:
    from torch.distributed import DistError

    try:
        yield
    except RuntimeError as error:
        of_network = isinstance(error, DistError) or any(sign in str(error) for sign in _SIGNS)
        if not of_network:
            raise
        raise RankFailed(
            f"a rank that trains the same network is lost ({one_line(str(error), 120)}). "
            f"Fix: {RESUME}"
        ) from None


def make_groups(ranks: Ranks, size: int, device: torch.device) -> Group | None:
    """Return this process's group of so many consecutive ranks, None if it is in none.

    All ranks call it. Ranks that are left over when the others are in groups are in none.

    Args:
        ranks: of the command.
        size: of a group, 2 or more.
        device: of this process's network.

    Raises:
        RankFailed: another rank is lost.
    """
    import torch.distributed as dist

    mine = None
    with _as_lost():
        if not dist.is_initialized():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                store=dist.PrefixStore("groups", connect()[0]),  # whose waits do not block the beat
                rank=ranks.rank,
                world_size=ranks.size,
                timeout=_TIMEOUT,
            )
        for first in range(0, ranks.size - size + 1, size):
            members = list(range(first, first + size))
            handle = dist.new_group(members, timeout=_TIMEOUT)
            if ranks.rank in members:
                mine = Group(handle, ranks.rank - first, size)
    return mine
