"""Where arrays with a row for every spot of a slide are: in memory, or where a caller puts them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

# rows of an array as ``slice``, or ``[n]`` indices
Rows = Tensor | slice


class GrowingArray(Protocol):
    """An array that is made some rows at a time."""

    def put(self, rows: Rows, part: Tensor, to: Tensor | None = None) -> None:
        """Put rows ``[n, C]`` into their places, added to those of ``to [N, C]`` if it is given.

        Those of a file come one after the other.
        """

    def whole(self) -> Tensor:
        """Return the array ``[N, C]``, once all rows are there."""


class Arrays(Protocol):
    """Makes the arrays that are as long as a slide, such as ``inference.scratch.ScratchFiles``."""

    def growing(self, n_rows: int, *, briefly: bool = False) -> GrowingArray:
        """Return an array of N rows, as wide as the first ones that are put into it.

        Args:
            n_rows: N.
            briefly: whether few such arrays are needed at a time.
        """

    def keep(self, tensor: Tensor) -> Tensor:
        """Return a tensor with these values, which will be read several times."""


class InMemory:
    """Arrays in memory, on the device of what is put into them."""

    def growing(self, n_rows: int, *, briefly: bool = False) -> GrowingInMemory:
        """Return an array of N rows, as wide as the first ones that are put into it."""
        return GrowingInMemory(n_rows)

    def keep(self, tensor: Tensor) -> Tensor:
        """Return the tensor itself."""
        return tensor


class GrowingInMemory:
    """An array in memory, whose rows may come in any order.

    Args:
        n_rows: N.
    """

    def __init__(self, n_rows: int) -> None:
        self._n_rows = n_rows
        self._array: Tensor | None = None

    def put(self, rows: Rows, part: Tensor, to: Tensor | None = None) -> None:
        """Put rows ``[n, C]`` into their places, added to those of ``to [N, C]`` if it is given."""
        if self._array is None:
            like = part if to is None else to
            self._array = like.new_empty(self._n_rows, part.size(1))
        if to is None:
            self._array[rows] = part
        elif isinstance(rows, slice) and not torch.is_grad_enabled():
            torch.add(to[rows], part, out=self._array[rows])
        else:
            self._array[rows] = to[rows] + part

    def whole(self) -> Tensor:
        """Return the array ``[N, C]``, once all rows are there."""
        assert self._array is not None, "nothing was put into the array"
        return self._array


IN_MEMORY = InMemory()
