import itertools

import numpy as np
import pytest

from stflow_graph.stats.metrics import neighbour_mean
from stflow_graph.stats.scales import (
    coverage_by_scale,
    region_energy_score,
    region_mean,
    residual_moran,
    sample_gene_distance,
    variogram_score,
)

SIDE, GENES, SAMPLES = 20, 20, 19
COORDS = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1).reshape(-1, 2).astype(float)
SMOOTH = region_mean(COORDS, 9)


def draw(rng, n, *, joint=True, level=0.0):
    """Draw n fields [n, N, G] of one spread, with or without neighbours that vary together."""
    noise = rng.normal(size=(n, SIDE**2, GENES))
    fields = np.stack([SMOOTH @ field for field in noise]) if joint else noise
    fields /= fields.std(axis=(0, 1), keepdims=True)
    return fields + level * rng.normal(size=(n, 1, GENES))


def in_80(parts, *, centred=False, gene_mean=False):
    """Coverage of the 80% interval by size of region."""
    chosen = [part for part in parts if part.gene_mean == gene_mean]
    return {
        part.spots: coverage[1].covered
        for part in chosen
        if (coverage := part.centred if centred else part.raw)
    }


def test_a_region_is_its_nearest_spots():
    regions = region_mean(COORDS, 9)
    middle = 5 * SIDE + 7
    around = {(x, y) for x in (6, 7, 8) for y in (4, 5, 6)}
    assert {tuple(COORDS[i].astype(int)) for i in regions[middle].indices} == around
    np.testing.assert_allclose(regions.sum(axis=1), 1)
    assert (region_mean(COORDS, 1) != np.eye(SIDE**2)).sum() == 0


def test_samples_of_the_truths_own_distribution_cover_at_every_scale():
    found = {}
    for seed in range(15):
        rng = np.random.default_rng(seed)
        truth, samples = draw(rng, 1, level=0.5)[0], draw(rng, SAMPLES, level=0.5)
        parts = coverage_by_scale(samples, truth, COORDS)
        for centred, gene_mean in itertools.product((False, True), repeat=2):
            for spots, covered in in_80(parts, centred=centred, gene_mean=gene_mean).items():
                found.setdefault((spots, centred, gene_mean), []).append(covered)
    assert {spots for spots, _, _ in found} == {1, 9, 25, 64, SIDE**2}
    assert (SIDE**2, True, False) not in found
    for (_, _, gene_mean), values in found.items():
        assert np.mean(values) == pytest.approx(0.8, abs=0.2 if gene_mean else 0.06)


def test_independent_spots_cover_single_spots_and_no_region():
    rng = np.random.default_rng(0)
    truth, samples = draw(rng, 1)[0], draw(rng, SAMPLES, joint=False)
    covered = in_80(coverage_by_scale(samples, truth, COORDS))
    assert covered[1] == pytest.approx(0.8, abs=0.03)
    assert covered[9] < 0.55
    assert covered[64] < 0.45


def test_a_wrong_level_is_seen_raw_and_not_when_centred():
    rng = np.random.default_rng(0)
    truth, samples = draw(rng, 1)[0] + 2, draw(rng, SAMPLES)
    parts = coverage_by_scale(samples, truth, COORDS)
    assert max(in_80(parts).values()) < 0.5
    assert in_80(parts)[SIDE**2] == 0
    centred = in_80(parts, centred=True)
    assert min(centred.values()) > 0.7


def test_regions_that_a_slide_has_no_room_for_are_left_out():
    rng = np.random.default_rng(0)
    truth, samples = rng.normal(size=(9, 2)), rng.normal(size=(5, 9, 2))
    parts = coverage_by_scale(samples, truth, COORDS[:9])
    assert [(p.spots, p.whole, p.gene_mean) for p in parts] == [
        (1, False, False),
        (1, False, True),
        (9, True, False),
        (9, True, True),
    ]
    one = coverage_by_scale(samples[:, :1], truth[:1], COORDS[:1])
    assert [(p.spots, p.whole) for p in one] == [(1, True)] * 2


def test_scores_are_the_sums_that_define_them():
    rng = np.random.default_rng(0)
    coords = rng.random((7, 2))
    truth, samples = rng.normal(size=(7, 3)), rng.normal(size=(4, 7, 3))
    regions = region_mean(coords, 3)
    energy, variogram = [], []
    for spot, gene in itertools.product(range(7), range(3)):
        near = regions[spot].indices
        x, y = samples[:, near, gene], truth[near, gene]
        error = [np.linalg.norm(a - y) for a in x]
        pairs = [np.linalg.norm(a - b) for a in x for b in x]
        energy.append((np.mean(error) - np.mean(pairs) / 2) / np.sqrt(3))
        for other in set(near) - {spot}:
            expected = np.sqrt(np.abs(samples[:, spot, gene] - samples[:, other, gene])).mean()
            observed = np.sqrt(np.abs(truth[spot, gene] - truth[other, gene]))
            variogram.append((observed - expected) ** 2)
    assert region_energy_score(samples, truth, regions) == pytest.approx(np.mean(energy))
    assert variogram_score(samples, truth, regions) == pytest.approx(np.mean(variogram))
    assert np.isnan(variogram_score(samples, truth, region_mean(coords, 1)))


def test_joint_samples_score_better_than_independent_ones_of_the_same_spread():
    rng = np.random.default_rng(0)
    truth, joint, alone = draw(rng, 1)[0], draw(rng, 20), draw(rng, 20, joint=False)
    for score in (region_energy_score, variogram_score):
        assert score(joint, truth, SMOOTH) < 0.99 * score(alone, truth, SMOOTH)
    weights, zero = neighbour_mean(COORDS), np.zeros_like(truth)
    of_joint, of_truth = residual_moran(joint, zero, truth, weights)
    assert of_joint == pytest.approx(of_truth, abs=0.02)
    assert of_truth > 0.4
    assert residual_moran(alone, zero, truth, weights)[0] == pytest.approx(0, abs=0.02)


def test_samples_whose_genes_vary_together_are_nearer_to_such_a_truth():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(21, SIDE**2, 1)) + 0.5 * rng.normal(size=(21, SIDE**2, 5))
    alone = rng.normal(size=(20, SIDE**2, 5))
    assert sample_gene_distance(shared[1:], shared[0]) < 0.05
    assert sample_gene_distance(alone, shared[0]) > 0.7
