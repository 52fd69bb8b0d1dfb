from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from toy import CHANNELS, GENES

import stflow_graph
from stflow_graph import api
from stflow_graph.config import load_config
from stflow_graph.encoders import create_encoder
from stflow_graph.errors import BadConfig, BadInput
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.io.h5ad import read_h5ad
from stflow_graph.io.patches import open_patches
from stflow_graph.io.predictions import KEY, read_prediction
from stflow_graph.preparation.engine import EmbedSettings
from stflow_graph.simulation.cohort import simulate_cohort
from stflow_graph.stages.embed import embed
from stflow_graph.stages.evaluate import evaluate
from stflow_graph.stages.sample import sample
from stflow_graph.stages.train import train


@pytest.fixture
def slides(cohort):
    return {
        name: api.Slide.from_hest(
            cohort.root, name, embed_dataroot=cohort.embeddings, encoder="toy"
        )
        for name in cohort.slides
    }


@pytest.fixture
def settings(cohort):
    return {k: v for k, v in cohort.settings.items() if not k.startswith(("data", "train.folds"))}


@pytest.mark.parametrize("denoiser", ["graph", "transformer"])
def test_the_stages_give_what_the_files_give(cohort, slides, settings, tmp_path, denoiser):
    config = load_config(None, {**cohort.settings, "denoiser.name": denoiser, "train.epochs": 1})
    train(config, tmp_path / "run")
    drawing = SampleSettings(n_samples=3, seed=5)
    sample(tmp_path / "run", [cohort.embedding("A")], tmp_path / "out", drawing)
    file = tmp_path / "out" / "A.h5ad"
    written = read_h5ad(file)
    scored = evaluate([file], cohort.root, tmp_path / "eval", n_bootstrap=20)

    genes = cohort.root / "var_50genes.json"
    learned = [slides[name] for name in "BCD"]
    model = api.train(learned, genes, settings=settings, denoiser=denoiser, epochs=1)
    found = api.sample(model, slides["A"], n_samples=3, seed=5)
    np.testing.assert_array_equal(found.X, written.X)
    np.testing.assert_array_equal(found.obsm["spatial"], written.obsm["spatial"])
    assert (list(found.obs_names), list(found.var_names)) == (list(written.obs_names), GENES)
    assert set(found.layers) == set(written.layers) == {"sample_0", "sample_1", "sample_2", "std"}
    for name, layer in found.layers.items():
        np.testing.assert_array_equal(layer, written.layers[name])
    expected = [each.var["expected_pearson"] for each in (found, written)]
    np.testing.assert_array_equal(*expected)

    scores = api.evaluate(found, read_h5ad(cohort.expression("A")), n_bootstrap=20)
    assert scores.table().equals(scored.table())
    assert scores.out is None


def test_slides_of_different_panels_are_trained_on_together(panels, settings):
    a, *learned = (
        api.Slide.from_hest(panels.root, name, embed_dataroot=panels.embeddings, encoder="toy")
        for name in panels.slides
    )
    with pytest.raises(BadInput, match="3 of 6 genes absent.*--missing-genes mask"):
        api.train(learned, GENES, settings=settings)
    with pytest.raises(BadInput, match="train: genes: found 1 of 7 in none, such as .'NOPE'"):
        api.train(learned, [*GENES, "NOPE"], settings=settings, missing_genes="mask")
    model = api.train(learned, GENES, settings=settings, missing_genes="mask")
    assert model.checkpoint.provenance["missing_genes"] == {"B": 3}
    prediction = api.sample(model, a, n_samples=3)
    assert list(prediction.var_names) == GENES
    assert np.isfinite(prediction.X).all()
    scores = api.evaluate(prediction, a.to_anndata(), n_bootstrap=9)
    assert scores.slides[0].absent_genes == ["G0"]


def test_what_is_sampled_in_memory_can_be_written_and_read(slides, settings, tmp_path):
    model = api.train([slides["B"]], GENES, settings=settings, epochs=1)
    found = api.sample(model, slides["A"])
    found.write_h5ad(tmp_path / "A.h5ad")
    stored = read_prediction(tmp_path / "A.h5ad")
    np.testing.assert_array_equal(stored.mean, found.X)
    assert stored.slide == "A"
    assert stored.provenance["train_slides"] == ["B"]
    assert KEY in found.uns


def test_anndata_in_gives_what_files_give(cohort, slides, settings):
    def in_memory(name):
        adata = read_h5ad(cohort.expression(name))
        adata.obsm["X_toy"] = slides[name].x
        return api.Slide.from_anndata(adata, name=name, embeddings="X_toy", encoder="toy")

    learned = [in_memory(name) for name in "BC"]
    model = api.train(learned, GENES, settings=settings, epochs=1)
    other = api.train([slides[name] for name in "BC"], GENES, settings=settings, epochs=1)
    found = [m.predict(s).X for m, s in ((model, in_memory("A")), (other, slides["A"]))]
    np.testing.assert_array_equal(*found)


