"""Parts of a slide computed by a thread each, on a CPU.

The operations of a part are small: threads that share each of them wait for each other as long as
they compute, and stand still where another program takes one's core.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")


def in_threads(
    function: Callable[[Part], Result], parts: Sequence[Part], device: torch.device
) -> Iterator[Result]:
    """Yield a function of each part, in their order; no gradients.

    On a CPU as many parts as torch has threads are computed at a time, by one thread each, so
    results do not depend on how many there are.

    Args:
        function: of a part; it runs with the caller's inference mode and autocast.
        parts: the parts.
        device: where the function computes.
    """
    n_threads = torch.get_num_threads()
    if device.type != "cpu" or n_threads == 1 or len(parts) == 1:
        yield from map(function, parts)
        return
    calls = _as_here(function)
    pending: collections.deque[Future[Result]] = collections.deque()
    with _one_thread(n_threads), ThreadPoolExecutor(n_threads, initializer=_alone) as pool:
        try:
            for part in parts:
                pending.append(pool.submit(calls, part))
                if len(pending) > 2 * n_threads:  # results wait in memory
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _as_here(function: Callable[[Part], Result]) -> Callable[[Part], Result]:
    """Return the function in the modes of this thread, which others do not have."""
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    autocast, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def called(part: Part) -> Result:
        with (
            torch.inference_mode(inference),
            torch.set_grad_enabled(grad and not inference),
            torch.autocast("cpu", dtype, enabled=autocast),
        ):
            return function(part)

    return called


def _alone() -> None:
    torch.set_num_threads(1)


@contextlib.contextmanager
def _one_thread(n_threads: int) -> Iterator[None]:
    torch.set_num_threads(1)  # MKL's number is the process's
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
