from __future__ import annotations

import json

import anndata
import numpy as np
import pytest
from artefacts import read_embeddings
from real import BENCH, DATA, needs_real_slides
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from toy import GENES, SLIDES, add_encoder, toy_encoder, write_slide

from stflow_graph.errors import BadConfig, BadInput, SomeFailed
from stflow_graph.evaluation import encoder_probe
from stflow_graph.evaluation.encoder_probe import ProbeSettings
from stflow_graph.io.patches import write_patches
from stflow_graph.stages.probe import probe


def no_encoder(name):
    pytest.fail(f"created {name}, though nothing is missing")


@pytest.fixture
def run(cohort, tmp_path):
    """Return a function that probes encoders on the cohort."""

    def probed(encoders=("toy",), *, out="out", make_encoder=no_encoder, **options):
        options["make_encoder"] = make_encoder
        return probe(cohort.root, cohort.embeddings, tmp_path / out, encoders, **options)

    return probed


def read(folder, name):
    return json.loads((folder / "out" / name).read_text())


def arrays(cohort, slides):
    """Read embeddings and log1p counts of slides with h5py and anndata alone."""
    xs, ys = [], []
    for slide in slides:
        embeddings = read_embeddings(cohort.embedding(slide))
        counts = anndata.read_h5ad(cohort.expression(slide))[embeddings.barcodes, GENES]
        xs.append(embeddings.x.astype(np.float64))
        ys.append(np.log1p(counts.X.toarray()))
    return np.concatenate(xs), np.concatenate(ys)


def ridge(alpha=None):
    def make(size):
        penalty = 100 / size if alpha is None else alpha
        return Ridge(alpha=penalty, solver="lsqr", fit_intercept=False, max_iter=1000)

    return make


def forest(size):
    return RandomForestRegressor(n_estimators=70, min_samples_leaf=5, random_state=1)


@pytest.mark.parametrize(
    ("settings", "components", "regressor"),
    [
        (ProbeSettings(n_components=4), 4, ridge()),
        (ProbeSettings(n_components=7, alpha=30.0), 7, ridge(30.0)),
        (ProbeSettings(n_components=None), None, ridge()),
        (ProbeSettings("random-forest", n_components=3), 3, forest),
        (ProbeSettings("random-forest", n_components=None), None, forest),
    ],
    ids=["ridge", "alpha", "ridge raw", "forest", "forest raw"],
)
def test_scores_are_those_of_scikit_learn_on_the_same_folds(
    cohort, run, tmp_path, settings, components, regressor
):
    (cell,) = run(settings=settings)
    expected = []
    for test in SLIDES:
        x, y = arrays(cohort, [slide for slide in SLIDES if slide != test])
        x_test, y_test = arrays(cohort, [test])
        if components:
            reduce = make_pipeline(StandardScaler(), PCA(components, random_state=1)).fit(x)
            x, x_test = reduce.transform(x), reduce.transform(x_test)
        predicted = regressor(x.shape[1] * y.shape[1]).fit(x, y).predict(x_test)
        expected.append([pearsonr(t, p)[0] for t, p in zip(y_test.T, predicted.T, strict=True)])
    genes = read(tmp_path, "cohort/toy/results_kfold.json")["pearson_corrs"]
    np.testing.assert_allclose(
        np.transpose([gene["pearson_corrs"] for gene in genes]), expected, rtol=1e-6
    )
    np.testing.assert_allclose(cell.folds, np.mean(expected, axis=1), rtol=1e-6)
    assert cell.mean == pytest.approx(np.mean(cell.folds))
    assert cell.std == pytest.approx(np.std(cell.folds))
    assert cell.mean > 0.2  # the toy's expression is log-linear in its embeddings


def test_the_files_are_hests_and_the_better_encoder_comes_first(cohort, run, tmp_path):
    add_encoder(cohort, "noisy", 3.0)
    cells = run(["noisy", "toy"])
    assert [cell.encoder for cell in cells] == ["noisy", "toy"]
    table = read(tmp_path, "cohort/enc_results.json")["results"]
    assert [row["encoder_name"] for row in table] == ["toy", "noisy"]
    assert set(table[0]) == {"encoder_name", "pearson_mean", "pearson_std"}
    overall = read(tmp_path, "dataset_results.json")
    assert overall["results"] == [{"dataset_name": "cohort", "results": table}]
    assert list(overall["average"]) == ["toy", "noisy"]
    header, row = (tmp_path / "out/dataset_results.csv").read_text().splitlines()
    assert header == "dataset,noisy_mean,noisy_std,toy_mean,toy_std"
    assert row.split(",")[3] == str(cells[1].mean)
    fold = read(tmp_path, "cohort/toy/split2/results.json")
    assert fold["provenance"]["test_slides"] == ["C"]
    assert fold["pearson_mean"] == pytest.approx(cells[1].folds[2])


def test_finished_folds_are_skipped(run, tmp_path, monkeypatch):
    (first,) = run()
    (tmp_path / "out/cohort/toy/split1/results.json").unlink()
    fits, fit = [], encoder_probe.fit_ridge
    monkeypatch.setattr(encoder_probe, "fit_ridge", lambda *a, **k: fits.append(1) or fit(*a, **k))
    (again,) = run()
    assert (len(fits), again.up_to_date) == (1, False)
    np.testing.assert_array_equal(again.folds, first.folds)
    (last,) = run()
    assert (len(fits), last.up_to_date) == (1, True)
    run(overwrite=True)
    assert len(fits) == 1 + len(SLIDES)


