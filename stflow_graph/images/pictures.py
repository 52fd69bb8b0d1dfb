"""A slide's image made small, to draw spots on: what scanpy and squidpy look for in ``uns``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.images.open import open_image

LONGEST_EDGE = 2000
# of the distance between spots, as on a Visium array: 55 of 100 µm
_SPOT = 0.55


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image reduced by a whole number.

    Attributes:
        pixels: ``[h, w, 3]`` uint8, at most ``LONGEST_EDGE`` px wide and high.
        factor: pixels of the image that one of these stands for, each way.
        size: width and height of the image, px.
        file: the image.
    """

    pixels: np.ndarray
    factor: int
    size: tuple[int, int]
    file: str

    def library(self, coords: np.ndarray) -> dict[str, Any]:
        """Return what belongs in ``uns["spatial"][<slide>]`` of an AnnData with these spots.

        The spots' diameter, which no file tells, is drawn as 0.55 of the median distance to the
        nearest other spot.

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
        pitch = 100.0
        if len(coords) > 1:
            pitch = float(np.median(cKDTree(coords).query(coords, k=2)[0][:, 1]))
        scales = {
            "tissue_hires_scalef": 1 / self.factor,
            "spot_diameter_fullres": max(1.0, _SPOT * pitch),
        }
        return {"images": {"hires": self.pixels}, "scalefactors": scales}


def read_picture(path: str | Path, longest_edge: int = LONGEST_EDGE) -> Picture:
    """Read an image and reduce it by a whole number, from the fitting level of a pyramid.

    Args:
        path: what ``images.open.open_image`` opens.
        longest_edge: most pixels of the result's longer side.

    Raises:
        BadInput: not such an image.
    """
    with open_image(path) as reader:
        factor = -(-max(reader.size) // longest_edge)
        return Picture(reader.read_overview(factor), factor, reader.size, str(path))
