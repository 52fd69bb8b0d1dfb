"""Slides of different gene panels, from the gene list to the scores, in a tiny cohort."""

from __future__ import annotations

import json

import anndata
import numpy as np
import pytest
from predicted import predicted
from toy import GENES, keep_genes

from stflow_graph.config import load_config
from stflow_graph.data.genes import read_gene_list, write_gene_list
from stflow_graph.data.load import load_slide
from stflow_graph.errors import BadInput
from stflow_graph.io.atomic import sha256
from stflow_graph.io.gene_names import GeneMatching
from stflow_graph.models.checkpoint import load_checkpoint
from stflow_graph.preparation.gene_lists import GeneRule
from stflow_graph.stages.choose_genes import choose_genes
from stflow_graph.stages.evaluate import evaluate
from stflow_graph.stages.train import train

MASK = GeneMatching(missing="mask")
WEIGHTS = "fold0/checkpoint/model.safetensors"


def run(cohort, out, **values):
    changed = {k.replace("__", "."): v for k, v in values.items()}
    settings = {**cohort.settings, "data.missing_genes": "mask", **changed}
    return train(load_config(None, settings), out)


def test_a_slide_has_nan_for_genes_that_it_lacks(panels, caplog):
    files = panels.embedding("B"), panels.expression("B")
    with pytest.raises(BadInput, match="3 of 6 genes absent.*--missing-genes mask"):
        load_slide(*files, GENES)
    slide = load_slide(*files, GENES[::-1], matching=MASK)
    np.testing.assert_array_equal(np.isnan(slide.y).all(axis=0), [True] * 3 + [False] * 3)
    np.testing.assert_array_equal(slide.y[:, 3:], load_slide(*files, GENES[2::-1]).y)
    assert f"{files[1]}: 3 of 6 genes are not measured and are masked" in caplog.text


def test_library_size_is_that_of_the_slide_whatever_the_list(panels):
    files = panels.embedding("B"), panels.expression("B")
    of_all = load_slide(*files, GENES, target="log1p_normalised", matching=MASK).y
    of_one = load_slide(*files, GENES[1:2], target="log1p_normalised").y
    np.testing.assert_array_equal(of_all[:, 1:2], of_one)
    counts = anndata.read_h5ad(files[1]).X.toarray()
    expected = np.log1p(1e4 * counts[:, 1] / counts.sum(1).clip(1))
    np.testing.assert_allclose(of_one[:, 0], expected, rtol=1e-5)


def test_what_a_file_has_beside_the_list_has_no_influence(panels, tmp_path):
    run(panels, tmp_path / "a")
    adata = anndata.read_h5ad(panels.expression("B"))
    noise = np.random.default_rng(0).poisson(9, (len(adata), 3)).astype(np.float32)
    other = anndata.AnnData(noise, adata.obs[[]])
    other.var_names = ["x", "y", "z"]
    wide = anndata.concat([adata, other], axis=1, merge="first")
    wide.obsm, wide.uns = adata.obsm, adata.uns
    wide.write_h5ad(panels.expression("B"))
    run(panels, tmp_path / "b")
    assert sha256(tmp_path / "a" / WEIGHTS) == sha256(tmp_path / "b" / WEIGHTS)


def test_masking_changes_nothing_where_nothing_is_missing(cohort, tmp_path):
    run(cohort, tmp_path / "a", data__missing_genes="refuse")
    run(cohort, tmp_path / "b")
    for name in ("model", "field", "normalisation"):
        file = f"fold0/checkpoint/{name}.safetensors"
        assert sha256(tmp_path / "a" / file) == sha256(tmp_path / "b" / file)


def test_an_interrupted_run_of_panels_goes_on_to_the_same_weights(panels, tmp_path):
    run(panels, tmp_path / "whole", train__epochs=2)
    for epochs in (1, 2):
        run(panels, tmp_path / "resumed", train__epochs=epochs)
    assert sha256(tmp_path / "whole" / WEIGHTS) == sha256(tmp_path / "resumed" / WEIGHTS)


def test_the_run_records_what_was_masked(panels, tmp_path):
    (result,) = run(panels, tmp_path / "run")
    np.testing.assert_array_equal(np.isnan(result.pearson), [True] + [False] * 5)
    stored = json.loads((tmp_path / "run/fold0/result.json").read_text())
    assert stored["pearson"][0] is None
    checkpoint = load_checkpoint(tmp_path / "run/fold0/checkpoint")
    assert checkpoint.genes == GENES
    assert checkpoint.config.data.missing_genes == "mask"
    assert checkpoint.provenance["missing_genes"] == {"B": 3}
    assert " | missing genes masked | " in checkpoint.provenance["protocol"]
    card = (tmp_path / "run/fold0/checkpoint/README.md").read_text()
    assert "| genes not measured, masked | 3 in B |" in card


