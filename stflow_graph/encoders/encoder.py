"""A patch encoder, and how an architecture and a weights file become one."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stflow_graph.errors import BadConfig
from stflow_graph.io.state_dict import misfits, read_state_dict

StateDict = dict[str, Tensor]
# batches that a batch norm has seen: inference does without, and exporters leave it out
_COUNTER = "num_batches_tracked"


class Encoder(nn.Module):
    """A network with its transform, its width and the hash of its weights; always in eval mode.

    Args:
        name: the encoder's name, written into embedding files.
        network: called on ``[B, 3, S, S]``; returns features that ``pool`` takes.
        width: F, channels of an embedding.
        transform: maps ``[B, P, P, 3]`` uint8 to the network's input (a PatchTransform).
        weights_sha256: hash of the weights.
        pool: maps the network's output to ``[B, F]``; None if it is that already.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        width: int,
        transform: Callable[[Tensor], Tensor],
        weights_sha256: str,
        pool: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.width, self.transform = name, width, transform
        self.weights_sha256 = weights_sha256
        self.network, self.pool = network, pool
        for parameter in network.parameters():
            if parameter.dim() == 4:  # convolutions are faster in this layout, on CPUs too
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Embed patches.

        Args:
            images: ``[B, P, P, 3]`` uint8, on the encoder's device.

        Returns:
            ``[B, F]``.
        """
        x = self.transform(images).contiguous(memory_format=torch.channels_last)
        return self.embed_transformed(x)

    def embed_transformed(self, x: Tensor) -> Tensor:
        """Embed what ``transform`` returned, ``[B, 3, S, S]``; returns ``[B, F]``."""
        features = self.network(x)
        return features if self.pool is None else self.pool(features)


def _unchanged(state: StateDict) -> StateDict:
    return state


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """An architecture, and how its published files map to it.

    Attributes:
        build: creates the network.
        marker: a key of the family's files that files of other families of the same shape lack.
        rename: maps a file's keys to the network's; leaves unknown keys as they are.
        unused: prefixes of keys, after ``rename``, that the network does without.
        pool: maps the network's output to ``[B, F]``; None if it is that already.
        on_meta: the state dict holds all tensors, so none needs memory before loading.
    """

    build: Callable[[], nn.Module]
    marker: str | None = None
    rename: Callable[[StateDict], StateDict] = _unchanged
    unused: tuple[str, ...] = ()
    pool: Callable[[Any], Tensor] | None = None
    on_meta: bool = False

    def load(self, weights: Path) -> nn.Module:
        """Return the network with the weights of a file; all keys and shapes must match.

        Counters of batch norms may be missing.

        Raises:
            BadConfig: keys missing or unexpected, or shapes that differ; names the first few.
            BadInput: the file cannot be read.
        """
        return self.load_state(read_state_dict(weights), weights)

    def load_state(self, state: StateDict, weights: Path) -> nn.Module:
        """Return the network with the weights of a state dict, as :meth:`load` does.

        Args:
            state: as read from a file.
            weights: the file, for the messages.
        """
        if self.marker is not None and self.marker not in state:
            raise _misfit(weights, f"1 missing (such as {self.marker})")
        with torch.device("meta" if self.on_meta else "cpu"):
            network = self.build()
        expected = network.state_dict()
        state = {
            key: value
            for key, value in self.rename(state).items()
            if key in expected or not key.startswith(self.unused)
        }
        state |= {
            key: torch.zeros(value.shape, dtype=value.dtype)
            for key, value in expected.items()
            if key.endswith(_COUNTER) and key not in state
        }
        if problems := misfits(expected, state):
            raise _misfit(weights, problems)
        if self.on_meta:  # the network takes these tensors themselves, in its own precision
            state = {key: value.to(expected[key].dtype) for key, value in state.items()}
        network.load_state_dict(state, assign=self.on_meta)
        return network


def _misfit(path: Path, problems: str) -> BadConfig:
    return BadConfig(f"{path}: weights do not fit the encoder: {problems}")


def hash_weights(network: nn.Module) -> str:
    """Return the SHA-256 of a network's tensors, independent of the file they came from."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode())
        # by bytes, as numpy has no bfloat16
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
