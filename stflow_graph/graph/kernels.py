"""Whether Triton's kernels run: on a GPU, where Triton is installed.

``mode`` chooses: ``"auto"`` takes the kernels for tensors on a GPU, ``"off"`` never, ``"on"`` on
any device, which is for tests under Triton's interpreter. Its first value is that of the
environment variable ``STFLOW_GRAPH_FUSED``, or else ``"auto"``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
MODES = ("auto", "off", "on")
mode = os.environ.get("STFLOW_GRAPH_FUSED", "auto")
if mode not in MODES:
    raise ValueError(f"STFLOW_GRAPH_FUSED must be one of {', '.join(MODES)}, got {mode!r}")


@contextlib.contextmanager
def using(other: str) -> Iterator[None]:
    """Set ``mode`` for a while.

    Raises:
        ValueError: an unknown mode.
    """
    global mode
    if other not in MODES:
        raise ValueError(f"unknown mode {other!r}; one of {', '.join(MODES)}")
    before, mode = mode, other
    try:
        yield
    finally:
        mode = before


def wanted(x: Tensor) -> bool:
    """Return whether kernels are to be used for this tensor, if there are any."""
    return mode == "on" or (mode == "auto" and x.is_cuda)


@functools.cache
def is_available() -> bool:
    """Return whether Triton can be imported."""
    try:
        importlib.import_module("triton")
    except Exception as error:  # whatever a broken installation raises
        logger.info("no GPU kernels: %s", error)
        return False
    return True


def compiles(attempt: Callable[[], object], otherwise: str) -> bool:
    """Return whether a kernel compiles and runs, which a tiny case shows; warn if it does not.

    Args:
        attempt: runs the kernel.
        otherwise: what happens if it does not, for the warning.
    """
    try:
        attempt()
    except torch.OutOfMemoryError:
        raise  # tells nothing about the kernel
    except Exception as error:  # Triton has no common type of errors
        logger.warning("%s: %s", otherwise, error)
        return False
    return True


def padded(width: int) -> int:
    """Return the least power of two that is no less than a width."""
    return 1 << (max(width, 1) - 1).bit_length()
