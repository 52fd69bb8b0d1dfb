"""The colour of a slide's stain, from its patches."""

from __future__ import annotations

import numpy as np

# shares of a slide without any stained pixel, which stand for "none" in a file
NO_STAIN = np.zeros(3)
_STEP = 4  # pixels from one that is looked at to the next
_MIN_DENSITY = 0.15  # mean over colours; below is glass


class StainMeter:
    """Sums the optical densities of stained pixels, batch by batch.

    The optical density of a pixel is -log((I + 1) / 256) for red, green and blue (Ruifrok &
    Johnston 2001).
    """

    def __init__(self) -> None:
        self._sum = np.zeros(3)

    def add(self, images: np.ndarray) -> None:
        """Add patches ``[B, P, P, 3]`` uint8."""
        pixels = images[:, ::_STEP, ::_STEP].reshape(-1, 3)
        density = _DENSITIES[pixels]
        self._sum += density[density.mean(axis=1) >= _MIN_DENSITY].sum(axis=0)

    @property
    def shares(self) -> np.ndarray | None:
        """Shares ``[3]`` of red, green and blue in the density, None without stain."""
        total = float(self._sum.sum())
        return self._sum / total if total > 0 else None


_DENSITIES = -np.log((np.arange(256) + 1) / 256)
