"""A tissue model: which regions, states, openings and nuclei a simulated slide has, and where.

Everything is a function of the position on the slide, in pixels of 0.5 µm, so that patches which
overlap show the same tissue. ``histology.py`` draws it; ``gene_model.py`` gives it counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates, uniform_filter
from scipy.spatial import cKDTree

UM_PER_PX = 0.5
PITCH_UM = 100.0
PATCH_UM = 112.0
PITCH = PITCH_UM / UM_PER_PX
PATCH = round(PATCH_UM / UM_PER_PX)
# the fields are known on a square grid of this step, px, and linear between its points
STEP = 20

REGIONS = ("tumour", "stroma", "immune", "adipose")
STATES = ("cellularity", "infiltration", "collagen", "lumen")
NUCLEI = ("tumour", "epithelial", "lymphocyte", "spindle")

_REGION_SIGMA = 17.0  # grid steps; a region is several pitches wide
_STATE_SIGMA = 4.5  # grid steps; a state changes from one spot to the next
_REGION_BIAS = np.array([0.25, 0.25, -0.25, -0.85], np.float32)
_REGION_SHARPNESS = 7.0
_BOX = round(PATCH / STEP)

# nuclei: candidates a patch, the share that exists by region, and log-odds of lymphocytes
_NUCLEUS_SPACING = 13.0
_NUCLEUS_SHARE = np.array([0.27, 0.11, 0.62, 0.0])
_LYMPHOCYTE_LOGIT = np.array([-2.6, -1.2, 3.0, -2.0])
# openings: gland lumens in tumour, vessels elsewhere
_OPENING_SPACING = 116.0
_OPENING_LOGIT = np.array([-0.6, -1.2, -2.0, -6.0])
_OPENING_RADIUS = np.array([40.0, 23.0, 20.0, 20.0])
_HARMONICS = 3

RngFor = Callable[[str], np.random.Generator]


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
    """K lumens, each with a wall, of outline R(θ) = R₀ (1 + Σ_k a_k cos kθ + b_k sin kθ).

    Attributes:
        xy: ``[K, 2]`` int px.
        radius: ``[K]`` R₀, px.
        waves: ``[K, 3, 2]`` a_k and b_k, k = 2, 3, 4.
        lumen: ``[K]`` the lumen's share of the radius.
        gland: ``[K]`` True where an epithelium lines it.
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


@dataclasses.dataclass(frozen=True)
class Tissue:
    """One slide's tissue.

    Attributes:
        array: ``[N, 2]`` int, array row and column (columns doubled, as on Visium).
        centres: ``[N, 2]`` int64 px (x, y) of the spots' centres.
        regions: ``[4, H, W]`` float32 share of each of ``REGIONS`` on the grid, sum 1.
        states: ``[4, H, W]`` float32 fields of ``STATES``; a patch's mean is N(0, 1) over slides.
        depth_inside: ``[H, W]`` float32 px inside the tissue's outline, negative outside.
        warp: ``[2, H, W]`` float32 px by which the fibres' coordinates are displaced.
        fibre_angle: the fibres' direction before the displacement, rad.
        openings: lumens of glands and vessels.
        nuclei: all nuclei.
    """

    array: np.ndarray
    centres: np.ndarray
    regions: np.ndarray
    states: np.ndarray
    depth_inside: np.ndarray
    warp: np.ndarray
    fibre_angle: float
    openings: Openings
    nuclei: Nuclei

    def spot_regions(self) -> np.ndarray:
        """Return the share of each region in each spot's patch, ``[N, 4]``."""
        return _patch_means(self.regions, self.centres)

    def spot_states(self) -> np.ndarray:
        """Return the mean of each state over each spot's patch, ``[N, 4]``."""
        return _patch_means(self.states, self.centres)

    def spot_nuclei(self) -> np.ndarray:
        """Return the number of nuclei in each spot's patch, ``[N]``."""
        tree = cKDTree(self.nuclei.xy.reshape(-1, 2))
        return tree.query_ball_point(self.centres, PATCH / 2, p=np.inf, return_length=True)


