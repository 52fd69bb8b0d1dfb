from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from stflow_graph.graph import NeighbourhoodContext, SpatialGraph, diffuse


def slide(n: int = 40, channels: int = 3) -> Data:
    generator = torch.Generator().manual_seed(n)
    pos = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    x = torch.randn(n, channels, generator=generator, dtype=torch.float64)
    return SpatialGraph(n_neighbors=4)(Data(x=x, pos=pos))


def averaging(data: Data) -> torch.Tensor:
    """Return D⁻¹ W as a dense matrix."""
    matrix = torch.zeros(data.num_nodes, data.num_nodes, dtype=torch.float64)
    sender, receiver = data.edge_index
    matrix[receiver, sender] = data.edge_weight.double()
    return matrix / matrix.sum(1, keepdim=True)


def test_it_is_the_powers_of_the_averaging_matrix():
    data = slide()
    a = averaging(data)
    parts = [data.x, data.x * 2, data.x[:, :1]]
    found = diffuse(parts, [1, 3, 4], data.edge_index, data.edge_weight)
    for part, hops, each in zip(parts, (1, 3, 4), found, strict=True):
        expected = (1 + hops) ** 0.5 * torch.linalg.matrix_power(a, hops) @ part
        torch.testing.assert_close(each, expected, rtol=1e-6, atol=1e-6)


def test_without_weights_all_neighbours_count_the_same():
    edges = torch.tensor([[1, 2, 0], [0, 0, 1]])
    x = torch.tensor([[0.0], [2.0], [4.0]])
    (found,) = diffuse([x], [1], edges, None)
    # the third spot has no neighbours and keeps its value
    torch.testing.assert_close(found / 2**0.5, torch.tensor([[3.0], [0.0], [4.0]]))


def test_constants_stay_and_order_plays_no_part():
    data = slide()
    (found,) = diffuse([torch.ones(40, 1)], [16], data.edge_index, data.edge_weight)
    torch.testing.assert_close(found, torch.full((40, 1), 17**0.5))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    moved = SpatialGraph(n_neighbors=4)(Data(x=data.x[order], pos=data.pos[order]))
    a, b = (NeighbourhoodContext((1, 4))(each).context for each in (data, moved))
    np.testing.assert_allclose(a[order], b, rtol=1e-6)
    assert a.shape == (40, 6)


@pytest.mark.parametrize("hops", [(4, 1), (1, 1), (0, 1), (1,), (1, 2, 3)])
def test_hops_that_do_not_ascend_or_fit_are_refused(hops):
    data = slide()
    with pytest.raises(ValueError, match=r"hops must ascend from 1 and fit 2 parts"):
        diffuse([data.x, data.x], hops, data.edge_index, data.edge_weight)
