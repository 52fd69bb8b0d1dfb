from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from slides import ARRAYS, array, motion, noise, seeded

from stflow_graph.errors import MissingDependency
from stflow_graph.graph import nearest_neighbors, spot_pitch
from stflow_graph.graph.backends import BACKENDS, is_available, make_search
from stflow_graph.graph.grid_search import GridSearch
from stflow_graph.graph.neighbors import in_pitches
from stflow_graph.graph.tree_search import TreeSearch

SEARCHERS = [
    pytest.param(
        name, marks=pytest.mark.skipif(not is_available(name), reason=f"{name} is not installed")
    )
    for name in BACKENDS
    if name != "auto"
]


def brute_force(pos: np.ndarray, k: int, slack: float) -> dict[tuple[int, int], float]:
    """Return {(target, source): weight} by sorting all distances of each spot."""
    edges = {}
    for i in range(len(pos)):
        d = np.sqrt(((pos - pos[i]) ** 2).sum(1))
        others = [j for j in range(len(pos)) if j != i]
        if not others:
            continue
        d_k = sorted(d[others])[min(k, len(others)) - 1]
        for j in others:
            if d[j] == d_k or d[j] < (1 + slack) * d_k:
                u = min(1.0, (1 + slack - d[j] / max(d_k, 1e-300)) / slack)
                edges[i, j] = u * u * (3 - 2 * u)
    return edges


positions = st.integers(1, 30).flatmap(
    # a coarse grid, so that ties and duplicates are common
    lambda n: arrays(np.float64, (n, 2), elements=st.integers(0, 5).map(float))
)


@pytest.mark.parametrize("backend", SEARCHERS)
@given(pos=positions, k=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_edges_equal_brute_force_for_every_backend(backend, pos, k):
    near = nearest_neighbors(torch.tensor(pos), k, slack=0.1, backend=backend)
    source, target = near.edge_index.tolist()
    edges = dict(zip(zip(target, source, strict=True), near.weight.tolist(), strict=True))
    expected = brute_force(pos, k, 0.1)
    assert edges.keys() == expected.keys()
    for edge, weight in expected.items():
        assert edges[edge] == pytest.approx(weight, abs=1e-9)
    assert sorted(zip(target, source, strict=True)) == list(zip(target, source, strict=True))


@pytest.mark.parametrize("backend", SEARCHERS)
@pytest.mark.parametrize("slack", [0.0, 0.1])
def test_every_backend_gives_the_same_edges(backend, slack):
    """On arrays with more ties than candidates, off the origin, and for k beyond the spots."""
    heap = torch.cat([array("hexagonal", 6), torch.full((30, 2), 2.2).double()])
    jittered = array("jittered", 15) * 163 + 4e4
    for pos in (array("hexagonal", 9), jittered, heap, torch.rand(5, 2, generator=seeded())):
        for k in (1, 6, 8, 40):
            expected = nearest_neighbors(pos, k, slack=slack, backend="scipy")
            actual = nearest_neighbors(pos, k, slack=slack, backend=backend)
            assert torch.equal(actual.edge_index, expected.edge_index)
            assert torch.equal(actual.weight, expected.weight)


@pytest.mark.parametrize("backend", SEARCHERS)
@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("k", [1, 8, 60])
def test_a_search_in_other_units_gives_the_same_edges(backend, kind, k):
    pos = array(kind) * 163.3 + 4e4
    unit, search = in_pitches(pos, k, backend)
    assert torch.equal(unit, pos / spot_pitch(pos))
    actual, expected = (
        nearest_neighbors(unit, k, same_place=1e-3, search=each) for each in (search, None)
    )
    assert torch.equal(actual.edge_index, expected.edge_index)
    assert torch.equal(actual.weight, expected.weight)


def test_a_missing_backend_is_reported_with_the_fix(monkeypatch):
    monkeypatch.setattr("stflow_graph.graph.backends.is_available", lambda _: False)
    with pytest.raises(MissingDependency, match=r"torch-cluster.* not installed.*scipy"):
        nearest_neighbors(array("hexagonal", 3), 2, backend="torch-cluster")


@pytest.mark.parametrize(("is_cuda", "expected"), [(False, "TreeSearch"), (True, "GridSearch")])
def test_auto_never_compares_all_pairs(monkeypatch, is_cuda, expected):
    """A million spots would take minutes on a GPU."""
    for maker in ("TreeSearch", "GridSearch", "_torch", "_torch_cluster"):
        name = "stflow_graph.graph.backends." + maker
        monkeypatch.setattr(name, lambda _, maker=maker: maker)
    assert make_search(SimpleNamespace(is_cuda=is_cuda)) == expected


PLACES = {
    "a random plane": lambda: torch.rand(3000, 2, generator=seeded()) * 1e4,
    "islands far apart": lambda: noise(3, 2).repeat_interleave(700, 0) * 1e6 + noise(2100, 2),
    "a line": lambda: torch.rand(2000, 1, generator=seeded()) * torch.tensor([[1.0, 0.0]]),
    "one place": lambda: torch.ones(300, 2),
    "heaps": lambda: torch.rand(300, 2, generator=seeded()).repeat(10, 1),
    "one far away": lambda: torch.cat(
        [torch.rand(900, 2, generator=seeded()), torch.full((1, 2), 1e9)]
    ),
}


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("width", [1, 9, 22, 70])
def test_a_grid_finds_what_a_tree_finds(places, width):
    pos = PLACES[places]().double()
    rows = torch.arange(len(pos)).flip(0)[::2]
    found = [kind(pos)(rows, width) for kind in (GridSearch, TreeSearch)]
    grid, tree = ((pos[each] - pos[rows, None]).square().sum(-1).sort(1).values for each in found)
    assert torch.equal(grid, tree)
    distances = GridSearch(pos).distances(width)
    torch.testing.assert_close(distances, TreeSearch(pos).distances(max(width, 2))[:, :width])


def test_a_grid_needs_the_tree_for_few_spots_only(monkeypatch):
    """Those in the middle of an array and at its border are found by cells."""
    pos = array("hexagonal", 70) * 137.5
    monkeypatch.setattr("stflow_graph.graph.grid_search.TreeSearch", None)
    near = GridSearch(pos)(torch.arange(len(pos)), 22)
    assert torch.equal(near[:, 0], torch.arange(len(pos)))


def test_ties_of_a_hexagonal_array_are_kept_together_under_rotation_and_permutation():
    pos = array("hexagonal", 12)
    near = nearest_neighbors(pos, 8)
    inner = torch.bincount(near.edge_index[1])[12 * 6 + 6]
    assert inner == 12  # both rings, although k = 8 ends within the second
    order = torch.randperm(len(pos), generator=seeded())
    moved = nearest_neighbors((pos @ motion(0.7).T * 57.3 + 11)[order], 8)
    assert torch.equal(near.edge_index.T.unique(dim=0), order[moved.edge_index].T.unique(dim=0))


def test_the_graph_of_a_batch_joins_no_slides():
    torch.manual_seed(0)
    a, b = torch.rand(20, 2), torch.rand(15, 2)  # they overlap in space
    both = nearest_neighbors(torch.cat([a, b]), 5, batch=torch.tensor([0] * 20 + [1] * 15))
    parts = [nearest_neighbors(a, 5).edge_index, nearest_neighbors(b, 5).edge_index + 20]
    assert torch.equal(both.edge_index, torch.cat(parts, dim=1))


def test_small_slides_use_all_neighbours():
    assert nearest_neighbors(torch.zeros(1, 2), 8).edge_index.shape == (2, 0)
    assert nearest_neighbors(torch.rand(2, 2), 8).edge_index.shape == (2, 2)
    assert nearest_neighbors(torch.zeros(4, 2), 2).edge_index.shape == (2, 12)  # one place


def test_a_neighbour_enters_with_weight_zero():
    # a spot moves out past the cut-off: the weight falls to 0 without a jump
    weights = []
    for x in np.linspace(1.0, 1.2, 201):
        pos = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-x, 0.0]], dtype=torch.double)
        near = nearest_neighbors(pos, 1, slack=0.1)
        edge = (near.edge_index[0] == 2) & (near.edge_index[1] == 0)
        weights.append(near.weight[edge].sum().item())
    assert weights[0] == 1
    assert weights[-1] == 0
    assert np.abs(np.diff(weights)).max() < 0.02


