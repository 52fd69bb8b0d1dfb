"""How a family of encoders becomes networks with weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

StateDict = dict[str, Tensor]


def _same(state: StateDict) -> StateDict:
    return state


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """A network to be filled with weights.

    Attributes:
        build: makes the network.
        telltale: a name that the family's files have, and those of others of the same shape lack.
        rename: brings a file's names to the network's; leaves names that it does not know.
        unused: beginnings of names, after ``rename``, that the network does without.
        pool: maps the network's output to ``[B, F]``; None if it is that already.
        on_meta: the state dict holds all its tensors, so that none needs memory before they come.
    """

    build: Callable[[], nn.Module]
    telltale: str | None = None
    rename: Callable[[StateDict], StateDict] = _same
    unused: tuple[str, ...] = ()
    pool: Callable[[Any], Tensor] | None = None
    on_meta: bool = False
