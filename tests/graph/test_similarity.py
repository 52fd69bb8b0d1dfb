from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data

from stflow_graph.graph import SimilarityEdges


def slide(n: int, seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)
    return Data(
        x=torch.randn(n, 7, generator=generator) + 3,
        pos=torch.rand(n, 2, generator=generator).double() * 1000,
    )


def test_edges_come_from_the_most_similar_spots():
    data = SimilarityEdges(5)(slide(40))
    x = data.x.numpy() - data.x.numpy().mean(0)
    cosine = x @ x.T / np.outer(*[np.linalg.norm(x, axis=1)] * 2)
    np.fill_diagonal(cosine, -np.inf)
    for spot in range(40):
        edges = data.similar_edge_index[1] == spot
        expected = np.argsort(-cosine[spot])[:5]
        assert set(data.similar_edge_index[0][edges].tolist()) == set(expected.tolist())
        found = np.sort(1 - data.similar_edge_attr[edges, 3].numpy())
        np.testing.assert_allclose(found, np.sort(cosine[spot][expected]), atol=1e-5)


def test_motions_and_units_change_nothing_and_permutations_permute():
    data, moved = slide(30), slide(30)
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double()
    moved.pos = (moved.pos @ turn.T + 77) * 0.3
    data, moved = SimilarityEdges(4)(data), SimilarityEdges(4)(moved)
    assert torch.equal(data.similar_edge_index, moved.similar_edge_index)
    assert torch.allclose(data.similar_edge_attr, moved.similar_edge_attr, atol=1e-5)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    shuffled = SimilarityEdges(4)(Data(x=data.x[order], pos=data.pos[order]))
    renamed = order[shuffled.similar_edge_index]
    assert set(map(tuple, renamed.T.tolist())) == set(
        map(tuple, data.similar_edge_index.T.tolist())
    )


def test_frames_take_no_part():
    attr = SimilarityEdges(4)(slide(30)).similar_edge_attr
    assert attr.shape == (120, 6)
    assert not attr[:, [0, 1, 4, 5]].any()
    assert attr[:, 2].min() > 0


def test_slides_of_a_batch_stay_apart():
    slides = [SimilarityEdges(4)(slide(n, n)) for n in (12, 9)]
    batch = Batch.from_data_list(slides)
    ends = batch.batch[batch.similar_edge_index]
    assert torch.equal(ends[0], ends[1])
    assert batch.similar_edge_attr.size(0) == batch.similar_edge_index.size(1) == 84


@pytest.mark.parametrize(("n", "edges"), [(0, 0), (1, 0), (2, 2), (4, 12)])
def test_small_slides_use_all_their_spots(n, edges):
    data = SimilarityEdges(8)(slide(n))
    assert data.similar_edge_index.shape == (2, edges)
    assert torch.isfinite(data.similar_edge_attr).all()


def test_equal_embeddings_have_finite_similarity():
    data = slide(10)
    data.x = torch.ones(10, 7)
    assert torch.isfinite(SimilarityEdges(3)(data).similar_edge_attr).all()


def test_the_result_does_not_depend_on_the_chunks(monkeypatch):
    whole = SimilarityEdges(5)(slide(40))
    monkeypatch.setattr("stflow_graph.graph.similarity._CHUNK", 130)
    parts = SimilarityEdges(5)(slide(40))
    assert torch.equal(whole.similar_edge_index, parts.similar_edge_index)


def test_fewer_than_one_neighbour_is_refused_and_repr_states_k():
    with pytest.raises(ValueError, match="n_neighbors must be >= 1, got 0"):
        SimilarityEdges(0)
    assert repr(SimilarityEdges(3)) == "SimilarityEdges(n_neighbors=3)"
