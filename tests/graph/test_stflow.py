from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from stflow_graph.graph.stflow import (
    Neighbourhoods,
    all_pairs_neighbourhoods,
    edge_neighbourhoods,
)


def as_sets(near: Neighbourhoods) -> list[list[int]]:
    mask = torch.ones_like(near.index).bool() if near.mask is None else near.mask
    return [sorted(row[kept].tolist()) for row, kept in zip(near.index, mask, strict=True)]


graphs = st.integers(0, 8).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=30)
        if n
        else st.just([]),
    )
)


@given(graphs)
def test_edges_are_laid_out_by_their_target(graph):
    n, edges = graph
    near = edge_neighbourhoods(torch.tensor(edges).long().view(-1, 2).T, n)
    assert as_sets(near) == [sorted(j for j, i in edges if i == spot) for spot in range(n)]
    if near.mask is not None:
        padded = (~near.mask).nonzero()
        assert torch.equal(near.index[~near.mask], padded[:, 0])


@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    k=st.integers(1, 9),
    seed=st.integers(0, 100),
)
def test_nearest_spots_of_the_same_slide(sizes, k, seed):
    generator = torch.Generator().manual_seed(seed)
    pos = torch.rand(sum(sizes), 2, generator=generator).double()
    batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    batch = batch[torch.randperm(len(batch), generator=generator)]
    expected = []
    for i in range(len(pos)):
        others = [j for j in range(len(pos)) if j != i and batch[j] == batch[i]]
        others.sort(key=lambda j: torch.dist(pos[i], pos[j]).item())
        expected.append(sorted(others[:k]))
    near = all_pairs_neighbourhoods(pos, k, batch)
    assert as_sets(near) == expected
    if near.mask is not None:
        assert torch.equal(near.index[~near.mask], (~near.mask).nonzero()[:, 0])


def test_a_spot_at_the_same_place_is_a_neighbour_and_the_spot_itself_is_not():
    near = all_pairs_neighbourhoods(torch.zeros(5, 2), 3, torch.zeros(5).long())
    assert near.mask is None
    for spot, neighbours in enumerate(as_sets(near)):
        assert spot not in neighbours
        assert len(set(neighbours)) == 3


def test_no_spots_have_no_neighbours():
    near = all_pairs_neighbourhoods(torch.zeros(0, 2), 3, torch.zeros(0).long())
    assert near.index.shape == (0, 0)
