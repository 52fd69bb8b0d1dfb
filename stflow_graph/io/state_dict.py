"""State dicts from files, without unpickling objects."""

from __future__ import annotations

import errno
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from stflow_graph.errors import BadInput, as_bad_input, one_line, unquoted
from stflow_graph.io.atomic import check_file

# torch stores without compression, and weights hardly compress
_MOST_INFLATED = 4
_EXPECTED = "a state dict of tensors (.safetensors, or torch.save of a state dict)"


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file or a torch file of plain tensors.

    Raises:
        BadInput: the file is missing, damaged, or holds anything but tensors.
    """
    path = check_file(path)
    with as_bad_input(path, "content", _EXPECTED):
        if path.suffix == ".safetensors":
            return load_file(path)
        state = _unpickled(path, _EXPECTED)
    for key in ("state_dict", "model", "teacher"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise BadInput(path, "content", unquoted(type(state).__name__), "a dict of tensors")
    for key, tensor in state.items():
        if not isinstance(key, str):
            raise BadInput(path, "keys", key, "names of weights")
        _check_plain(tensor, path, key)
    return state


def read_tensor(path: str | Path) -> Tensor:
    """Read a torch file of one dense tensor, as float32 where it is a float.

    Raises:
        BadInput: the file is missing, damaged, or holds anything else.
    """
    path, expected = check_file(path), "one tensor (torch.save of a tensor)"
    with as_bad_input(path, "content", expected):
        tensor = _unpickled(path, expected)
    if not isinstance(tensor, Tensor):
        raise BadInput(path, "content", unquoted(type(tensor).__name__), expected)
    _check_plain(tensor, path, "content")
    tensor = tensor.detach()
    return tensor.float() if tensor.is_floating_point() else tensor


def _check_plain(tensor: Tensor, path: Path, field: str) -> None:
    """Refuse sparse, quantised and complex tensors, those of device ``meta``, and repeated values.

    A tensor of any size can be one value, seen over and over.
    """
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.is_quantized or tensor.is_complex():
        found = unquoted(f"{tensor.dtype}, {tensor.layout}, on {tensor.device}")
        raise BadInput(path, field, found, "a dense tensor of real numbers")
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        found = unquoted(
            f"{list(tensor.shape)} numbers in {tensor.untyped_storage().nbytes()} bytes"
        )
        raise BadInput(path, field, found, "a dense tensor")


def _unpickled(path: Path, expected: str) -> Any:
    _check_sizes(path, expected)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        if error.errno != errno.EINVAL:  # torch seeks to where a whole file would go on
            raise
        raise BadInput(path, "content", unquoted("a truncated file"), expected) from None
    except pickle.UnpicklingError:  # torch's own text advises to unpickle it all
        found = unquoted("pickled objects other than tensors, or another kind of file")
        raise BadInput(path, "content", found, expected) from None


def _check_sizes(path: Path, expected: str) -> None:
    """Refuse an archive whose parts claim to be larger than it is: torch makes room for them."""
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return  # torch's older format, or damaged in a way that torch notices
    size = path.stat().st_size
    if claimed > _MOST_INFLATED * size:
        found = unquoted(f"parts of {claimed:,} bytes in a file of {size:,}")
        raise BadInput(path, "content", found, expected)


def misfits(expected: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> str:
    """Describe the weights that are missing, unexpected, of another shape or type, or not finite.

    Args:
        expected: a network's state dict.
        loaded: the weights to load into it.

    Returns:
        One line with examples, empty if everything fits.
    """
    both = [key for key in expected if key in loaded]
    shapes = [
        f"{key} {list(loaded[key].shape)} instead of {list(expected[key].shape)}"
        for key in both
        if loaded[key].shape != expected[key].shape
    ]
    types = [
        f"{key} {loaded[key].dtype} instead of {expected[key].dtype}"
        for key in both
        if loaded[key].is_floating_point() != expected[key].is_floating_point()
    ]
    kinds = {
        "missing": [key for key in expected if key not in loaded],
        "unexpected": [key for key in loaded if key not in expected],
        "misshapen": shapes,
        "of another type": types,
        "not finite": [key for key in both if not torch.isfinite(loaded[key]).all()],
    }
    return "; ".join(
        f"{len(keys)} {kind} (such as {', '.join(one_line(key, 120) for key in keys[:3])})"
        for kind, keys in kinds.items()
        if keys
    )
