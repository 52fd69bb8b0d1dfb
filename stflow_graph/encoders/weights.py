"""Weights from files and from the hub, never by unpickling objects."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stflow_graph.errors import BadConfig, BadInput, plain
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
        text = " ".join(str(error).split())
        expected = "a state dict of tensors (.safetensors, or torch.save of a state dict)"
        raise BadInput(path, "content", text, expected) from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise BadInput(path, "content", plain(type(state).__name__), "a dict of tensors")
    return state


def load_strictly(
    network: nn.Module, state: dict[str, Tensor], path: str | Path, unused: Sequence[str] = ()
) -> None:
    """Load a state dict into a network, every key in its place.

    Args:
        network: what to fill.
        state: the weights.
        path: for messages.
        unused: beginnings of keys that the network does without (a classifier), left out.

    Raises:
        BadConfig: keys missing or unexpected, or shapes that differ; names the first few.
    """
    wanted = network.state_dict()
    state = {
        k: v for k, v in state.items() if k in wanted or not any(k.startswith(u) for u in unused)
    }
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    shapes = [
        f"{key} {list(state[key].shape)} instead of {list(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    problems = [
        f"{len(keys)} {what} (such as {', '.join(keys[:3])})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("misshapen", shapes))
        if keys
    ]
    if problems:
        raise BadConfig(f"{path}: weights do not fit the encoder: {'; '.join(problems)}")
    network.load_state_dict(state)


def hash_weights(network: nn.Module) -> str:
    """Return the SHA-256 of a network's tensors, whatever file they came from."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
