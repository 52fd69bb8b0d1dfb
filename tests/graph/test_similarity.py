import numpy as np
import pytest
import torch
from slides import motion, reordered, seeded, slide
from torch_geometric.data import Batch, Data

from stflow_graph.graph import SimilarityEdges, SpatialGraph
from stflow_graph.graph.neighbor_sum import is_sorted


def spots(n: int) -> Data:
    data = slide(n, channels=7)
    data.x = data.x + 3
    data.pos = data.pos * 1000
    return data


def graph(data: Data, k: int = 4) -> Data:
    return SimilarityEdges(k)(SpatialGraph(4)(data))


def typed(data: Data, kind: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the edges of one type: index, geometry without the type, weight."""
    of_type = data.edge_attr[:, 6] == kind
    attr = data.edge_attr[of_type, :6]
    return data.edge_index[:, of_type], attr, data.edge_weight[of_type]


def test_edges_come_from_the_most_similar_spots():
    data = graph(spots(40), 5)
    x = data.x.numpy() - data.x.numpy().mean(0)
    cosine = x @ x.T / np.outer(*[np.linalg.norm(x, axis=1)] * 2)
    np.fill_diagonal(cosine, -np.inf)
    (sender, receiver), attr, weight = typed(data, 1)
    assert (weight == 1).all()
    for spot in range(40):
        edges = receiver == spot
        expected = np.argsort(-cosine[spot])[:5]
        assert set(sender[edges].tolist()) == set(expected.tolist())
        distance = np.sort(1 - attr[edges, 3].numpy())
        np.testing.assert_allclose(distance, np.sort(cosine[spot][expected]), atol=1e-5)


def test_the_spatial_graph_is_kept_with_its_type_and_edges_of_a_spot_stand_together():
    before = SpatialGraph(4)(spots(30))
    data = graph(spots(30))
    index, attr, weight = typed(data, 0)
    assert torch.equal(index, before.edge_index)
    assert torch.equal(attr, before.edge_attr)
    assert torch.equal(weight, before.edge_weight)
    assert is_sorted(data.edge_index[1])
    assert data.edge_attr.shape == (before.num_edges + 120, 7)
    assert set(data.edge_attr[:, 6].tolist()) == {0.0, 1.0}


def test_edges_by_similarity_have_a_distance_but_no_frame():
    (sender, receiver), attr, _ = typed(graph(spots(30)), 1)
    assert not attr[:, [0, 1, 4, 5]].any()
    pos = spots(30).pos
    distance = (pos[sender] - pos[receiver]).norm(dim=1)
    ratio = attr[:, 2].double().expm1() / distance
    torch.testing.assert_close(ratio, ratio[:1].expand(len(ratio)), rtol=1e-4, atol=0)


def test_motions_and_units_leave_the_edges_unchanged_and_permutations_permute_them():
    data, moved = spots(30), spots(30)
    moved.pos = (moved.pos @ motion(0.5).T + 77) * 0.3
    order = torch.randperm(30, generator=seeded(1))
    shuffled = typed(graph(reordered(data, order)), 1)[0]
    (index, attr, _), (index_moved, attr_moved, _) = (typed(graph(d), 1) for d in (data, moved))
    assert torch.equal(index, index_moved)
    assert torch.allclose(attr, attr_moved, atol=1e-5)
    assert set(map(tuple, order[shuffled].T.tolist())) == set(map(tuple, index.T.tolist()))


def test_slides_of_a_batch_stay_apart():
    batch = Batch.from_data_list([graph(spots(n)) for n in (12, 9)])
    ends = batch.batch[batch.edge_index]
    assert torch.equal(ends[0], ends[1])
    assert typed(batch, 1)[0].size(1) == 84


@pytest.mark.parametrize(("n", "edges"), [(0, 0), (1, 0), (2, 2), (4, 12)])
def test_small_slides_use_all_their_spots(n, edges):
    index, attr, _ = typed(graph(spots(n), 8), 1)
    assert index.shape == (2, edges)
    assert torch.isfinite(attr).all()


def test_equal_embeddings_have_finite_similarity():
    data = spots(10)
    data.x = torch.ones(10, 7)
    assert torch.isfinite(graph(data, 3).edge_attr).all()


def test_the_result_does_not_depend_on_the_chunks(monkeypatch):
    whole = graph(spots(40), 5)
    monkeypatch.setattr("stflow_graph.graph.similarity._CHUNK", 130)
    assert torch.equal(whole.edge_index, graph(spots(40), 5).edge_index)


def test_fewer_than_one_neighbour_is_refused_and_repr_states_k():
    with pytest.raises(ValueError, match="n_neighbors must be >= 1, got 0"):
        SimilarityEdges(0)
    assert repr(SimilarityEdges(3)) == "SimilarityEdges(n_neighbors=3)"
