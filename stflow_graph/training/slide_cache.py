"""Slides as networks read them: all in memory, or a few of them, made again as they are needed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar, overload

from torch import Tensor
from torch_geometric.data import Data

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class SlideCache(Generic[_Key]):
    """What a function makes of slides, those used last up to a number of bytes.

    Args:
        make: returns the data of a slide.
        n_bytes: kept at most, but for the last slide; None keeps all.
    """

    def __init__(self, make: Callable[[_Key], Data], n_bytes: int | None = None) -> None:
        self._make, self._limit, self._size = make, n_bytes, 0
        self._kept: OrderedDict[_Key, Data] = OrderedDict()
        self._lock = threading.Lock()  # one thread trains, another one looks ahead

    def __call__(self, slide: _Key) -> Data:
        """Return the data of a slide."""
        with self._lock:
            if slide in self._kept:
                self._kept.move_to_end(slide)
                return self._kept[slide]
            data = self._kept[slide] = self._make(slide)
            self._size += n_bytes_of(data)
            while self._limit is not None and self._size > self._limit and len(self._kept) > 1:
                self._size -= n_bytes_of(self._kept.popitem(last=False)[1])
            return data


def n_bytes_of(data: Data) -> int:
    """Return the bytes of all tensors."""
    return sum(value.nbytes for _, value in data if isinstance(value, Tensor))


class MadeOnDemand(Sequence[_Value]):
    """What a function makes of items, made at every access.

    Args:
        make: returns what stands for an item.
        items: that it is given.
    """

    def __init__(self, make: Callable[[_Key], _Value], items: Sequence[_Key]) -> None:
        self._make, self._items = make, items

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, i: int) -> _Value: ...

    @overload
    def __getitem__(self, i: slice) -> MadeOnDemand[_Value]: ...

    def __getitem__(self, i: int | slice) -> _Value | MadeOnDemand[_Value]:
        """Return what stands for an item, or for some items."""
        if isinstance(i, slice):
            return MadeOnDemand(self._make, self._items[i])
        return self._make(self._items[i])

    def __iter__(self) -> Iterator[_Value]:
        """Yield what stands for each item."""
        return map(self._make, self._items)
