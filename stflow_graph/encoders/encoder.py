"""A patch encoder: pixels in, one embedding a patch out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


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
        features = self.network(x)
        return features if self.pool is None else self.pool(features)
