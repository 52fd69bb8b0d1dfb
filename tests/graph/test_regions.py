from functools import partial

import numpy as np
import pytest
import torch
from slides import in_double, noise, reach, seeded, slide
from torch_geometric.data import Batch, Data

from stflow_graph.graph import NeighbourhoodContext, SimilarityEdges, SpatialGraph, STFlowGraph
from stflow_graph.graph.regions import cover_slide, cut_region, join_regions, random_region
from stflow_graph.nn.denoiser import GraphDenoiser
from stflow_graph.nn.two_stage import TwoStageDenoiser

POS = slide(100).pos


def graph(n: int = 100) -> Data:
    return SpatialGraph(4)(slide(n, genes=5))


def test_a_region_is_the_spots_nearest_to_one_of_them():
    sizes = []
    for seed in range(200):
        rows = random_region(POS, seeded(seed))
        sizes.append(len(rows))
        assert len(rows) >= 2
        nearest = [set((POS - p).square().sum(1).argsort()[: len(rows)].tolist()) for p in POS]
        assert set(rows.tolist()) in nearest
    assert 40 < np.mean(sizes) < 60  # u ~ U(0, 1)


def test_small_slides_are_taken_whole_and_seeds_decide():
    assert len(random_region(POS[:2], seeded())) == 2
    assert len(random_region(POS[:1], seeded())) == 1
    assert torch.equal(*(random_region(POS, seeded(3)) for _ in "ab"))


def test_regions_keep_to_their_bounds():
    seeds = [seeded(seed) for seed in range(20)]
    assert all(len(random_region(POS, s, min_fraction=1.0)) == 100 for s in seeds)
    assert all(len(random_region(POS, s, min_fraction=1.0, max_spots=30)) == 30 for s in seeds)
    assert min(len(random_region(POS, s, min_fraction=0.5)) for s in seeds) >= 50
    assert min(len(random_region(POS, s, 40)) for s in seeds) == 40


def test_a_cover_has_every_spot_once_and_other_borders_each_time():
    covers = [cover_slide(POS, seeded(seed), 30) for seed in (0, 1)]
    for parts in covers:
        assert sorted(torch.cat(parts).tolist()) == list(range(100))
        assert max(map(len, parts)) <= 30
    first, second = ({tuple(part.tolist()) for part in parts} for parts in covers)
    assert not first & second


def test_the_whole_slide_is_returned_unchanged():
    data = graph()
    assert cut_region(data, torch.arange(100), 2) is data


def test_without_a_halo_nothing_refers_to_spots_by_index():
    data = NeighbourhoodContext((1,))(graph())
    region = cut_region(data, torch.tensor([7, 3, 20]))
    for key in ("x", "y", "pos", "context"):
        assert torch.equal(region[key], data[key][[3, 7, 20]])
    assert "edge_index" not in region
    assert "inner" not in region
    assert "edge_index" not in cut_region(slide(100), torch.arange(5), 2)


@pytest.mark.parametrize("n_hops", [1, 2])
def test_a_halo_is_all_spots_within_so_many_hops(n_hops):
    data, own = graph(), [50, 10, 11]
    rows = sorted(set().union(*(reach(data.edge_index, spot, n_hops) for spot in own)))
    region = cut_region(data, torch.tensor(own), n_hops)
    assert torch.equal(region.pos, data.pos[rows])
    assert torch.equal(torch.tensor(rows)[region.inner], torch.tensor([10, 11, 50]))
    assert len(rows) < 100


@pytest.mark.parametrize("turn", [1, -1])
def test_a_whole_slide_beside_a_region_counts_in_full_and_the_halo_does_not(turn):
    small, large = graph(30), graph(100)
    region = cut_region(large, torch.arange(20), 2)
    batch = join_regions([small, region][::turn])
    assert int(batch.inner.sum()) == 30 + 20 < batch.num_nodes
    own = batch.inner[batch.batch == (0 if turn == 1 else 1)]
    assert len(own) == 30
    assert own.all()
    assert "inner" not in small
    assert "inner" not in join_regions([small, large])


def similar(data: Data) -> Data:
    return SimilarityEdges(3)(SpatialGraph(4)(data))


SIZES = {"in_channels": 6, "n_genes": 5, "hidden_channels": 8, "n_heads": 2, "n_layers": 2}
KINDS = {  # graph, network
    "every step": (SpatialGraph(4), partial(GraphDenoiser, context_hops=())),
    "two stages": (SpatialGraph(4), partial(TwoStageDenoiser.make, context_hops=(1, 3))),
    "stflow": (STFlowGraph(4), partial(GraphDenoiser, conv="stflow", context_hops=())),
    "similarity": (
        similar,
        partial(GraphDenoiser, conv_options={"edge_features": 7}, context_hops=()),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 7, 20])
def test_gradients_of_regions_add_up_to_those_of_the_slide(kind, size):
    torch.manual_seed(0)
    graph, make = KINDS[kind]
    model = make(**SIZES, global_attention=None).double().eval()
    data = graph(slide(50, genes=5))
    if kind == "two stages":
        data = NeighbourhoodContext((1, 3))(data)
        torch.nn.init.normal_(model.flow.mlp[2].weight)
    data = in_double(data)
    data.y_t = noise(50, 5).double()
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradient(part: Data, y_t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        batch = Batch.from_data_list([part])
        error = model(y_t, torch.tensor([0.4]).double(), batch) - batch.y
        if "inner" in batch:
            error = error[batch.inner]
        return torch.autograd.grad(error.square().sum(), parameters)

    expected = gradient(data, data.y_t)
    total = [torch.zeros_like(g) for g in expected]
    for rows in cover_slide(data.pos, seeded(5), size):
        region = cut_region(data, rows, 2)
        kept = (region.pos[:, None] == data.pos).all(-1).float().argmax(1)
        total = [a + b for a, b in zip(total, gradient(region, data.y_t[kept]), strict=True)]
    assert any(g.abs().max() > 0 for g in expected)
    for a, b in zip(total, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)
