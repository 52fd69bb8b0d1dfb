"""The precision of networks' arithmetic on a device: float32, TF32 or bfloat16.

It is that of matrix products inside networks. Weights, losses, scores, random fields and all that
is written stay float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from stflow_graph.errors import BadConfig, short_repr


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that a device does not compute in.

    Raises:
        BadConfig: the device has no TF32, or no products of bfloat16.
    """
    if precision == "tf32" and not _has_tf32(device):
        raise BadConfig(
            f"precision 'tf32': {_name(device)} has none. Fix: float32, or a GPU of NVIDIA "
            "of compute capability 8.0 or more"
        )
    if precision == "bf16" and not _has_bf16(device):
        raise BadConfig(f"precision 'bf16': {_name(device)} has none. Fix: float32")


@contextlib.contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Let networks on a device compute in a precision, which ``check_precision`` has accepted."""
    if precision == "bf16":
        with torch.autocast(device.type, torch.bfloat16):
            yield
    elif precision == "tf32":
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
    else:
        yield


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.amp.is_autocast_available(device.type)


def _name(device: torch.device) -> str:
    return f"device {short_repr(str(device))}"
