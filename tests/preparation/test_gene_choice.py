from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp

from stflow_graph.preparation.gene_choice import GeneStatistics, rank_genes


def chosen(slides, n_genes=50, **options):
    return sorted(rank_genes(slides, **options).head(n_genes).index)


def counts_with(varied, n=300, g=200, seed=0):
    rng = np.random.default_rng(seed)
    rate = np.tile(rng.uniform(1, 8, g), (n, 1))
    rate[:, varied] *= rng.gamma(0.7, 1 / 0.7, (n, len(varied)))
    return sp.csr_matrix(rng.poisson(rate))


NAMES = [f"g{i:03d}" for i in range(200)]
VARIED = [3, 50, 51, 120, 199]


def test_genes_that_vary_more_than_others_of_their_mean_are_chosen():
    slides = [GeneStatistics.of(counts_with(VARIED, seed=s), NAMES) for s in (0, 1)]
    assert chosen(slides, n_genes=5, n_bins=3) == [NAMES[i] for i in VARIED]


def test_the_choice_depends_on_the_spots_only():
    counts = counts_with(VARIED)
    whole = chosen([GeneStatistics.of(counts, NAMES)])
    order = np.random.default_rng(1).permutation(200)
    halves = [
        GeneStatistics.of(counts[150:][:, order], [NAMES[i] for i in order]),
        GeneStatistics.of(counts[:150], NAMES),
    ]
    assert chosen(halves) == whole
    assert len(whole) == 50


def test_genes_that_are_rare_constant_or_not_shared_are_left_out():
    dense = counts_with(VARIED).toarray()
    dense[:, 3] = 0
    dense[:29, 3] = 50  # varies most, but in under 10% of the spots
    dense[:, 50] = 7
    first = GeneStatistics.of(sp.csr_matrix(dense), NAMES)
    second = GeneStatistics.of(counts_with(VARIED, seed=1)[:, :199], NAMES[:199])
    panel = set(NAMES) - {"g051"}
    found = chosen([first], n_genes=200, panel=panel)
    assert not {"g003", "g050", "g051"} & set(found)
    assert "g199" in found
    assert "g003" in chosen([first], n_genes=200, min_fraction=0.09)
    assert "g199" not in chosen([first, second], n_genes=200)
    assert chosen([first], min_fraction=1.01) == []


def test_stored_zeros_are_no_counts():
    counts = counts_with(VARIED)
    counts.data[counts.indices == 3] = 0
    assert GeneStatistics.of(counts, NAMES).table["share"].iloc[3] == 0


def test_control_probes_are_no_genes():
    names = ["BLANK_0", "NegControlProbe_1", *NAMES[2:]]
    found = chosen([GeneStatistics.of(counts_with(VARIED), names)], n_genes=200)
    assert found == NAMES[2:]


def test_means_and_morans_i_rank_as_they_say():
    dense = counts_with(VARIED).toarray()
    dense[:, 7] += 100
    slides = [GeneStatistics.of(sp.csr_matrix(part), NAMES) for part in (dense[:100], dense[100:])]
    found = rank_genes(slides, "mean")
    assert found.index[0] == "g007"
    columns = [int(gene[1:]) for gene in found.index]
    np.testing.assert_allclose(found["score"], dense.mean(axis=0)[columns])
    moran = np.linspace(0, 1, 200), np.linspace(1, 0, 200) ** 2
    moran[0][9] = np.nan
    slides = [
        dataclasses.replace(slide, table=slide.table.assign(moran=values))
        for slide, values in zip(slides, moran, strict=True)
    ]
    found = rank_genes(slides, "moran")
    assert list(found.index[:2]) == ["g000", "g199"]  # both (0 + 1) / 2: in alphabetical order
    assert "g009" not in found.index
    assert (np.diff(found["score"]) <= 0).all()


def arithmetic_counts(n=60, g=200):
    """Return counts that need no random generator, so that a recorded choice stays true."""
    i, j = np.meshgrid(np.arange(n), np.arange(g), indexing="ij")
    return ((i * i * (j + 3) + 7 * i * j) % (5 + j % 11)) * ((i + j) % (2 + j % 5) != 1)


# what scanpy 1.11.5 chooses: log1p, highly_variable_genes(n_top_genes=8)
RECORDED = ["g014", "g015", "g021", "g030", "g080", "g120", "g146", "g186"]


def test_the_choice_is_the_one_recorded_of_scanpy():
    slides = [GeneStatistics.of(sp.csr_matrix(arithmetic_counts()), NAMES)]
    assert chosen(slides, n_genes=8) == RECORDED


def scanpy_choice(scanpy, slides, names, n_genes):
    """Choose as HEST does: genes in a tenth of every slide's spots, stacked, log1p, scanpy."""
    enough = np.all([(s > 0).sum(axis=0) >= np.ceil(0.1 * len(s)) for s in slides], axis=0)
    stacked = scanpy.AnnData(np.concatenate(slides)[:, enough].astype(np.float32))
    stacked.var_names = np.array(names)[enough]
    scanpy.pp.log1p(stacked)
    scanpy.pp.highly_variable_genes(stacked, n_top_genes=n_genes)
    return sorted(stacked.var_names[stacked.var["highly_variable"]])


@pytest.mark.filterwarnings("ignore")  # scanpy's own, of its versions
def test_the_choice_is_scanpys():
    scanpy = pytest.importorskip("scanpy", reason="the oracle of this test")
    recorded = scanpy_choice(scanpy, [arithmetic_counts()], NAMES, 8)
    assert recorded == RECORDED
    for seed in range(25):
        rng = np.random.default_rng(seed)
        shape = rng.gamma(1, 2, 200)
        slides = [
            rng.poisson(shape * rng.gamma(2, 0.5, (n, 200)) ** rng.uniform(0, 2, 200))
            for n in rng.integers(30, 200, rng.integers(1, 4))
        ]
        for slide in slides:
            slide[:, seed] = 400  # constant, and far above the others: it moves the bins
        given = [GeneStatistics.of(sp.csr_matrix(slide), NAMES) for slide in slides]
        n_genes = int(rng.integers(5, 40))
        assert chosen(given, n_genes) == scanpy_choice(scanpy, slides, NAMES, n_genes), seed