def test_pitch_is_the_distance_of_nearest_places_in_any_unit():
    pair = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert spot_pitch(array("hexagonal", 8) * 37) == pytest.approx(37)
    assert spot_pitch(torch.zeros(5, 2)) == 1.0
    assert spot_pitch(torch.zeros(1, 2)) == 1.0
    assert spot_pitch(torch.cat([array("hexagonal", 6), array("hexagonal", 6)])) == pytest.approx(1)
    assert spot_pitch(pair) == 5.0
    assert spot_pitch(pair.repeat(20, 1)) == 5.0
    far = torch.tensor([[1e4, 1e4], [-1e4, 1e4]])
    assert spot_pitch(torch.cat([array("hexagonal", 8), far])) == pytest.approx(1)


@pytest.mark.parametrize("twins", [1, 8, 20])
def test_shaken_duplicates_have_the_pitch_of_exact_ones(twins):
    pos = array("hexagonal", 8)
    exact = torch.cat([pos, pos[:twins], pos[:1].repeat(twins, 1)])
    shaken = exact + 1e-6 * noise(*exact.shape)
    assert spot_pitch(shaken) == pytest.approx(spot_pitch(exact), abs=1e-5)


def test_all_spots_of_one_place_are_neighbours_up_to_tiny_moves():
    pos = torch.cat([array("hexagonal", 5), torch.full((12, 2), 1.3).double()])
    moved = pos + 1e-6 * noise(*pos.shape)
    exact, shaken = (nearest_neighbors(p, 8, same_place=1e-3) for p in (pos, moved))
    assert torch.equal(exact.edge_index, shaken.edge_index)
    assert torch.allclose(exact.weight, shaken.weight, atol=1e-3)
    heap = (exact.edge_index >= 25).all(0)
    assert heap.sum() == 12 * 11
    assert (exact.weight[heap] == 1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pos": torch.zeros(3)}, r"\[3\]"),
        ({"pos": torch.zeros(3, 2), "batch": torch.zeros(2).long()}, r"\[2\]"),
        ({"pos": torch.zeros(3, 2), "k": 0}, "k = 0"),
        ({"pos": torch.zeros(3, 2), "same_place": -1.0}, "same_place = -1"),
        ({"pos": torch.full((3, 2), torch.nan)}, r"\[3, 2\] has 3 rows that are not finite"),
        ({"pos": torch.zeros(3, 2), "backend": "faiss"}, "scipy"),
        ({"pos": torch.zeros(3, 2), "batch": torch.tensor([0, 1, 0])}, "ascending"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        nearest_neighbors(**{"k": 2, **arguments})
