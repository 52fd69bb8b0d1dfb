"""The transform from stored patches to an encoder's input."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes a second to import, and the catalogue only states transforms
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class PatchTransform:
    """Turns stored patches into an encoder's input.

    Attributes:
        size: width of the input, px; patches of another size are resized with antialiasing.
        mean: of the channels of images in [0, 1].
        std: likewise.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
        resize: width to which patches are resized before a centre crop of ``size``, px; None
            resizes to ``size`` without a crop.
    """

    size: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    resize: int | None = None

    @classmethod
    def of_timm(cls, config: dict[str, Any]) -> PatchTransform:
        """Return the transform of timm's data configuration (``timm.data.resolve_data_config``)."""
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
        import torch

        if images.dim() != 4 or images.size(3) != 3 or images.dtype != torch.uint8:
            raise ValueError(
                f"images must be [B, P, P, 3] uint8, got {list(images.shape)} {images.dtype}"
            )
        x = images.permute(0, 3, 1, 2).to(torch.float32).div(255)
        edge = self.resize or self.size
        if x.shape[-2:] != (edge, edge):
            x = torch.nn.functional.interpolate(
                x, (edge, edge), mode=self.interpolation, antialias=True
            ).clamp(0, 1)
        margin = (edge - self.size) // 2
        x = x[..., margin : margin + self.size, margin : margin + self.size]
        mean, std = (x.new_tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std

    def describe(self) -> str:
        """Return a short description, such as ``224 px (256 bicubic, centre crop)``."""
        kind = self.interpolation
        return f"{self.size} px ({f'{self.resize} {kind}, centre crop' if self.resize else kind})"
