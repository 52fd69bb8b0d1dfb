"""The grid of a simulated slide, and fields on it.

Everything is a function of the position on the slide, in pixels of 0.5 µm, so that overlapping
patches show the same tissue. Fields ``[C, H, W]`` are sampled every ``STEP`` px and linear between.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates, uniform_filter

UM_PER_PX = 0.5
PITCH_UM = 100.0
PATCH_UM = 112.0
PITCH = PITCH_UM / UM_PER_PX
PATCH = round(PATCH_UM / UM_PER_PX)
STEP = 20  # px
BOX = round(PATCH / STEP)  # edge of a patch, grid steps

REGIONS = ("tumour", "stroma", "immune", "adipose")
STATES = ("cellularity", "infiltration", "collagen", "lumen")


def random_fields(
    rng: np.random.Generator, n: int, shape: tuple[int, ...], sigma: float, box: int
) -> np.ndarray:
    """Return ``[n, H, W]`` Gaussian random fields whose mean over ``box`` steps is N(0, 1)."""
    impulse = np.zeros(2 * int(4 * sigma + box) + 1)
    impulse[len(impulse) // 2] = 1
    kernel = gaussian_filter1d(impulse, sigma, mode="constant")
    seen = np.convolve(kernel, np.full(box, 1 / box), mode="same")
    white = rng.standard_normal((n, *shape), dtype=np.float32)
    # the filter is separable, so its norm in two dimensions is the square of that in one
    return gaussian_filter(white, (0, sigma, sigma), mode="wrap") / np.float32(np.sum(seen**2))


def interpolate(fields: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Return ``[N, C]`` values of ``fields [C, H, W]`` at pixels ``xy [N, 2]``, bilinear."""
    at = (xy[:, ::-1] / STEP).T
    return np.stack([map_coordinates(f, at, order=1, mode="nearest") for f in fields], axis=1)


def patch_means(fields: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return the mean of ``fields [C, H, W]`` over the patch of each centre, ``[N, C]``."""
    means = uniform_filter(fields, size=(1, BOX, BOX), mode="nearest")
    return interpolate(means, centres).astype(np.float64)
