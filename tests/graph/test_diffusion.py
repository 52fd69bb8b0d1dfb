import pytest
import torch
from slides import in_double, reordered, seeded, slide
from torch_geometric import EdgeIndex
from torch_geometric.data import Data

from stflow_graph.graph import (
    Averaging,
    NeighbourhoodContext,
    SpatialGraph,
    diffuse,
    diffuse_sum,
)

CLOSE = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture
def data() -> Data:
    return SpatialGraph(n_neighbors=4)(in_double(slide(40, channels=3)))


@pytest.fixture
def average(data) -> Averaging:
    return Averaging(data.edge_index, data.edge_weight, 40)


def test_diffusion_is_multiplication_by_powers_of_the_averaging_matrix(data, average):
    matrix = torch.zeros(40, 40, dtype=torch.float64)
    sender, receiver = data.edge_index
    matrix[receiver, sender] = data.edge_weight.double()
    matrix = matrix / matrix.sum(1, keepdim=True)
    hops = (1, 3, 4)
    powers = [(1 + n) ** 0.5 * torch.linalg.matrix_power(matrix, n) for n in hops]
    expected = torch.cat([power @ data.x for power in powers], 1)
    torch.testing.assert_close(diffuse(data.x, hops, average), expected, **CLOSE)
    parts = [data.x, data.x * 2, data.x.flip(0)]
    expected = sum(power @ part for power, part in zip(powers, parts, strict=True))
    found = diffuse_sum(reversed(parts), hops, average)
    torch.testing.assert_close(found, expected, **CLOSE)
    found = diffuse_sum(iter([*reversed(parts), data.x + 1]), (0, *hops), average)
    torch.testing.assert_close(found, expected + data.x + 1, **CLOSE)


@pytest.mark.parametrize("sort", [False, True])
def test_without_weights_all_neighbours_count_the_same(sort):
    edges = torch.tensor([[1, 2, 0], [0, 0, 1]])
    if sort:
        edges = EdgeIndex(edges, sparse_size=(3, 3), sort_order="col")
    x = torch.tensor([[0.0], [2.0], [4.0]])
    # the third spot has no neighbours and keeps its value
    expected = torch.tensor([[3.0], [0.0], [4.0]])
    torch.testing.assert_close(Averaging(edges, None, 3)(x), expected)
    # two spots are averaged, the third is only a neighbour
    torch.testing.assert_close(Averaging(edges, None, 2)(x), expected[:2])


def test_constants_stay_and_the_order_of_spots_and_edges_is_irrelevant(data, average):
    constant = diffuse(torch.ones(40, 1), [16], average)
    torch.testing.assert_close(constant, torch.full((40, 1), 17**0.5))
    order = torch.randperm(40, generator=seeded())
    shuffled = SpatialGraph(n_neighbors=4)(reordered(data, order))
    a, b = (NeighbourhoodContext((1, 4))(slide).context for slide in (data, shuffled))
    torch.testing.assert_close(a[order], b, **CLOSE)
    assert a.shape == (40, 6)
    edges = torch.randperm(data.num_edges, generator=seeded())
    unsorted = Averaging(data.edge_index[:, edges], data.edge_weight[edges], 40)
    torch.testing.assert_close(unsorted(data.x), average(data.x), **CLOSE)


@pytest.mark.parametrize("hops", [(4, 1), (1, 1), (0, 1)])
def test_hops_must_ascend_from_1(hops, data, average):
    with pytest.raises(ValueError, match="hops must ascend from 1"):
        diffuse(data.x, hops, average)
    if hops != (0, 1):
        with pytest.raises(ValueError, match="hops must ascend from 0"):
            diffuse_sum([data.x, data.x], hops, average)


def test_a_sum_needs_a_part_for_each_number_of_hops(data, average):
    with pytest.raises(ValueError, match="longer than"):
        diffuse_sum([data.x], (1, 2), average)
    with pytest.raises(ValueError, match="one part or more"):
        diffuse_sum([], (), average)
    assert repr(NeighbourhoodContext((1, 4))) == "NeighbourhoodContext(hops=(1, 4))"
