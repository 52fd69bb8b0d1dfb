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
    learn, validate = split_validation(slides, 0)
    assert len(validate) == held_out
    assert sorted(s.name for s in learn + validate) == sorted(s.name for s in slides)
    chosen = {split_validation(slides, seed)[1][0].name for seed in range(30)}
    assert len(chosen) > 1


@pytest.mark.parametrize("n", [1, 2])
def test_few_slides_give_a_contiguous_part_each(n):
    slides = [slide(f"S{i}") for i in range(n)]
    learn, validate = split_validation(slides, 0)
    for whole, rest, part in zip(slides, learn, validate, strict=True):
        assert sorted(rest.barcodes + part.barcodes) == sorted(whole.barcodes)
        assert len(part) == 20
        # a line separates the two parts
        assert separable(rest.coords, part.coords)


def separable(a: np.ndarray, b: np.ndarray) -> bool:
    angles = np.linspace(0, 2 * np.pi, 3601)
    directions = np.stack([np.cos(angles), np.sin(angles)])
    return bool(((a @ directions).max(0) < (b @ directions).min(0)).any())


def test_a_region_keeps_no_field_that_refers_to_spots_by_index():
    data = Data(**slide("A").to_data().to_dict(), edge_index=torch.zeros(2, 5).long())
    assert "edge_index" not in random_region(data, torch.Generator().manual_seed(0))
