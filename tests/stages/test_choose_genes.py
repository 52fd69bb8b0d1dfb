from __future__ import annotations

import json

import anndata
import numpy as np
import pytest
from real import BENCH, needs_real_slides
from toy import GENES

from stflow_graph.data.genes import read_gene_list, slides_chosen_on, write_gene_list
from stflow_graph.data.load import load_slide
from stflow_graph.data.splits import Fold
from stflow_graph.errors import BadConfig, BadInput
from stflow_graph.preparation.gene_lists import GeneRule
from stflow_graph.stages.choose_genes import choose_genes
from stflow_graph.stats.metrics import morans_i, neighbour_mean


def fold(index):
    return Fold(index, (), ())


FEW = GeneRule(n_genes=3)


def lists(cohort):
    return {file.name: file.read_bytes() for file in cohort.root.glob("*_3genes_fold*.json")}


def change(cohort, slide, factor):
    adata = anndata.read_h5ad(cohort.expression(slide))
    adata.X = adata.X.multiply(factor).tocsr().astype(np.float32)
    adata.write_h5ad(cohort.expression(slide))


@pytest.mark.parametrize("method", ["hvg", "mean", "moran"])
def test_every_fold_gets_a_list_that_has_not_seen_its_test_slides(cohort, method):
    rule = GeneRule(method, n_genes=3)
    done = choose_genes(cohort.root, rule)
    assert [chosen.file.name for chosen in done] == [rule.file_name(fold(i)) for i in range(4)]
    before = lists(cohort)
    for chosen in done:
        assert set(read_gene_list(chosen.file)) == set(chosen.genes.index)
        assert len(chosen.genes) == 3
        assert not chosen.up_to_date
    # slide A is tested by fold 0, so its counts may decide the other folds' lists alone
    change(cohort, "A", np.array([1, 1, 1, 0, 0, 0]))
    choose_genes(cohort.root, rule, overwrite=True)
    after = lists(cohort)
    assert after[rule.file_name(fold(0))] == before[rule.file_name(fold(0))]
    assert all(
        set(json.loads(after[rule.file_name(fold(i))])["genes"]) <= set(GENES[:3])
        for i in (1, 2, 3)
    )


def test_morans_i_is_that_of_the_metrics(cohort):
    (chosen,) = choose_genes(cohort.root, GeneRule("moran", n_genes=6), folds=[0])
    found = chosen.genes["score"]
    slides = [load_slide(cohort.embedding(s), cohort.expression(s)) for s in "BCD"]
    expected = np.mean([morans_i(s.truth, neighbour_mean(s.coords)) for s in slides], axis=0)
    np.testing.assert_allclose([found[g] for g in GENES], expected, rtol=1e-6)


def test_again_writes_nothing_and_another_list_is_kept(cohort):
    choose_genes(cohort.root, FEW)
    assert all(chosen.up_to_date for chosen in choose_genes(cohort.root, FEW))
    own = cohort.root / FEW.file_name(fold(0))
    write_gene_list(own, ["mine", *GENES[:2]])
    with pytest.raises(BadInput, match="genes: found a list without .* of the 3 genes chosen now"):
        choose_genes(cohort.root, FEW)
    assert "mine" in own.read_text()
    choose_genes(cohort.root, FEW, overwrite=True)
    assert "mine" not in own.read_text()


def test_a_list_names_its_slides_and_is_written_anew_for_others(cohort):
    choose_genes(cohort.root, FEW)
    file = cohort.root / FEW.file_name(fold(0))
    assert slides_chosen_on(file) == ["B", "C", "D"]
    genes = read_gene_list(file)
    write_gene_list(file, genes, ["A", "B", "C"])
    assert [c.up_to_date for c in choose_genes(cohort.root, FEW)] == [False, True, True, True]
    assert slides_chosen_on(file) == ["B", "C", "D"]
    write_gene_list(file, genes)  # a published list names none
    assert all(c.up_to_date for c in choose_genes(cohort.root, FEW))


def test_a_panel_a_folder_and_folds_can_be_given(cohort, tmp_path):
    write_gene_list(tmp_path / "panel.json", [*GENES[2:5], "OTHER"])
    rule = GeneRule(n_genes=3, panel=tmp_path / "panel.json")
    before = sorted(cohort.root.iterdir())
    (chosen,) = choose_genes(cohort.root, rule, folds=[2], out=tmp_path / "lists")
    assert read_gene_list(tmp_path / "lists/var_3genes_fold2.json") == GENES[2:5]
    assert chosen.n_qualified == 3
    assert sorted(cohort.root.iterdir()) == before
    with pytest.raises(BadConfig, match=r"\[9\] not in cohort"):
        choose_genes(cohort.root, rule, folds=[9])


def test_a_gene_that_a_test_slide_does_not_measure_is_not_chosen(cohort):
    adata = anndata.read_h5ad(cohort.expression("A"))
    adata[:, GENES[1:]].write_h5ad(cohort.expression("A"))
    (chosen,) = choose_genes(cohort.root, GeneRule(n_genes=6), folds=[0])
    assert sorted(chosen.genes.index) == GENES[1:]


def test_no_gene_and_shared_patients_are_refused(cohort):
    with pytest.raises(BadInput, match="0 of 6 genes that .* of fold 0 share.*min-fraction"):
        choose_genes(cohort.root, GeneRule(n_genes=3, min_fraction=1.01))
    (cohort.root / "patients.csv").write_text("id,patient\nA,P\nB,P\n")
    with pytest.raises(BadInput, match="also in train_0.csv"):
        choose_genes(cohort.root, FEW)
    assert choose_genes(cohort.root, FEW, allow_patient_overlap=True)


@needs_real_slides
def test_the_stored_lists_of_real_slides_are_found(tmp_path):
    for method, name, overlaps in (("hvg", "var", (50, 50, 46)), ("mean", "mean", (50, 50, 50))):
        for chosen in choose_genes(BENCH, GeneRule(method), out=tmp_path):
            stored = read_gene_list(BENCH / f"{name}_50genes_fold{chosen.fold}.json")
            overlap = len(set(stored) & set(chosen.genes.index))
            assert overlap == overlaps[chosen.fold], (method, chosen.fold)
            if overlap == 50:
                assert read_gene_list(chosen.file) == stored