def make_tissue(n_spots: int, rng_for: RngFor) -> Tissue:
    """Draw a slide's tissue at random.

    Args:
        n_spots: spots on the tissue, at least 1.
        rng_for: gives a fresh generator for a purpose, e.g. ``rng_for("nuclei")``.
    """
    array, lattice = _lattice(n_spots)
    shape = tuple(np.ceil(lattice.max(axis=0)[::-1] / STEP).astype(int) + 2 * round(PITCH / STEP))
    inside, chosen = _outline(lattice, n_spots, shape, rng_for("outline"))
    rng = rng_for("fields")
    regions = _softmax(
        _REGION_SHARPNESS
        * (_fields(rng, len(REGIONS), shape, _REGION_SIGMA, 1) + _REGION_BIAS[:, None, None])
    )
    states = _fields(rng, len(STATES), shape, _STATE_SIGMA, _BOX)
    warp = 110 * _fields(rng, 2, shape, 9.0, 1)
    angle = float(rng.uniform(0, np.pi))
    openings = _openings(regions, states, inside, rng_for("openings"))
    nuclei = _nuclei(
        regions, states, inside, openings, _fibre_directions(warp[1], angle), rng_for("nuclei")
    )
    centres = lattice[chosen]
    return Tissue(array[chosen], centres, regions, states, inside, warp, angle, openings, nuclei)


def neighbour_means(centres: np.ndarray, values: np.ndarray, n_rings: int) -> np.ndarray:
    """Return the mean of ``values [N, S]`` over the spots in rings 1..n of a hexagonal array.

    The spot itself is left out, and so are places of the array without a spot; a spot without
    neighbours gets 0.

    Args:
        centres: ``[N, 2]`` px.
        values: ``[N, S]``.
        n_rings: rings; ring n reaches n pitches, so 2 rings are the 18 nearest places.
    """
    # the pixel grid moves a centre by half a pixel; the next ring is 0.27 pitches or more away
    tree = cKDTree(centres)
    pairs = tree.query_pairs((n_rings + 0.05) * PITCH, output_type="ndarray")
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    total, count = np.zeros(values.shape), np.zeros(len(values))
    for here, there in (pairs.T, pairs.T[::-1]):
        np.add.at(total, here, values[there])
        np.add.at(count, here, 1)
    return total / np.maximum(count, 1)[:, None]


def _lattice(n_spots: int) -> tuple[np.ndarray, np.ndarray]:
    """Return array coordinates and px of a hexagonal array with room for an uneven outline."""
    row_pitch = PITCH * np.sqrt(3) / 2
    side = np.sqrt(2.4 * n_spots * PITCH * row_pitch) + 2 * PITCH
    row, place = np.mgrid[: int(np.ceil(side / row_pitch)), : int(np.ceil(side / PITCH))]
    row, column = row.reshape(-1), (2 * place + row % 2).reshape(-1)
    xy = np.stack([column * PITCH / 2, row * row_pitch], axis=1) + 2 * PITCH
    return np.stack([row, column], axis=1), np.rint(xy).astype(np.int64)