def test_results_of_other_settings_or_inputs_are_refused(cohort, run):
    run()
    with pytest.raises(BadConfig, match=r"alpha changed.*--overwrite to score anew"):
        run(settings=ProbeSettings(alpha=2.0))
    write_slide(cohort.embedding("B"), cohort.expression("B"), 36, seed=9)
    with pytest.raises(BadConfig, match="embeddings/B, expression/B changed"):
        run()
    (cell,) = run(overwrite=True)
    assert not cell.up_to_date


def write_slide_patches(cohort, slide):
    embeddings = read_embeddings(cohort.embedding(slide))
    images = np.random.default_rng(0).integers(0, 256, (36, 8, 8, 3), dtype=np.uint8)
    path = cohort.root / "patches" / f"{slide}.h5"
    settings = {"size": 8, "size_level0": 8.0, "um_per_px": 1.0}
    with write_patches(path, embeddings.barcodes, embeddings.coords, **settings) as writer:
        writer.append(images)


def test_missing_embeddings_are_made_once_and_nothing_else(cohort, run):
    for slide in "AB":
        write_slide_patches(cohort, slide)
    kept = cohort.embeddings / "colours" / "C.h5"  # another layout, and no patches of it
    kept.parent.mkdir()
    for slide in "CD":
        file = kept.with_name(f"{slide}.h5")
        write_slide(file, None, 36, seed=0, channels=6, encoder="colours")
    before = kept.read_bytes()
    created, seen = [], []
    (cell,) = run(
        ["colours"],
        make_encoder=lambda name: created.append(name) or toy_encoder(name),
        progress=lambda slide, done, total: seen.append(slide),
    )
    assert (created, seen, cell.n_embedded) == (["colours"], ["A", "B"], 2)
    assert kept.read_bytes() == before
    (cell,) = run(["colours"])
    assert (cell.n_embedded, cell.up_to_date) == (0, True)


def test_a_slide_with_neither_embeddings_nor_patches_stops_its_encoder_alone(run, tmp_path):
    cells = []
    with pytest.raises(SomeFailed, match=r"1 of 2 slides failed: cohort, absent: .*slide A"):
        run(["absent", "toy"], report=cells.append)
    assert [cell.encoder for cell in cells] == ["toy"]
    assert list(read(tmp_path, "dataset_results.json")["average"]) == ["toy"]
    with pytest.raises(BadInput, match="absent"):
        run(["absent"], out="other")
    assert not (tmp_path / "other").exists()


def test_patches_that_cannot_be_embedded_stop_their_encoder_alone(cohort, run, tmp_path):
    for slide in SLIDES:
        write_slide_patches(cohort, slide)
    for slide in "AB":
        (cohort.root / "patches" / f"{slide}.h5").write_text("no")
    with pytest.raises(SomeFailed, match=r"cohort, colours: 2 of 4 slides failed: A: .*signature"):
        run(["colours", "toy"], make_encoder=toy_encoder)
    assert (tmp_path / "out/cohort/toy/results_kfold.json").exists()
    assert not (tmp_path / "out/cohort/colours").exists()


def test_one_file_is_not_two_encoders(cohort, run):
    for slide in SLIDES:
        cohort.embedding(slide).rename(cohort.embeddings / f"{slide}.h5")
    run(out="one")
    with pytest.raises(BadInput, match=r"A\.h5: encoder: found the same file for toy and other"):
        run(["toy", "other"], out="two")


def test_embeddings_of_different_widths_are_refused(cohort, run):
    write_slide(cohort.embedding("D"), cohort.expression("D"), 36, seed=3, channels=4)
    with pytest.raises(BadInput, match=r"widths \[4, 10\]"):
        run()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "svm"}, "method 'svm': expected ridge or random-forest"),
        ({"target": "raw"}, "target 'raw': expected log1p"),
        ({"method": "random-forest", "alpha": 1.0}, "a random-forest has none"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, message):
    with pytest.raises(BadConfig, match=message):
        ProbeSettings(**values)


@pytest.mark.parametrize(
    ("encoders", "error", "message"),
    [
        ([], BadConfig, "each once"),
        (["toy", "toy"], BadConfig, "each once"),
        (["uni", "uni_v1"], BadConfig, "each once"),
        (["../toy"], BadInput, "encoder: found '../toy'"),
    ],
)
def test_encoders_are_named_once_and_are_folder_names(run, encoders, error, message):
    with pytest.raises(error, match=message):
        run(encoders)


@needs_real_slides
def test_hests_ridge_on_real_slides_has_the_scores_on_record(tmp_path):
    encoder = "efficientnet_lite0"
    (cell,) = probe(BENCH, DATA / "embeddings", tmp_path, [encoder], make_encoder=no_encoder)
    assert cell.fold_numbers == [0, 1, 2]
    np.testing.assert_allclose(cell.folds, [0.164, 0.122, 0.182], atol=0.02)