def test_patches_in_files_and_in_memory_give_the_stages_embeddings(tmp_path):
    root = simulate_cohort(tmp_path / "cohort", n_slides=2, n_spots=6, n_folds=2, patch_size=32)
    encoder = create_encoder("efficientnet_lite0")
    embed(root, tmp_path / "emb", encoder, EmbedSettings(batch_size=4))
    want = api.Slide.from_hest(root, "S01", embed_dataroot=tmp_path / "emb")
    bare = api.Slide.from_hest(root, "S01")
    assert bare.width == 0
    (found,) = api.embed([bare], encoder, batch_size=4, device="cpu")
    np.testing.assert_array_equal(found.x, want.x)
    np.testing.assert_array_equal(found.coords, want.coords)
    assert found.encoder == want.encoder == "efficientnet_lite0"

    with open_patches(bare.patches) as file:
        patches = file.images[:]
    held = api.Slide.from_anndata(bare.to_anndata(), patches=patches)
    assert held.name == "S01"
    rows = np.array([4, 1, 3])
    (some,) = api.embed([held.take(rows)], encoder, device="cpu")
    np.testing.assert_allclose(some.x, want.x[rows], atol=1e-5)

    renamed = dataclasses.replace(bare, barcodes=["elsewhere", *bare.barcodes[1:]])
    with pytest.raises(BadInput, match=r"S01.h5: barcodes: found 1 of 6 spots absent.*elsewhere"):
        api.embed([renamed], encoder, device="cpu")


def test_spots_without_counts_are_left_out(cohort, slides, caplog):
    adata = read_h5ad(cohort.expression("A"))[5:].copy()
    adata.write_h5ad(cohort.expression("A"))
    slide = api.Slide.from_hest(cohort.root, "A", embed_dataroot=cohort.embeddings, encoder="toy")
    assert slide.barcodes == slides["A"].barcodes[5:]
    assert list(slide.adata.obs_names) == slide.barcodes
    assert "5 of 36 spots have no expression" in caplog.text


def test_a_slide_and_back(slides):
    slide = slides["A"]
    again = api.Slide.from_anndata(slide.to_anndata(), embeddings="embeddings", encoder="toy")
    np.testing.assert_array_equal(again.x, slide.x)
    np.testing.assert_array_equal(again.coords, slide.coords)
    assert (again.barcodes, again.name, again.um_per_px) == (slide.barcodes, "A", 1.0)
    assert slide.adata.obsm.keys() == {"spatial"}  # what was given is not changed


def test_bad_slides_are_refused(cohort, slides, settings):
    adata = read_h5ad(cohort.expression("A"))
    bad = slides["A"].x.copy()
    bad[3] = np.nan
    cases = [
        (lambda: api.Slide.from_hest(cohort.root, "Z"), "no patches/Z.h5"),
        (lambda: api.Slide.from_hest(cohort.root, "../A"), "letters, digits"),
        (lambda: api.Slide.from_anndata(adata), "give name="),
        (lambda: api.Slide.from_anndata(adata, name="A", embeddings=bad), r"1 of 36 .* \[3\]"),
        (lambda: api.Slide.from_anndata(adata, name="A", embeddings="X_uni"), "X_uni"),
        (lambda: api.embed([slides["A"]]), "patches: found none"),
        (lambda: api.train([], GENES), "slides: found none"),
        (lambda: api.train([slides["A"]] * 2, GENES), r"\['A'\] twice"),
        (lambda: api.train([slides["A"]], ["G0", "Q"], settings=settings), "1 of 2 genes absent"),
        (lambda: api.train([api.Slide.from_anndata(adata, name="A")], GENES), "api.embed"),
    ]
    for case, message in cases:
        with pytest.raises(BadInput, match=message):
            case()
    del adata.obsm["spatial"]
    with pytest.raises(BadInput, match="'spatial'"):
        api.Slide.from_anndata(adata, name="A")


def test_bad_options_are_refused(slides, settings):
    with pytest.raises(BadConfig, match=r"unknown option 'epoch'; known: target.*epochs"):
        api.train([slides["A"]], GENES, epoch=1)
    model = api.train([slides["B"]], GENES, settings=settings, epochs=1)
    other = api.Slide.from_anndata(
        slides["A"].to_anndata(), embeddings=slides["A"].x, encoder="uni_v1"
    )
    with pytest.raises(BadConfig, match=f"'uni_v1' with {CHANNELS} channels"):
        api.sample(model, other)
    with pytest.raises(BadInput, match="counts of slide 'A'"):
        api.evaluate(api.sample(model, slides["A"]), {"B": slides["B"].to_anndata()})
    both = [api.sample(model, slides[name]) for name in "AB"]
    with pytest.raises(BadInput, match="slide to counts"):
        api.evaluate(both, slides["A"].to_anndata())
    truths = {name: slides[name].adata for name in "AB"}
    assert list(api.evaluate(both, truths, n_bootstrap=5).table().index)[0] == "graph"


def test_the_top_level_names_are_there_but_cost_nothing():
    code = "import sys, stflow_graph; assert not {'torch', 'anndata'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(stflow_graph.__all__) <= set(dir(stflow_graph))
    for name in {*stflow_graph.__all__} - {"__version__"}:
        assert getattr(stflow_graph, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        stflow_graph.nothing  # noqa: B018
