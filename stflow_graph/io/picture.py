"""A slide's reduced image to draw spots on, as scanpy and squidpy expect it in ``uns``."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.coords import median_pitch

# of the distance between spots, as on a Visium array: 55 of 100 µm
_SPOT = 0.55


def spot_diameter(coords: np.ndarray) -> float:
    """Return the diameter to draw spots with, at least 1 px: no file states that of a prediction.

    Args:
        coords: ``[N, 2]`` pixels.
    """
    return max(1.0, _SPOT * (median_pitch(coords) if len(coords) > 1 else 100.0))


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image reduced by a whole number.

    Attributes:
        pixels: ``[h, w, 3]`` uint8.
        factor: pixels of the image per pixel, along both axes.
        size: width and height of the image, px.
        file: the image.
    """

    pixels: np.ndarray
    factor: int
    size: tuple[int, int]
    file: str

    def library(self, coords: np.ndarray) -> dict[str, Any]:
        """Return the content of ``uns["spatial"][<slide>]`` of an AnnData with these spots.

        Spots are drawn with 0.55 of the median distance to the nearest other spot.

        Args:
            coords: ``[N, 2]`` spots in pixels of the image (x, y).

        Raises:
            BadInput: spots outside the image, which is then another slide's or another scale's.
        """
        outside = ((coords < 0) | (coords > np.array(self.size))).any(axis=1)
        if outside.any():
            low, high = coords.min(axis=0).round(), coords.max(axis=0).round()
            found = unquoted(
                f"{self.size[0]} x {self.size[1]} px, {outside.sum()} of {len(coords)} spots "
                f"outside (x {low[0]:.0f} to {high[0]:.0f}, y {low[1]:.0f} to {high[1]:.0f})"
            )
            fix = "give the image that the spots were placed on, at full resolution"
            raise BadInput(self.file, "size", found, "an image that holds all spots", fix)
        scales = {
            "tissue_hires_scalef": 1 / self.factor,
            "spot_diameter_fullres": spot_diameter(coords),
        }
        return {"images": {"hires": self.pixels}, "scalefactors": scales}