def test_genes_of_no_training_slide_and_slides_of_no_gene_are_refused(panels, tmp_path):
    file = panels.root / "var_50genes.json"
    for slide in "BCD":
        keep_genes(panels, slide, *GENES[:3])
    with pytest.raises(
        BadInput, match=r"var_50genes.json: genes: found 3 of 6 in none.*min-slides"
    ):
        run(panels, tmp_path / "run")
    write_gene_list(file, GENES[:2])
    keep_genes(panels, "B", "G2")
    with pytest.raises(BadInput, match=r"B.h5ad: .* 2 of 2 genes absent.*at least one gene"):
        run(panels, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_list_of_the_union_of_panels_can_be_chosen(panels):
    rule = GeneRule("mean", n_genes=6, min_slides=1)
    (chosen,) = choose_genes(panels.root, rule, folds=[0])
    assert set(read_gene_list(chosen.file)) == set(GENES)
    assert chosen.genes.loc["G4", "slides"] == 2
    assert chosen.genes.loc["G0", "slides"] == 3
    counts = {s: anndata.read_h5ad(panels.expression(s)).to_df() for s in "BCD"}
    expected = np.concatenate([counts[s]["G4"] for s in "CD"]).mean()
    assert chosen.genes.loc["G4", "mean"] == pytest.approx(expected)
    three = GeneRule("mean", n_genes=6, min_slides=3)
    (chosen,) = choose_genes(panels.root, three, folds=[0], overwrite=True)
    assert set(chosen.genes.index) == set(GENES[:3])
    (chosen,) = choose_genes(panels.root, GeneRule("mean", 6), folds=[0], overwrite=True)
    assert set(chosen.genes.index) == {"G1", "G2"}  # which the test slide has too
    with pytest.raises(BadInput, match="--min-slides of at most 3"):
        choose_genes(panels.root, GeneRule("mean", 6, min_slides=4), folds=[0])


@pytest.mark.parametrize("method", ["hvg", "mean", "moran"])
def test_a_list_of_one_panel_is_the_same_with_any_number_of_slides(cohort, method):
    every, some = (
        choose_genes(cohort.root, GeneRule(method, 6, min_slides=n), overwrite=True)[0].genes
        for n in (None, 1)
    )
    assert every.equals(some)


def test_a_truth_of_one_gene_is_scored_where_genes_were_masked(cohort, tmp_path):
    files = [
        predicted(cohort, "A", missing_genes=rule).write(tmp_path / rule / "A.h5ad")
        for rule in ("mask", "refuse")
    ]
    keep_genes(cohort, "A", "G2")
    (slide,) = evaluate(files[:1], cohort.root / "adata", n_bootstrap=9).slides
    assert (slide.genes, slide.n_genes) == (["G2"], 6)
    assert slide.label == "A (1 of 6 genes)"
    with pytest.raises(BadInput, match="5 of 6 genes absent.*every gene"):
        evaluate(files[1:], cohort.root / "adata", n_bootstrap=9)
    adata = anndata.read_h5ad(cohort.expression("A"))
    adata.var_names = ["other"]
    adata.write_h5ad(cohort.expression("A"))
    with pytest.raises(BadInput, match="6 of 6 genes absent.*at least one gene"):
        evaluate(files[:1], cohort.root / "adata", n_bootstrap=9)


def test_scores_and_baselines_are_of_the_genes_that_a_slide_measures(panels, tmp_path):
    run(panels, tmp_path / "run", train__folds=[0, 1])
    from stflow_graph.inference.settings import SampleSettings
    from stflow_graph.stages.sample import sample

    files = [panels.embedding(slide) for slide in "AB"]
    sample(tmp_path / "run", files, tmp_path / "p", SampleSettings(4, 0))
    scores = evaluate(
        [tmp_path / "p"],
        panels.root / "adata",
        slow_baselines=True,
        source_dataroot=panels.root,
        embed_dataroot=panels.embeddings,
        n_bootstrap=9,
    )
    a, b = scores.slides
    assert (a.genes, b.genes) == (GENES[1:], GENES[:3])
    assert (a.absent_genes, b.absent_genes) == (GENES[:1], GENES[3:])
    for slide in (a, b):
        for name, score in slide.scores.items():
            assert np.isfinite(slide.predictions[name]).all(), name
            assert score.per_gene["pearson"].shape == (len(slide.genes),)
    assert "A: 1 of 6 genes are not in the truth (G0)" in scores.notes
    table = scores.table()
    assert np.isfinite(table.loc["graph", ["pearson", "pearson_pooled"]].astype(float)).all()
    assert {"ridge", "context ridge", "random forest", "simple GNN"} <= set(table.index)
