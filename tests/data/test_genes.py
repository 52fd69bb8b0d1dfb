from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.sparse as sp
from real import BENCH, needs_real_slides

from stflow_graph.data.genes import (
    GeneStatistics,
    highly_variable_genes,
    read_gene_list,
    write_gene_list,
)
from stflow_graph.data.splits import Dataset
from stflow_graph.errors import BadInput
from stflow_graph.io.expression import read_expression


def test_what_is_written_is_read(tmp_path):
    write_gene_list(tmp_path / "g.json", ["B", "A"])
    assert read_gene_list(tmp_path / "g.json") == ["B", "A"]
    assert json.loads((tmp_path / "g.json").read_text()) == {"genes": ["B", "A"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"gene": ["A"]}, "NoneType.*list"),
        ({"genes": []}, "0 genes"),
        ({"genes": ["A", "B", "A"]}, r"\['A'\]"),
        ({"genes": [1]}, "list of gene names"),
        (3, "list of gene names"),
    ],
)
def test_bad_lists_are_refused(tmp_path, content, message):
    (tmp_path / "g.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=message):
        read_gene_list(tmp_path / "g.json")


def counts_with(varied, n=300, g=200, seed=0):
    rng = np.random.default_rng(seed)
    rate = np.tile(rng.uniform(1, 8, g), (n, 1))
    rate[:, varied] *= rng.gamma(0.7, 1 / 0.7, (n, len(varied)))
    return sp.csr_matrix(rng.poisson(rate))


NAMES = [f"g{i:03d}" for i in range(200)]
VARIED = [3, 50, 51, 120, 199]


def test_genes_that_vary_more_than_others_of_their_mean_are_chosen():
    slides = [GeneStatistics.of(counts_with(VARIED, seed=s), NAMES) for s in (0, 1)]
    assert highly_variable_genes(slides, n_genes=5, n_bins=3) == [NAMES[i] for i in VARIED]


def test_the_choice_depends_on_the_spots_only():
    counts = counts_with(VARIED)
    whole = highly_variable_genes([GeneStatistics.of(counts, NAMES)])
    order = np.random.default_rng(1).permutation(200)
    halves = [
        GeneStatistics.of(counts[150:][:, order], [NAMES[i] for i in order]),
        GeneStatistics.of(counts[:150], NAMES),
    ]
    assert highly_variable_genes(halves) == whole
    assert len(whole) == 50
    assert whole == sorted(whole)


def test_genes_that_are_rare_constant_or_not_shared_are_left_out():
    dense = counts_with(VARIED).toarray()
    dense[:, 3] = 0
    dense[:29, 3] = 50  # varies most, but in under 10% of the spots
    dense[:, 50] = 7
    first = GeneStatistics.of(sp.csr_matrix(dense), NAMES)
    second = GeneStatistics.of(counts_with(VARIED, seed=1)[:, :199], NAMES[:199])
    panel = set(NAMES) - {"g051"}
    chosen = highly_variable_genes([first], n_genes=200, panel=panel)
    assert not {"g003", "g050", "g051"} & set(chosen)
    assert "g199" in chosen
    assert "g003" in highly_variable_genes([first], n_genes=200, least_share=0.09)
    assert "g199" not in highly_variable_genes([first, second], n_genes=200)
    assert highly_variable_genes([first], least_share=1.01) == []


def test_stored_zeros_are_no_counts():
    counts = counts_with(VARIED)
    counts.data[counts.indices == 3] = 0
    assert GeneStatistics.of(counts, NAMES).share[3] == 0


@needs_real_slides
@pytest.mark.parametrize("fold", [0, 1])
def test_the_stored_lists_of_real_slides_are_found(fold):
    known = {}
    for file in sorted((BENCH / "adata").glob("*.h5ad")):
        expression = read_expression(file)
        known[file.stem] = GeneStatistics.of(expression.counts, expression.genes)
    train = Dataset("her2st", BENCH).folds()[fold].train
    panel = set.intersection(*(set(s.genes) for s in known.values()))
    found = highly_variable_genes([known[s.id] for s in train], panel=panel)
    assert found == sorted(read_gene_list(BENCH / f"var_50genes_fold{fold}.json"))
