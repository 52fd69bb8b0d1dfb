"""Results of jobs that run while the caller works on those before."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

_Result = TypeVar("_Result")


def results_ahead(jobs: Iterable[Future[_Result]], n: int) -> Iterator[_Result]:
    """Yield the results of jobs in their order.

    Args:
        jobs: each is submitted when it is taken from here.
        n: number of jobs that are submitted and not yet yielded.
    """
    coming = iter(jobs)
    pending = deque(itertools.islice(coming, n))
    while pending:
        result = pending.popleft().result()
        pending.extend(itertools.islice(coming, 1))
        yield result
