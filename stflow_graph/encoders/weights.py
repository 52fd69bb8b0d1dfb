"""Weights into the network they belong to, and what tells them apart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from stflow_graph.errors import BadConfig
from stflow_graph.io.state_dict import misfits


def load_strictly(
    network: nn.Module,
    state: dict[str, Tensor],
    path: str | Path,
    unused: Sequence[str] = (),
    assign: bool = False,
) -> None:
    """Load a state dict into a network, every key in its place.

    Args:
        network: what to fill.
        state: the weights.
        path: for messages.
        unused: beginnings of keys that the network does without (a classifier), left out.
        assign: take the tensors themselves, for a network on the device "meta".

    Raises:
        BadConfig: keys missing or unexpected, or shapes that differ; names the first few.
    """
    wanted = network.state_dict()
    state = {
        k: v for k, v in state.items() if k in wanted or not any(k.startswith(u) for u in unused)
    }
    problems = misfits(wanted, state)
    if problems:
        raise BadConfig(f"{path}: weights do not fit the encoder: {problems}")
    if assign:
        state = {k: v.to(wanted[k].dtype) for k, v in state.items()}
    network.load_state_dict(state, assign=assign)


def hash_weights(network: nn.Module) -> str:
    """Return the SHA-256 of a network's tensors, whatever file they came from."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode())
        # by bytes, as numpy has no bfloat16
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
