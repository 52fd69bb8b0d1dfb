from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from stflow_graph.graph import EDGE_FEATURES, edge_geometry, nearest_neighbors


def invariants(edge_attr: torch.Tensor) -> torch.Tensor:
    """Return the features with what is arbitrary taken out: signs, and axes of weight 0."""
    weight = edge_attr[:, 5:]
    return torch.cat([edge_attr[:, :2].abs() * weight, edge_attr[:, 2:]], dim=1)


def geometry(pos: torch.Tensor, k: int = 6) -> torch.Tensor:
    found = nearest_neighbors(pos, k)
    return invariants(edge_geometry(pos, found.edge_index, found.weight))


def lattice(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    i, j = (g.flatten().double() for g in torch.meshgrid(*[torch.arange(9)] * 2, indexing="ij"))
    return {
        "hexagonal": torch.stack([i + 0.5 * (j % 2), j * math.sqrt(3) / 2], 1),
        "square": torch.stack([i, j], 1),
        "jittered": torch.stack([i, j], 1) + 0.2 * torch.randn(81, 2, generator=generator).double(),
        "line": torch.stack([i * 9 + j, torch.zeros(81).double()], 1),
        "duplicates": torch.stack([i, j], 1).repeat(2, 1),
    }[kind]


KINDS = ["hexagonal", "square", "jittered", "line", "duplicates"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reflect", [1.0, -1.0])
def test_motions_leave_every_feature_unchanged(kind, reflect):
    pos = lattice(kind)
    angle = 1.1
    motion = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    ).double() * torch.tensor([1.0, reflect])
    moved = pos @ motion.T + torch.tensor([3.0, -7.0])
    assert torch.allclose(geometry(pos), geometry(moved), atol=1e-9)


@pytest.mark.parametrize("kind", ["hexagonal", "square", "jittered", "line"])
def test_a_small_change_of_positions_is_a_small_change_of_features(kind):
    pos = lattice(kind)
    noise = torch.randn(pos.shape, generator=torch.Generator().manual_seed(1)).double()
    assert (geometry(pos) - geometry(pos + 1e-6 * noise)).abs().max() < 1e-3


def test_axes_count_for_nothing_inside_a_lattice_and_in_full_on_a_line():
    found = nearest_neighbors(lattice("hexagonal"), 6)
    centre = found.edge_index[1] == 40
    features = edge_geometry(lattice("hexagonal"), found.edge_index, found.weight)
    assert features.shape == (found.edge_index.size(1), EDGE_FEATURES)
    assert features[centre, 5].max() < 1e-12
    assert torch.allclose(features[centre, 2], torch.ones(6).double())
    line = nearest_neighbors(lattice("line"), 6)
    on_line = edge_geometry(lattice("line"), line.edge_index, line.weight)
    assert torch.allclose(on_line[:, 5], torch.ones(1).double())


def test_the_two_coordinates_are_those_of_the_principal_axes():
    rng = np.random.default_rng(0)
    pos = torch.tensor(rng.normal(size=(30, 2)) * [3.0, 1.0])
    found = nearest_neighbors(pos, 8)
    features = edge_geometry(pos, found.edge_index, found.weight).numpy()
    for spot in range(30):
        edges = (found.edge_index[1] == spot).numpy()
        r = (pos[found.edge_index[0][edges]] - pos[spot]).numpy()
        w = found.weight[edges].numpy()
        d = r - (w[:, None] * r).sum(0) / w.sum()
        covariance = (w[:, None] * d).T @ d / w.sum()
        values, axes = np.linalg.eigh(covariance)
        np.testing.assert_allclose(np.abs(features[edges, :2]), np.abs(d @ axes), atol=1e-9)
        # half the trace + 1e-6: a heap far smaller than a pitch has no direction
        anisotropy = (values[1] - values[0]) / (values.sum() + 2e-6)
        u = min(1.0, anisotropy / 0.3)
        np.testing.assert_allclose(features[edges, 5], u * u * (3 - 2 * u), atol=1e-9)
        traceless = covariance / np.trace(covariance) - np.eye(2) / 2
        np.testing.assert_allclose(
            features[edges, 4], np.einsum("ea,ab,eb->e", d, traceless, d), atol=1e-9
        )


def test_spots_with_one_neighbour_have_finite_features():
    pos = torch.tensor([[0.0, 0.0], [1.0, 0.0]]).double()
    found = nearest_neighbors(pos, 8)
    assert torch.isfinite(edge_geometry(pos, found.edge_index, found.weight)).all()
