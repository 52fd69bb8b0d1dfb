import dataclasses
import zlib
from functools import cache, partial

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.stats import spearmanr

from stflow_graph.simulation.fields import PATCH, PITCH, STATES, STEP
from stflow_graph.simulation.structures import NUCLEI
from stflow_graph.simulation.tissue import Tissue, make_tissue, neighbour_means


def rng_for(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


@cache
def tissue(n_spots: int = 300, seed: int = 0) -> Tissue:
    return make_tissue(n_spots, partial(rng_for, seed))


def array_distance(array: np.ndarray) -> np.ndarray:
    """Steps between places of a hexagonal array whose columns are doubled, [N, N]."""
    row, column = np.abs(array[:, None] - array[None]).transpose(2, 0, 1)
    return row + np.maximum(0, column - row) // 2


@pytest.mark.parametrize("n_spots", [1, 2, 7, 300])
def test_spots_are_as_many_as_asked_and_lie_on_a_hexagonal_array_in_tissue(n_spots):
    slide = tissue(n_spots)
    assert slide.centres.shape == slide.array.shape == (n_spots, 2)
    assert len(np.unique(slide.centres, axis=0)) == n_spots
    steps = array_distance(slide.array)
    px = np.linalg.norm(slide.centres[:, None] - slide.centres[None], axis=-1)
    np.testing.assert_allclose(px[steps == 1], PITCH, atol=1)
    assert (px[steps > 1] > 1.7 * PITCH).all()
    x, y = np.rint(slide.centres / STEP).astype(int).T
    assert (slide.depth_inside[y, x] > -STEP).all()


def test_outline_is_not_a_rectangle():
    slide = tissue()
    rows, columns = np.ptp(slide.array, axis=0)
    assert (rows + 1) * (columns + 1) / 2 > 1.2 * len(slide.array)


def test_regions_share_every_place():
    np.testing.assert_allclose(tissue().regions.sum(axis=0), 1, atol=1e-5)
    assert (tissue().spot_regions() >= 0).all()


def test_states_are_standard_normal_over_slides_and_rough():
    slides = [tissue(seed=seed) for seed in range(6)]
    states = np.concatenate([slide.spot_states() for slide in slides])
    np.testing.assert_allclose(states.mean(axis=0), 0, atol=0.15)
    np.testing.assert_allclose(states.std(axis=0), 1, atol=0.12)
    around = np.concatenate([neighbour_means(s.centres, s.spot_states(), 2) for s in slides])
    for state in range(len(STATES)):
        # else a spot's own state would stand in for its neighbours'
        assert 0.1 < np.corrcoef(states[:, state], around[:, state])[0, 1] < 0.6


def test_spot_state_is_the_mean_over_the_patch():
    slide = tissue()
    x, y = slide.centres[10]
    offsets = np.arange(-PATCH // 2, PATCH // 2) + 0.5
    row, column = (np.clip((c + offsets) / STEP, 0, None) for c in (y, x))
    r, c = np.floor(row).astype(int), np.floor(column).astype(int)
    down, across = (row - r)[:, None], column - c
    field = slide.states[0]
    dense = (1 - down) * ((1 - across) * field[np.ix_(r, c)] + across * field[np.ix_(r, c + 1)])
    dense += down * ((1 - across) * field[np.ix_(r + 1, c)] + across * field[np.ix_(r + 1, c + 1)])
    assert slide.spot_states()[10, 0] == pytest.approx(dense.mean(), abs=0.05)


@pytest.mark.parametrize("n_rings", [1, 2, 3])
def test_neighbour_means_are_those_of_the_array(n_rings):
    slide = tissue()
    values = np.random.default_rng(0).normal(size=(len(slide.array), 3))
    steps = array_distance(slide.array)
    near = (steps >= 1) & (steps <= n_rings)
    assert near.sum(axis=1).max() == 3 * n_rings * (n_rings + 1)
    expected = near @ values / np.maximum(near.sum(axis=1), 1)[:, None]
    np.testing.assert_allclose(
        neighbour_means(slide.centres, values, n_rings), expected, atol=1e-12
    )


def test_spot_without_neighbours_has_a_mean_of_zero():
    far = np.array([[0, 0], [5000, 0]])
    np.testing.assert_array_equal(neighbour_means(far, np.ones((2, 1)), 2), np.zeros((2, 1)))


def test_nuclei_are_counted_in_the_patch():
    slide = tissue()
    inside = np.abs(slide.nuclei.xy[None] - slide.centres[:, None]).max(axis=-1) <= PATCH / 2
    np.testing.assert_array_equal(slide.spot_nuclei(), inside.sum(axis=1))
    empty = dataclasses.replace(slide.nuclei, xy=np.zeros((0, 2), dtype=np.int64))
    assert not dataclasses.replace(slide, nuclei=empty).spot_nuclei().any()


def test_states_show_in_the_nuclei_and_openings():
    slides = [tissue(seed=seed) for seed in range(3)]
    state = dict(zip(STATES, np.concatenate([s.spot_states() for s in slides]).T, strict=True))
    half = PATCH / 2 + 40

    def count(slide, xy):
        return cKDTree(xy).query_ball_point(slide.centres, half, p=np.inf, return_length=True)

    lymphocytes = np.concatenate(
        [count(s, s.nuclei.xy[s.nuclei.kind == NUCLEI.index("lymphocyte")]) for s in slides]
    )
    outside_follicles = np.concatenate([s.spot_regions()[:, 2] < 0.1 for s in slides])
    nuclei = np.concatenate([s.spot_nuclei() for s in slides])
    openings = np.concatenate([count(s, s.openings.xy) for s in slides])
    for seen, name in [
        (lymphocytes, "infiltration"),
        (nuclei, "cellularity"),
        (openings, "lumen"),
    ]:
        rank = spearmanr(seen[outside_follicles], state[name][outside_follicles]).statistic
        assert rank > 0.2, name


def test_lumens_hold_no_nuclei_and_do_not_overlap():
    slide = tissue()
    openings = slide.openings
    distance, nearest = cKDTree(openings.xy).query(slide.nuclei.xy)
    assert (distance > 0.3 * openings.radius[nearest]).all()
    apart = cKDTree(openings.xy).query(openings.xy, k=2)[0][:, 1]
    assert (apart > 1.2 * openings.radius).all()
