from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from stflow_graph.data.regions import random_region, split_validation
from stflow_graph.data.slide import Slide


def slide(name: str, n: int = 100) -> Slide:
    rng = np.random.default_rng(n)
    return Slide(
        name,
        rng.normal(size=(n, 3)).astype(np.float32),
        rng.uniform(size=(n, 2)),
        [f"{name}{i}" for i in range(n)],
        rng.normal(size=(n, 2)).astype(np.float32),
    )


def test_a_region_is_the_spots_nearest_to_one_of_them():
    data = slide("A").to_data()
    sizes = []
    for seed in range(200):
        region = random_region(data, torch.Generator().manual_seed(seed))
        chosen = (region.pos[:, None] == data.pos[None]).all(-1).any(0)
        n = int(chosen.sum())
        sizes.append(n)
        assert n == len(region.x) == len(region.y) >= 2
        nearest = [set((data.pos - p).square().sum(1).argsort()[:n].tolist()) for p in region.pos]
        assert set(chosen.nonzero().flatten().tolist()) in nearest
    assert 40 < np.mean(sizes) < 60  # u ~ U(0, 1)


def test_small_slides_are_taken_whole_and_seeds_decide():
    assert random_region(slide("A", 2).to_data(), torch.Generator().manual_seed(0)).num_nodes == 2
    assert random_region(slide("A", 1).to_data(), torch.Generator().manual_seed(0)).num_nodes == 1
    a, b = (random_region(slide("A").to_data(), torch.Generator().manual_seed(3)) for _ in "ab")
    assert torch.equal(a.x, b.x)


@pytest.mark.parametrize(("n", "held_out"), [(3, 1), (4, 1), (10, 2)])
def test_whole_slides_are_held_out_where_there_are_three(n, held_out):
    slides = [slide(f"S{i}") for i in range(n)]
    ((learn, validate),) = split_validation(slides, 0)
    assert len(validate) == held_out
    assert sorted(s.name for s in learn + validate) == sorted(s.name for s in slides)
    chosen = {split_validation(slides, seed)[0][1][0].name for seed in range(30)}
    assert len(chosen) > 1


@pytest.mark.parametrize(("n", "wanted", "got"), [(3, 4, 3), (4, 4, 4), (10, 4, 4), (5, 2, 2)])
def test_several_splits_hold_every_slide_out_once(n, wanted, got):
    slides = [slide(f"S{i}") for i in range(n)]
    splits = split_validation(slides, 0, wanted)
    assert len(splits) == got
    held_out = [s.name for _, validate in splits for s in validate]
    assert sorted(held_out) == sorted(s.name for s in slides)
    for learn, validate in splits:
        assert sorted(s.name for s in learn + validate) == sorted(s.name for s in slides)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("wanted", [1, 4, 6])
def test_few_slides_give_a_contiguous_part_each(n, wanted):
    slides = [slide(f"S{i}") for i in range(n)]
    splits = split_validation(slides, 0, wanted)
    assert len(splits) == wanted
    for i, whole in enumerate(slides):
        for learn, validate in splits:
            rest, part = learn[i], validate[i]
            assert sorted(rest.barcodes + part.barcodes) == sorted(whole.barcodes)
            assert len(part) in (16, 17, 20)
        # a line separates the first part, which lies at the border, from the rest
        assert separable(splits[0][0][i].coords, splits[0][1][i].coords)
        parts = [b for _, validate in splits for b in validate[i].barcodes]
        assert len(parts) == len(set(parts))


def test_regions_are_as_large_as_they_may_be():
    data = slide("A").to_data()
    data.context = data.x.clone()
    data.edge_index = torch.zeros(2, 5).long()
    seeds = [torch.Generator().manual_seed(seed) for seed in range(20)]
    assert all(random_region(data, seed, smallest_share=1.0) is data for seed in seeds)
    for seed in seeds:
        region = random_region(data, seed, smallest_share=1.0, most=30)
        assert region.num_nodes == len(region.context) == 30
        assert torch.equal(region.context, region.x)
        assert "edge_index" not in region
    sizes = [random_region(data, seed, smallest_share=0.5).num_nodes for seed in seeds]
    assert min(sizes) >= 50


def separable(a: np.ndarray, b: np.ndarray) -> bool:
    angles = np.linspace(0, 2 * np.pi, 3601)
    directions = np.stack([np.cos(angles), np.sin(angles)])
    return bool(((a @ directions).max(0) < (b @ directions).min(0)).any())


def test_a_region_keeps_no_field_that_refers_to_spots_by_index():
    data = Data(**slide("A").to_data().to_dict(), edge_index=torch.zeros(2, 5).long())
    assert "edge_index" not in random_region(data, torch.Generator().manual_seed(0))
