"""A tissue model: the regions, states, openings and nuclei of a simulated slide, and its spots.

``histology.py`` draws it; ``gene_model.py`` gives it counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.spatial import cKDTree

from stflow_graph.simulation.fields import (
    BOX,
    PATCH,
    PITCH,
    REGIONS,
    STATES,
    STEP,
    interpolate,
    patch_means,
    random_fields,
)
from stflow_graph.simulation.structures import Nuclei, Openings, place_nuclei, place_openings

_REGION_SIGMA = 17.0  # grid steps; a region is several pitches wide
_STATE_SIGMA = 4.5  # grid steps; a state changes from one spot to the next
_REGION_BIAS = np.array([0.25, 0.25, -0.25, -0.85], np.float32)
_REGION_SHARPNESS = 7.0

RngFor = Callable[[str], np.random.Generator]


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
        return patch_means(self.regions, self.centres)

    def spot_states(self) -> np.ndarray:
        """Return the mean of each state over each spot's patch, ``[N, 4]``."""
        return patch_means(self.states, self.centres)

    def spot_nuclei(self) -> np.ndarray:
        """Return the number of nuclei in each spot's patch, ``[N]``."""
        tree = cKDTree(self.nuclei.xy.reshape(-1, 2))
        return tree.query_ball_point(self.centres, PATCH / 2, p=np.inf, return_length=True)


def make_tissue(n_spots: int, rng_for: RngFor) -> Tissue:
    """Draw a slide's tissue at random.

    Args:
        n_spots: spots on the tissue, at least 1.
        rng_for: returns a fresh generator for a purpose, such as ``rng_for("nuclei")``.
    """
    array, lattice = _lattice(n_spots)
    shape = tuple(np.ceil(lattice.max(axis=0)[::-1] / STEP).astype(int) + 2 * round(PITCH / STEP))
    inside, chosen = _outline(lattice, n_spots, shape, rng_for("outline"))
    rng = rng_for("fields")
    regions = _softmax(
        _REGION_SHARPNESS
        * (random_fields(rng, len(REGIONS), shape, _REGION_SIGMA, 1) + _REGION_BIAS[:, None, None])
    )
    states = random_fields(rng, len(STATES), shape, _STATE_SIGMA, BOX)
    warp = 110 * random_fields(rng, 2, shape, 9.0, 1)
    angle = float(rng.uniform(0, np.pi))
    openings = place_openings(regions, states, inside, rng_for("openings"))
    nuclei = place_nuclei(
        regions, states, inside, openings, _fibre_directions(warp[1], angle), rng_for("nuclei")
    )
    centres = lattice[chosen]
    return Tissue(array[chosen], centres, regions, states, inside, warp, angle, openings, nuclei)


def neighbour_means(centres: np.ndarray, values: np.ndarray, n_rings: int) -> np.ndarray:
    """Return the mean of ``values [N, S]`` over the spots in rings 1..n of a hexagonal array.

    The spot itself and array positions without a spot are left out; without neighbours the mean
    is 0.

    Args:
        centres: ``[N, 2]`` px.
        values: ``[N, S]``.
        n_rings: rings; ring n reaches n pitches, so 2 rings are the 18 nearest positions.
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
    """Return array coordinates and px of a hexagonal array, large enough for an uneven outline."""
    row_pitch = PITCH * np.sqrt(3) / 2
    side = np.sqrt(2.4 * n_spots * PITCH * row_pitch) + 2 * PITCH
    row, place = np.mgrid[: int(np.ceil(side / row_pitch)), : int(np.ceil(side / PITCH))]
    row, column = row.reshape(-1), (2 * place + row % 2).reshape(-1)
    xy = np.stack([column * PITCH / 2, row * row_pitch], axis=1) + 2 * PITCH
    return np.stack([row, column], axis=1), np.rint(xy).astype(np.int64)


def _outline(
    lattice: np.ndarray, n_spots: int, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return px inside the outline on the grid, and the rows of the ``n_spots`` points inside."""
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
    ragged = 0.06 * size * random_fields(rng, 1, shape, 12.0, 1)[0]
    outside = np.hypot(x, y) / reach + ragged  # px; its level sets are uneven discs
    at_spots = interpolate(outside[None], lattice)[:, 0]
    order = np.argsort(at_spots, kind="stable")
    edge = at_spots[order[n_spots - 1]] + 0.25 * PITCH
    return (edge - outside).astype(np.float32), np.sort(order[:n_spots])


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(axis=0))
    return shares / shares.sum(axis=0)


def _fibre_directions(warp: np.ndarray, angle: float) -> np.ndarray:
    """Return the fibres' angle on the grid: along the level lines of v = −x sin + y cos + warp."""
    along_y, along_x = np.gradient(warp, STEP)
    return np.arctan2(np.sin(angle) - along_x, np.cos(angle) + along_y)
