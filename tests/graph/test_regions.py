from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data

from stflow_graph.graph import NeighbourhoodContext, SimilarityEdges, SpatialGraph
from stflow_graph.graph.regions import cover_slide, cut_region, join_regions, random_region
from stflow_graph.nn.denoiser import GraphDenoiser
from stflow_graph.training.loop import region_loss


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slide(n: int = 100) -> Data:
    generator = seeded(n)
    x, y = torch.randn(n, 6, generator=generator), torch.randn(n, 5, generator=generator)
    return Data(x=x, y=y, pos=torch.rand(n, 2, generator=generator, dtype=torch.float64))


def test_a_region_is_the_spots_nearest_to_one_of_them():
    pos, sizes = slide().pos, []
    for seed in range(200):
        rows = random_region(pos, seeded(seed))
        sizes.append(len(rows))
        assert len(rows) >= 2
        nearest = [set((pos - p).square().sum(1).argsort()[: len(rows)].tolist()) for p in pos]
        assert set(rows.tolist()) in nearest
    assert 40 < np.mean(sizes) < 60  # u ~ U(0, 1)


def test_small_slides_are_taken_whole_and_seeds_decide():
    assert len(random_region(slide(2).pos, seeded())) == 2
    assert len(random_region(slide(1).pos, seeded())) == 1
    assert torch.equal(*(random_region(slide().pos, seeded(3)) for _ in "ab"))


def test_regions_are_as_large_as_they_may_be():
    pos = slide().pos
    seeds = [seeded(seed) for seed in range(20)]
    assert all(len(random_region(pos, s, smallest_share=1.0)) == 100 for s in seeds)
    assert all(len(random_region(pos, s, smallest_share=1.0, most=30)) == 30 for s in seeds)
    assert min(len(random_region(pos, s, smallest_share=0.5)) for s in seeds) >= 50


def test_a_cover_has_every_spot_once_and_another_border_each_time():
    pos = slide().pos
    covers = [cover_slide(pos, seeded(seed), 30) for seed in (0, 1)]
    for parts in covers:
        assert sorted(torch.cat(parts).tolist()) == list(range(100))
        assert max(map(len, parts)) <= 30
    first, second = ({tuple(part.tolist()) for part in parts} for parts in covers)
    assert not first & second


def test_the_whole_slide_is_returned_as_it_is():
    data = SpatialGraph(4)(slide())
    assert cut_region(data, torch.arange(100), 2) is data


def test_without_a_halo_nothing_refers_to_spots_by_index():
    data = NeighbourhoodContext((1,))(SpatialGraph(4)(slide()))
    data.pitch = 0.1
    region = cut_region(data, torch.tensor([7, 3, 20]))
    assert torch.equal(region.x, data.x[[3, 7, 20]])
    assert torch.equal(region.context, data.context[[3, 7, 20]])
    assert region.pitch == 0.1
    assert "edge_index" not in region
    assert "inner" not in region
    assert "edge_index" not in cut_region(slide(), torch.arange(5), 2)


def test_a_halo_is_what_is_within_so_many_hops():
    data = SpatialGraph(4)(slide())
    own = torch.tensor([50, 10, 11])
    reached = set(own.tolist())
    for _ in range(2):
        near = [s for s, r in data.edge_index.T.tolist() if r in reached]
        reached |= set(near)
    region = cut_region(data, own, 2)
    rows = sorted(reached)
    assert torch.equal(region.pos, data.pos[rows])
    assert torch.equal(torch.tensor(rows)[region.inner], torch.tensor([10, 11, 50]))
    assert len(rows) < 100


@pytest.mark.parametrize("turn", [1, -1])
def test_a_whole_slide_beside_a_region_counts_in_full_and_the_halo_does_not(turn):
    small, large = (SpatialGraph(4)(slide(n)) for n in (30, 100))
    region = cut_region(large, torch.arange(20), 2)
    batch = join_regions([small, region][::turn])
    assert int(batch.inner.sum()) == 30 + 20 < batch.num_nodes
    own = batch.inner[batch.batch == (0 if turn == 1 else 1)]
    assert len(own) == 30
    assert own.all()
    assert "inner" not in small
    assert "inner" not in join_regions([small, large])


HOPS = (1, 3)
MODELS = {
    "in every step": {},
    "once": {"graph_once": True, "context_hops": HOPS},
    "similar": {"similarity_edges": True},
    "stflow": {"attention": "stflow"},
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("size", [1, 7, 40])
def test_gradients_of_regions_add_up_to_those_of_the_slide(kind, size):
    torch.manual_seed(0)
    options = {"hidden_channels": 8, "edge_channels": 8, "n_heads": 2, "global_attention": None}
    model = GraphDenoiser(6, 5, n_layers=2, **options, **MODELS[kind]).double().eval()
    data = SpatialGraph(4)(slide())
    if kind == "similar":
        data = SimilarityEdges(3)(data)
    if kind == "stflow":
        del data.edge_attr, data.edge_weight  # the frames are made from the edges
        data.edge_attr = None
    data = NeighbourhoodContext(HOPS)(data) if kind == "once" else data
    data = data.apply(lambda v: v.double() if v.is_floating_point() else v)
    y_t = torch.randn(100, 5).double()
    data.y_t = y_t

    def gradient(part: Data, own: torch.Tensor) -> list[torch.Tensor]:
        batch = Batch.from_data_list([part])
        if kind == "once":
            estimate = model.condition(batch).mean
        else:
            estimate = model(y_t[own], torch.full((1,), 0.4).double(), batch)
        n_own = int(batch.inner.sum()) if "inner" in batch else batch.num_nodes
        loss = region_loss(estimate, batch) * n_own * 5  # a sum, not a mean
        return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    expected = gradient(data, torch.arange(100))
    total = [None if g is None else torch.zeros_like(g) for g in expected]
    for rows in cover_slide(data.pos, seeded(5), size):
        region = cut_region(data, rows, 2)
        kept = (region.pos[:, None] == data.pos).all(-1).float().argmax(1)
        found = gradient(region, kept)
        total = [g if t is None else t + g for t, g in zip(total, found, strict=True)]
    assert any(g is not None and g.abs().max() > 0 for g in expected)
    for found, wanted in zip(total, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)