def _outline(
    lattice: np.ndarray, n_spots: int, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return px inside the outline on the grid, and the ``n_spots`` places that are inside."""
    centre = (lattice.min(axis=0) + lattice.max(axis=0)) / 2
    y, x = np.mgrid[: shape[0], : shape[1]] * float(STEP)
    x, y = x - centre[0], y - centre[1]
    angle = np.arctan2(y, x)
    k = np.arange(2, 7)[:, None, None]
    lobes = (rng.normal(0, 0.25, (5, 1, 1)) / k) * np.cos(
        k * angle + rng.uniform(0, 2 * np.pi, (5, 1, 1))
    )
    reach = np.exp(lobes.sum(0))
    size = np.sqrt(n_spots) * PITCH
    ragged = 0.06 * size * _fields(rng, 1, shape, 12.0, 1)[0]
    outside = np.hypot(x, y) / reach + ragged  # px; its level sets are uneven discs
    at_spots = _interpolate(outside[None], lattice)[:, 0]
    order = np.argsort(at_spots, kind="stable")
    edge = at_spots[order[n_spots - 1]] + 0.25 * PITCH
    return (edge - outside).astype(np.float32), np.sort(order[:n_spots])


def _fields(
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


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(axis=0))
    return shares / shares.sum(axis=0)


def _interpolate(fields: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Return ``[N, C]`` values of ``fields [C, H, W]`` at pixels ``xy [N, 2]``, bilinear."""
    places = (xy[:, ::-1] / STEP).T
    return np.stack([map_coordinates(f, places, order=1, mode="nearest") for f in fields], axis=1)


def _patch_means(fields: np.ndarray, centres: np.ndarray) -> np.ndarray:
    means = uniform_filter(fields, size=(1, _BOX, _BOX), mode="nearest")
    return _interpolate(means, centres).astype(np.float64)


def _scatter(shape: tuple[int, ...], spacing: float, rng: np.random.Generator) -> np.ndarray:
    """Return ``[M, 2]`` px all over the grid, about ``spacing`` apart."""
    y, x = (np.arange(0, n * STEP, spacing) for n in shape)
    xy = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    return xy + rng.uniform(-0.4, 0.4, xy.shape) * spacing


def _openings(
    regions: np.ndarray, states: np.ndarray, inside: np.ndarray, rng: np.random.Generator
) -> Openings:
    xy = _scatter(inside.shape, _OPENING_SPACING, rng)
    share = _interpolate(regions, xy)
    lumen = _interpolate(states[STATES.index("lumen")][None], xy)[:, 0]
    logit = share @ _OPENING_LOGIT + 1.8 * lumen
    exists = rng.uniform(size=len(xy)) < 1 / (1 + np.exp(-logit))
    exists &= _interpolate(inside[None], xy)[:, 0] > 30
    gland = rng.uniform(size=len(xy)) < share[:, 0]
    radius = share @ _OPENING_RADIUS * np.exp(rng.normal(0, 0.18, len(xy)))
    # a gland opens with the state; a vessel is nearly all lumen
    opened = np.where(gland, 0.45 + 0.1 * np.tanh(lumen), 0.8)
    waves = rng.normal(0, 0.06, (len(xy), _HARMONICS, 2))
    exists[_second_of_pairs(xy, exists, radius)] = False
    pixel = np.rint(xy).astype(np.int64)
    return Openings(*(part[exists] for part in (pixel, radius, waves, opened, gland)))


def _second_of_pairs(xy: np.ndarray, exists: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Return the later one of each two openings that would overlap."""
    rows = np.flatnonzero(exists)
    if not len(rows):
        return rows
    pairs = rows[cKDTree(xy[rows]).query_pairs(2.4 * radius.max(), output_type="ndarray")]
    first, second = pairs.min(axis=1), pairs.max(axis=1)
    distance = np.linalg.norm(xy[first] - xy[second], axis=1)
    return second[distance < 1.2 * (radius[first] + radius[second])]


def _fibre_directions(warp: np.ndarray, angle: float) -> np.ndarray:
    """Return the fibres' angle on the grid: along the level lines of v = −x sin + y cos + warp."""
    along_y, along_x = np.gradient(warp, STEP)
    return np.arctan2(np.sin(angle) - along_x, np.cos(angle) + along_y)


def _nuclei(
    regions: np.ndarray,
    states: np.ndarray,
    inside: np.ndarray,
    openings: Openings,
    fibres: np.ndarray,
    rng: np.random.Generator,
) -> Nuclei:
    xy = _scatter(inside.shape, _NUCLEUS_SPACING, rng)
    xy = xy[_interpolate(inside[None], xy)[:, 0] > 0]
    share = _interpolate(regions, xy)
    state = dict(zip(STATES, _interpolate(states, xy).T, strict=True))
    lymphocyte = 1 / (1 + np.exp(-share @ _LYMPHOCYTE_LOGIT - 1.6 * state["infiltration"]))
    density = share @ _NUCLEUS_SHARE * np.exp(0.5 * state["cellularity"]) * (0.75 + lymphocyte)
    exists = (rng.uniform(size=len(xy)) < density) & ~_within(openings, xy)
    # fat cells are drawn as one empty mosaic, which has no place for nuclei
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
    """Return for each of ``xy [M, 2]`` whether it lies in the nearest opening or on its wall."""
    if not len(openings.xy):
        return np.zeros(len(xy), dtype=bool)
    distance, nearest = cKDTree(openings.xy).query(xy)
    cosine, sine = (xy - openings.xy[nearest]).T / np.maximum(distance, 1e-6)
    return distance < 1.1 * openings.outline(nearest, cosine, sine)


def _lining(
    openings: Openings, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return place, kind and angle of the nuclei in the walls: a ring around each opening."""
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
