"""A patch encoder: pixels in, one embedding a patch out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class PatchTransform:
    """Turns stored patches into an encoder's input.

    Attributes:
        size: edge of the input, px; patches of another size are resized with antialiasing.
        mean: of the channels of images in [0, 1].
        std: likewise.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
    """

    size: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"

    @classmethod
    def of_timm(cls, config: dict[str, Any]) -> PatchTransform:
        """Read it from timm's data configuration (``timm.data.resolve_data_config``)."""
        kind = config["interpolation"]
        return cls(
            config["input_size"][-1],
            tuple(config["mean"]),
            tuple(config["std"]),
            kind if kind in ("bilinear", "bicubic") else "bicubic",
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Map ``[B, P, P, 3]`` uint8 to ``[B, 3, size, size]`` float32.

        Raises:
            ValueError: another shape or dtype.
        """
        if images.dim() != 4 or images.size(3) != 3 or images.dtype != torch.uint8:
            raise ValueError(
                f"images must be [B, P, P, 3] uint8, got {list(images.shape)} {images.dtype}"
            )
        x = images.permute(0, 3, 1, 2).to(torch.float32).div(255)
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(
                x, (self.size, self.size), mode=self.interpolation, antialias=True
            ).clamp(0, 1)
        mean, std = (x.new_tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std


class Encoder(nn.Module):
    """A network with its transform, its width and the hash of its weights; always in eval mode.

    Args:
        name: the encoder's name, written into embedding files.
        network: called on ``[B, 3, S, S]``; returns features that ``pool`` takes.
        width: F, channels of an embedding.
        transform: what the network's input must have gone through.
        weights_sha256: hash of the weights.
        pool: maps the network's output to ``[B, F]``; None if it is that already.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        width: int,
        transform: PatchTransform,
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
