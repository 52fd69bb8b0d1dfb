import numpy as np
import pytest
import torch
from slides import array, motion, noise

from stflow_graph.graph import EDGE_FEATURES, edge_geometry, nearest_neighbors


def geometry(pos: torch.Tensor, k: int = 6) -> torch.Tensor:
    """Return the features without their arbitrary parts: signs, and axes of weight 0."""
    near = nearest_neighbors(pos, k)
    features = edge_geometry(pos, near.edge_index, near.weight)
    return torch.cat([features[:, :2].abs() * features[:, 5:], features[:, 2:]], dim=1)


@pytest.mark.parametrize("kind", ["hexagonal", "square", "jittered", "line", "duplicates"])
@pytest.mark.parametrize("reflect", [False, True])
def test_motions_leave_every_feature_unchanged(kind, reflect):
    pos = array(kind, 9)
    moved = pos @ motion(1.1, reflect).T + torch.tensor([3.0, -7.0])
    assert torch.allclose(geometry(pos), geometry(moved), atol=1e-9)


@pytest.mark.parametrize("kind", ["hexagonal", "square", "jittered", "line"])
def test_features_are_continuous_in_the_positions(kind):
    pos = array(kind, 9)
    moved = pos + 1e-6 * noise(*pos.shape, seed=1)
    assert (geometry(pos) - geometry(moved)).abs().max() < 1e-3


def test_axes_have_no_weight_inside_a_lattice_and_full_weight_on_a_line():
    near = nearest_neighbors(array("hexagonal", 9), 6)
    centre = near.edge_index[1] == 40
    features = edge_geometry(array("hexagonal", 9), near.edge_index, near.weight)
    assert features.shape == (near.edge_index.size(1), EDGE_FEATURES)
    assert features[centre, 5].max() < 1e-12
    assert torch.allclose(features[centre, 2], torch.ones(6).double())
    near = nearest_neighbors(array("line"), 6)
    on_line = edge_geometry(array("line"), near.edge_index, near.weight)
    assert torch.allclose(on_line[:, 5], torch.ones(1).double())


def test_features_equal_those_of_a_dense_eigendecomposition():
    rng = np.random.default_rng(0)
    pos = torch.tensor(rng.normal(size=(30, 2)) * [3.0, 1.0])
    near = nearest_neighbors(pos, 8)
    features = edge_geometry(pos, near.edge_index, near.weight).numpy()
    for spot in range(30):
        edges = (near.edge_index[1] == spot).numpy()
        r = (pos[near.edge_index[0][edges]] - pos[spot]).numpy()
        w = near.weight[edges].numpy()
        d = r - (w[:, None] * r).sum(0) / w.sum()
        covariance = (w[:, None] * d).T @ d / w.sum()
        values, axes = np.linalg.eigh(covariance)
        # half the trace + 1e-6: a heap far smaller than a pitch has no direction
        u = min(1.0, (values[1] - values[0]) / (values.sum() + 2e-6) / 0.3)
        traceless = covariance / np.trace(covariance) - np.eye(2) / 2
        expected = [
            *np.abs(d @ axes).T,
            *np.linalg.norm([r, d], axis=2),
            np.einsum("ea,ab,eb->e", d, traceless, d),
            np.full(len(d), u * u * (3 - 2 * u)),
        ]
        actual = features[edges]
        actual[:, :2] = np.abs(actual[:, :2])
        np.testing.assert_allclose(actual, np.stack(expected, axis=1), atol=1e-9)


def test_edges_of_some_spots_alone_have_the_same_features():
    pos = array("jittered")
    near = nearest_neighbors(pos, 6)
    some = near.edge_index[1] >= 30
    alone = edge_geometry(pos, near.edge_index[:, some], near.weight[some])
    whole = edge_geometry(pos, near.edge_index, near.weight)[some]
    torch.testing.assert_close(alone, whole)


def test_spots_with_one_neighbour_have_finite_features():
    pos = torch.tensor([[0.0, 0.0], [1.0, 0.0]]).double()
    assert torch.isfinite(geometry(pos, 8)).all()
