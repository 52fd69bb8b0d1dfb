from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from stflow_graph.graph import (
    Averaging,
    NeighbourhoodContext,
    SpatialGraph,
    diffuse,
    diffuse_sum,
)

NEAR = {"rtol": 1e-6, "atol": 1e-6}


def slide(n: int = 40, channels: int = 3) -> Data:
    generator = torch.Generator().manual_seed(n)
    pos = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    x = torch.randn(n, channels, generator=generator, dtype=torch.float64)
    return SpatialGraph(n_neighbors=4)(Data(x=x, pos=pos))


def averaging(data: Data) -> Averaging:
    return Averaging(data.edge_index, data.edge_weight, data.num_nodes)


def dense(data: Data) -> torch.Tensor:
    """Return D⁻¹ W as a dense matrix."""
    matrix = torch.zeros(data.num_nodes, data.num_nodes, dtype=torch.float64)
    sender, receiver = data.edge_index
    matrix[receiver, sender] = data.edge_weight.double()
    return matrix / matrix.sum(1, keepdim=True)


def test_it_is_the_powers_of_the_averaging_matrix():
    data, hops = slide(), (1, 3, 4)
    a = dense(data)
    powers = [(1 + n) ** 0.5 * torch.linalg.matrix_power(a, n) for n in hops]
    found = diffuse(data.x, hops, averaging(data))
    torch.testing.assert_close(found, torch.cat([power @ data.x for power in powers], 1), **NEAR)
    parts = [data.x, data.x * 2, data.x.flip(0)]
    expected = sum(power @ part for power, part in zip(powers, parts, strict=True))
    torch.testing.assert_close(diffuse_sum(parts, hops, averaging(data)), expected, **NEAR)


def test_without_weights_all_neighbours_count_the_same():
    edges = torch.tensor([[1, 2, 0], [0, 0, 1]])
    x = torch.tensor([[0.0], [2.0], [4.0]])
    # the third spot has no neighbours and keeps its value
    expected = torch.tensor([[3.0], [0.0], [4.0]])
    torch.testing.assert_close(Averaging(edges, None, 3)(x), expected)
    # two spots are averaged, the third is only a neighbour
    torch.testing.assert_close(Averaging(edges, None, 2)(x), expected[:2])


def test_constants_stay_and_order_plays_no_part():
    data = slide()
    found = diffuse(torch.ones(40, 1), [16], averaging(data))
    torch.testing.assert_close(found, torch.full((40, 1), 17**0.5))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    moved = SpatialGraph(n_neighbors=4)(Data(x=data.x[order], pos=data.pos[order]))
    a, b = (NeighbourhoodContext((1, 4))(each).context for each in (data, moved))
    np.testing.assert_allclose(a[order], b, rtol=1e-6)
    assert a.shape == (40, 6)


@pytest.mark.parametrize("hops", [(4, 1), (1, 1), (0, 1)])
def test_hops_that_do_not_ascend_are_refused(hops):
    data = slide()
    with pytest.raises(ValueError, match="hops must ascend from 1"):
        diffuse(data.x, hops, averaging(data))
    with pytest.raises(ValueError, match="hops must ascend from 1"):
        diffuse_sum([data.x, data.x], hops, averaging(data))


def test_parts_that_do_not_fit_the_hops_are_refused():
    data = slide()
    for parts, hops in (([data.x], (1, 2)), ([], ())):
        with pytest.raises(ValueError, match="parts do not fit the hops"):
            diffuse_sum(parts, hops, averaging(data))
