import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from slides import array, scattered
from torch_geometric.data import Data

from stflow_graph.graph import STFlowGraph, nearest_neighbors
from stflow_graph.graph.stflow import (
    Neighbourhoods,
    all_pairs_neighbourhoods,
    edge_neighbourhoods,
)


def as_sets(near: Neighbourhoods) -> list[list[int]]:
    """Return the neighbours of each spot; padding is with the spot itself."""
    mask = torch.ones_like(near.index).bool() if near.mask is None else near.mask
    assert torch.equal(near.index[~mask], (~mask).nonzero()[:, 0])
    return [sorted(row[kept].tolist()) for row, kept in zip(near.index, mask, strict=True)]


graphs = st.integers(1, 8).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2), max_size=30))
)


@given(graphs)
def test_edges_are_laid_out_by_their_target(graph):
    n, edges = graph
    near = edge_neighbourhoods(torch.tensor(edges).long().view(-1, 2).T, n)
    assert as_sets(near) == [sorted(j for j, i in edges if i == spot) for spot in range(n)]


@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    k=st.integers(1, 9),
    seed=st.integers(0, 100),
)
def test_all_pairs_give_the_nearest_spots_of_the_same_slide(sizes, k, seed):
    pos = scattered(sum(sizes), seed)
    batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    edges = nearest_neighbors(pos, k, batch=batch, slack=0.0).edge_index
    expected = as_sets(edge_neighbourhoods(edges, len(pos)))
    assert as_sets(all_pairs_neighbourhoods(pos, k, batch)) == expected


def test_another_spot_at_the_same_place_is_a_neighbour_and_no_spot_is_its_own():
    near = all_pairs_neighbourhoods(torch.zeros(5, 2), 3, torch.zeros(5).long())
    assert near.mask is None
    for spot, neighbours in enumerate(as_sets(near)):
        assert len({*neighbours, spot}) == 4


def test_no_spots_have_no_neighbours():
    none = torch.zeros(0, 2)
    assert all_pairs_neighbourhoods(none, 3, none[:, 0].long()).index.shape == (0, 0)
    assert edge_neighbourhoods(none.long().T, 0).index.shape == (0, 0)


def test_edges_have_the_coordinates_in_the_principal_axes_of_their_neighbourhood():
    data = STFlowGraph(5)(Data(pos=array("jittered")))
    assert repr(STFlowGraph(5)) == "STFlowGraph(n_neighbors=5, backend='auto')"
    for spot in range(49):
        edges = data.edge_index[1] == spot
        r = (data.pos[data.edge_index[0, edges]] - data.pos[spot]).numpy()
        centred = r - r.mean(0)
        axes = np.linalg.eigh(centred.T @ centred)[1]
        expected = np.concatenate([np.abs(centred @ axes), np.linalg.norm(r, axis=1)[:, None]], 1)
        np.testing.assert_allclose(data.edge_attr[edges].abs(), expected, atol=1e-5)


def test_frames_made_in_parts_are_those_of_the_whole(monkeypatch):
    data = Data(pos=scattered(30))
    whole = STFlowGraph(4)(data)
    monkeypatch.setattr("stflow_graph.graph.stflow._MATRICES", 7)
    parts = STFlowGraph(4)(data)
    torch.testing.assert_close(parts.edge_attr.square(), whole.edge_attr.square())
