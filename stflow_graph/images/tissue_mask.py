"""Tissue mask of an H&E slide: stain has a colour; glass, black pen and frames have none."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import label, median_filter, uniform_filter

# of 255: glass of any cast is below the first, stained tissue above the second; in between the
# threshold depends on the slide
_LIMITS = (12, 24)
# of 255: as bright as the slide's glass is what is less than the first below it; there tissue
# varies by more than the second between neighbouring pixels, glass tinted by eosin by one or two
_AS_BRIGHT, _MIN_DEVIATION = 12, 3.5
_BRIGHT = 180  # of 255: darker ones without colour are frames and pen
_SOME_GLASS = 0.02  # of the image; less may be noise
# of glass under a coloured light, which is even and not of a stain's colour, which lacks green; and
# of tissue over such a cast
_EVEN, _LACK_OF_GREEN, _OVER_CAST = 16, 8, 8
_DUST, _NEIGHBOURS = 3, 5  # edge of the median filter, and of that for deviations, px
# what is smaller than both is a speck: pixels, and of a patch
_SPECK_PX, _SPECK_SHARE = 60, 0.25


def tissue_mask(overview: np.ndarray, edge: float = 16.0) -> np.ndarray:
    """Return the tissue mask of a reduced image of a slide.

    The colour of a pixel is max(R, G, B) - min(R, G, B), median-filtered against dust; tissue
    is above Otsu's threshold of it (1979), clipped to 12 .. 24 of 255: an empty slide has no tissue
    and one full of tissue has no hole; where a coloured light has cast a tint on the glass, tissue
    exceeds the tint. What is as bright as the slide's glass and as smooth is glass too, though
    eosin may have tinted it. Specks far smaller than a patch, such as debris, are left out.

    Args:
        overview: ``[height, width, 3]`` uint8, best of some 5 to 20 µm a pixel.
        edge: of a patch, px of it.

    Returns:
        ``[height, width]`` bool.
    """
    light = overview.max(axis=2)
    colour = median_filter(light - overview.min(axis=2), size=_DUST)
    mask: np.ndarray = colour > _threshold(overview, colour)
    glass = light[~mask & (light >= _BRIGHT)]
    if len(glass) > _SOME_GLASS * mask.size:
        bright = median_filter(light, size=_DUST) >= np.median(glass) - _AS_BRIGHT
        mask &= ~bright | (_deviation(light) > _MIN_DEVIATION)
    return _without_specks(mask, min(_SPECK_PX, _SPECK_SHARE * edge**2))


def _without_specks(mask: np.ndarray, min_px: float) -> np.ndarray:
    """Return a mask without its parts, joined by edges or corners, of under ``min_px`` pixels."""
    parts, _ = label(mask, structure=np.ones((3, 3)))
    large = np.bincount(parts.reshape(-1)) >= min_px
    large[0] = False  # what is not in the mask
    kept: np.ndarray = large[parts]
    return kept


def _threshold(overview: np.ndarray, colour: np.ndarray) -> float:
    """Return the colour of 255 that tissue exceeds, which glass may have under a coloured light."""
    threshold = otsu(np.bincount(colour.reshape(-1), minlength=256))
    cast = _cast_of_glass(overview[colour <= threshold])
    if cast is None:
        return float(np.clip(threshold, *_LIMITS))
    return max(threshold, _LIMITS[0], cast + _OVER_CAST)


def _cast_of_glass(pixels: np.ndarray) -> float | None:
    """Return the colour, max - min, of pixels ``[N, 3]`` if they are glass, else None."""
    if not len(pixels):
        return None
    low, (red, green, blue), high = np.percentile(pixels, (25, 50, 75), axis=0)
    even = (high - low).max() <= _EVEN and min(red, green, blue) >= _BRIGHT
    if not even or (red + blue) / 2 - green > _LACK_OF_GREEN:
        return None
    return float(max(red, green, blue) - min(red, green, blue))


def _deviation(light: np.ndarray) -> np.ndarray:
    """Return the standard deviation about each pixel, ``[height, width]``."""
    values = light.astype(np.float32)
    mean = uniform_filter(values, _NEIGHBOURS)
    variance = uniform_filter(values**2, _NEIGHBOURS) - mean**2
    return np.sqrt(np.maximum(variance, 0))


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
