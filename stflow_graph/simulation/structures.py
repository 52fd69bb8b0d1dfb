"""Openings (glands and vessels) and nuclei of a simulated slide, placed at random by its fields."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.spatial import cKDTree

from stflow_graph.simulation.fields import REGIONS, STATES, STEP, interpolate

NUCLEI = ("tumour", "epithelial", "lymphocyte", "spindle")

# nuclei: spacing of candidates (px), the fraction kept by region, and log-odds of lymphocytes
_NUCLEUS_SPACING = 13.0
_NUCLEUS_SHARE = np.array([0.27, 0.11, 0.62, 0.0])
_LYMPHOCYTE_LOGIT = np.array([-2.6, -1.2, 3.0, -2.0])
# openings: gland lumens in tumour, vessels elsewhere
_OPENING_SPACING = 116.0
_OPENING_LOGIT = np.array([-0.6, -1.2, -2.0, -6.0])
_OPENING_RADIUS = np.array([40.0, 23.0, 20.0, 20.0])
_HARMONICS = 3


@dataclasses.dataclass(frozen=True)
class Nuclei:
    """M nuclei: ``xy [M, 2]`` int px, ``kind [M]`` into ``NUCLEI``, ``angle [M]`` rad, ``variant``.

    ``variant [M]`` in [0, 1) picks one of the shapes of a kind.
    """

    xy: np.ndarray
    kind: np.ndarray
    angle: np.ndarray
    variant: np.ndarray


@dataclasses.dataclass(frozen=True)
class Openings:
    """K lumens with walls, of outline R(θ) = R₀ (1 + Σ_k a_k cos kθ + b_k sin kθ).

    Attributes:
        xy: ``[K, 2]`` int px.
        radius: ``[K]`` R₀, px.
        waves: ``[K, 3, 2]`` a_k and b_k, k = 2, 3, 4.
        lumen: ``[K]`` the lumen's share of the radius.
        gland: ``[K]`` True for glands, which are lined by an epithelium.
    """

    xy: np.ndarray
    radius: np.ndarray
    waves: np.ndarray
    lumen: np.ndarray
    gland: np.ndarray

    def outline(self, which: np.ndarray | int, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
        """Return R(θ) in px of the openings ``which`` from cos θ and sin θ; shapes broadcast."""
        ripple, c, s = np.zeros(np.shape(cosine)), cosine, sine
        for k in range(_HARMONICS):
            c, s = c * cosine - s * sine, s * cosine + c * sine
            a, b = self.waves[which, k].T
            ripple += a * c + b * s
        return self.radius[which] * (1 + ripple)


def _scatter(shape: tuple[int, ...], spacing: float, rng: np.random.Generator) -> np.ndarray:
    """Return ``[M, 2]`` px all over the grid, about ``spacing`` apart."""
    y, x = (np.arange(0, n * STEP, spacing) for n in shape)
    xy = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    return xy + rng.uniform(-0.4, 0.4, xy.shape) * spacing


def place_openings(
    regions: np.ndarray, states: np.ndarray, inside: np.ndarray, rng: np.random.Generator
) -> Openings:
    """Place openings at random.

    Args:
        regions: ``[4, H, W]`` shares of ``REGIONS``.
        states: ``[4, H, W]`` of ``STATES``.
        inside: ``[H, W]`` px inside the tissue's outline.
        rng: source of randomness.
    """
    xy = _scatter(inside.shape, _OPENING_SPACING, rng)
    share = interpolate(regions, xy)
    lumen = interpolate(states[STATES.index("lumen")][None], xy)[:, 0]
    logit = share @ _OPENING_LOGIT + 1.8 * lumen
    exists = rng.uniform(size=len(xy)) < 1 / (1 + np.exp(-logit))
    exists &= interpolate(inside[None], xy)[:, 0] > 30
    gland = rng.uniform(size=len(xy)) < share[:, 0]
    radius = share @ _OPENING_RADIUS * np.exp(rng.normal(0, 0.18, len(xy)))
    # a gland opens with the state; a vessel is nearly all lumen
    opened = np.where(gland, 0.45 + 0.1 * np.tanh(lumen), 0.8)
    waves = rng.normal(0, 0.06, (len(xy), _HARMONICS, 2))
    exists[_second_of_pairs(xy, exists, radius)] = False
    pixel = np.rint(xy).astype(np.int64)
    return Openings(*(part[exists] for part in (pixel, radius, waves, opened, gland)))


def _second_of_pairs(xy: np.ndarray, exists: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Return the second opening of every pair that would overlap."""
    rows = np.flatnonzero(exists)
    if not len(rows):
        return rows
    pairs = rows[cKDTree(xy[rows]).query_pairs(2.4 * radius.max(), output_type="ndarray")]
    first, second = pairs.min(axis=1), pairs.max(axis=1)
    distance = np.linalg.norm(xy[first] - xy[second], axis=1)
    return second[distance < 1.2 * (radius[first] + radius[second])]


