"""State dicts from files, never by unpickling objects."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stflow_graph.errors import BadInput, plain
from stflow_graph.io.atomic import check_file


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file or a torch file of plain tensors.

    Raises:
        BadInput: the file is missing, damaged, or holds anything but tensors.
    """
    path = check_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        text: str = " ".join(str(error).split())
        if isinstance(error, pickle.UnpicklingError):  # torch's own text advises to unpickle it all
            text = plain("pickled objects other than tensors, or another kind of file")
        expected = "a state dict of tensors (.safetensors, or torch.save of a state dict)"
        raise BadInput(path, "content", text, expected) from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise BadInput(path, "content", plain(type(state).__name__), "a dict of tensors")
    return state


def misfits(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Say which keys are missing, unexpected or of another shape, naming the first of each.

    Args:
        wanted: a network's state dict.
        found: the weights to fill it with.

    Returns:
        One line, empty if everything fits.
    """
    shapes = [
        f"{key} {list(found[key].shape)} instead of {list(wanted[key].shape)}"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    kinds = {
        "missing": [key for key in wanted if key not in found],
        "unexpected": [key for key in found if key not in wanted],
        "misshapen": shapes,
    }
    return "; ".join(
        f"{len(keys)} {kind} (such as {', '.join(keys[:3])})"
        for kind, keys in kinds.items()
        if keys
    )
