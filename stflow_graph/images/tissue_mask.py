"""Tissue mask of an H&E slide: stain has a colour; glass, black pen and frames have none."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import median_filter

# of 255: glass of any cast is below the first, stained tissue above the second; in between the
# threshold depends on the slide
_LIMITS = (12, 24)
_DUST = 3  # edge of the median filter, px of the overview
# of glass under a coloured light: bright, even, and not of a stain's colour, which lacks green
_BRIGHT, _EVEN, _LACK_OF_GREEN = 200, 16, 8
_CAST = 8  # of tissue over the glass's own colour


def tissue_mask(overview: np.ndarray) -> np.ndarray:
    """Return the tissue mask of a reduced image of a slide.

    The colour of a pixel is max(R, G, B) - min(R, G, B), median-filtered against dust; tissue
    is above Otsu's threshold of it (1979), clipped to 12 .. 24 of 255: an empty slide has no tissue
    and one full of tissue has no hole. Where the pixels below the threshold are glass of a cast,
    tissue must exceed the cast, too, and the threshold may be higher.

    Args:
        overview: ``[height, width, 3]`` uint8.

    Returns:
        ``[height, width]`` bool.
    """
    colour = overview.max(axis=2) - overview.min(axis=2)
    colour = median_filter(colour, size=_DUST)
    threshold = otsu(np.bincount(colour.reshape(-1), minlength=256))
    cast = _cast_of_glass(overview[colour <= threshold])
    if cast is None:
        return colour > np.clip(threshold, *_LIMITS)
    return colour > max(threshold, _LIMITS[0], cast + _CAST)


def _cast_of_glass(pixels: np.ndarray) -> float | None:
    """Return the colour, max - min, of pixels ``[N, 3]`` if they are glass, else None."""
    if not len(pixels):
        return None
    low, (red, green, blue), high = np.percentile(pixels, (25, 50, 75), axis=0)
    even = (high - low).max() <= _EVEN and min(red, green, blue) >= _BRIGHT
    if not even or (red + blue) / 2 - green > _LACK_OF_GREEN:
        return None
    return float(max(red, green, blue) - min(red, green, blue))


def otsu(histogram: np.ndarray) -> int:
    """Return the highest value of the lower class that maximises the variance between classes.

    Args:
        histogram: ``[K]`` counts of the values 0 .. K - 1.
    """
    values = np.arange(len(histogram))
    below = np.cumsum(histogram, dtype=np.float64)
    total, mass = below[-1], np.cumsum(histogram * values, dtype=np.float64)
    above = total - below
    with np.errstate(invalid="ignore", divide="ignore"):
        between = (mass[-1] * below / total - mass) ** 2 / (below * above)
    return int(np.nan_to_num(between, nan=0.0, posinf=0.0).argmax())


def tissue_share(mask: np.ndarray, centres: np.ndarray, edge: float) -> np.ndarray:
    """Return the fraction of tissue in squares, ``[N]``.

    Args:
        mask: ``[height, width]`` bool.
        centres: ``[N, 2]`` of the squares, px of the mask (x, y).
        edge: of the squares, px of the mask.
    """
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    sums[1:, 1:] = mask.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    size = np.array(mask.shape[::-1])
    first = np.clip(np.rint(centres - edge / 2).astype(np.int64), 0, size - 1)
    last = np.clip(np.rint(centres + edge / 2).astype(np.int64), first + 1, size)
    (left, top), (right, bottom) = first.T, last.T
    inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return inside / ((right - left) * (bottom - top))