def place_nuclei(
    regions: np.ndarray,
    states: np.ndarray,
    inside: np.ndarray,
    openings: Openings,
    fibres: np.ndarray,
    rng: np.random.Generator,
) -> Nuclei:
    """Place nuclei at random; arguments as of :func:`place_openings`, and ``fibres [H, W]`` rad."""
    xy = _scatter(inside.shape, _NUCLEUS_SPACING, rng)
    xy = xy[interpolate(inside[None], xy)[:, 0] > 0]
    share = interpolate(regions, xy)
    state = dict(zip(STATES, interpolate(states, xy).T, strict=True))
    lymphocyte = 1 / (1 + np.exp(-share @ _LYMPHOCYTE_LOGIT - 1.6 * state["infiltration"]))
    density = share @ _NUCLEUS_SHARE * np.exp(0.5 * state["cellularity"]) * (0.75 + lymphocyte)
    exists = (rng.uniform(size=len(xy)) < density) & ~_within(openings, xy)
    # fat cells are drawn as one empty mosaic without nuclei
    exists &= share[:, REGIONS.index("adipose")] < 0.6
    is_lymphocyte = rng.uniform(size=len(xy)) < lymphocyte
    in_tumour = rng.uniform(size=len(xy)) < share[:, 0] / np.maximum(1 - share[:, 2], 0.05)
    kind = np.where(
        is_lymphocyte,
        NUCLEI.index("lymphocyte"),
        np.where(in_tumour, NUCLEI.index("tumour"), NUCLEI.index("spindle")),
    )
    grid = np.clip(np.rint(xy / STEP).astype(int), 0, np.array(inside.shape)[::-1] - 1)
    along = fibres[grid[:, 1], grid[:, 0]] + rng.normal(0, 0.2, len(xy))
    angle = np.where(kind == NUCLEI.index("spindle"), along, rng.uniform(0, np.pi, len(xy)))
    lining = _lining(openings, rng)
    loose = (xy[exists], kind[exists], angle[exists])
    xy, kind, angle = (np.concatenate(parts) for parts in zip(loose, lining, strict=True))
    return Nuclei(np.rint(xy).astype(np.int64), kind, angle, rng.uniform(size=len(xy)))


def _within(openings: Openings, xy: np.ndarray) -> np.ndarray:
    """Return whether ``xy [M, 2]`` lie in the nearest opening or on its wall, ``[M]`` bool."""
    if not len(openings.xy):
        return np.zeros(len(xy), dtype=bool)
    distance, nearest = cKDTree(openings.xy).query(xy)
    cosine, sine = (xy - openings.xy[nearest]).T / np.maximum(distance, 1e-6)
    return distance < 1.1 * openings.outline(nearest, cosine, sine)


def _lining(
    openings: Openings, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return position, kind and angle of the nuclei in walls: a ring around each opening."""
    # an epithelium stands close, each nucleus pointing to the lumen; an endothelium lies flat
    middle = np.where(openings.gland, 0.5 + 0.5 * openings.lumen, 0.95)
    spacing = np.where(openings.gland, 10.0, 26.0)
    count = np.maximum(3, 2 * np.pi * middle * openings.radius / spacing).astype(int)
    which = np.repeat(np.arange(len(count)), count)
    place = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    turn = 2 * np.pi * (place + rng.uniform(-0.25, 0.25, len(which))) / count[which]
    way = np.stack([np.cos(turn), np.sin(turn)])
    reach = middle[which] * openings.outline(which, *way) + rng.normal(0, 1.2, len(which))
    xy = openings.xy[which] + (reach * way).T
    gland = openings.gland[which]
    kind = np.where(gland, NUCLEI.index("epithelial"), NUCLEI.index("spindle"))
    return xy, kind, np.where(gland, turn, turn + np.pi / 2)
