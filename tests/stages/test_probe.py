from __future__ import annotations

import json

import anndata
import numpy as np
import pytest
import torch
from artefacts import read_embeddings
from real import BENCH, DATA, needs_real_slides
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from torch import nn
from toy import GENES, SLIDES, add_encoder, write_slide

from stflow_graph.encoders import Encoder, PatchTransform
from stflow_graph.errors import BadConfig, BadInput, SomeFailed
from stflow_graph.evaluation import encoder_probe
from stflow_graph.evaluation.encoder_probe import ProbeSettings
from stflow_graph.io.patches import write_patches
from stflow_graph.stages.probe import probe


def no_encoder(name):
    pytest.fail(f"made {name}, though nothing is missing")


def run(cohort, out, encoders=("toy",), **options):
    options = {"make_encoder": no_encoder, **options}
    return probe(cohort.root, cohort.embeddings, out, encoders, **options)


def arrays(cohort, slides):
    """Read embeddings and log1p counts of slides with h5py and anndata alone."""
    xs, ys = [], []
    for slide in slides:
        found = read_embeddings(cohort.embedding(slide))
        counts = anndata.read_h5ad(cohort.expression(slide))[found.barcodes, GENES].X.toarray()
        xs.append(found.x.astype(np.float64))
        ys.append(np.log1p(counts))
    return np.concatenate(xs), np.concatenate(ys)


def by_hand(cohort, test, *, components, regressor):
    """Score a fold with scikit-learn's classes, step by step as HEST's code goes."""
    x, y = arrays(cohort, [slide for slide in SLIDES if slide != test])
    x_test, y_test = arrays(cohort, [test])
    if components:
        scaler = StandardScaler().fit(x)
        reduce = PCA(components, random_state=1).fit(scaler.transform(x))
        x, x_test = (reduce.transform(scaler.transform(each)) for each in (x, x_test))
    predicted = regressor(x.shape[1] * y.shape[1]).fit(x, y).predict(x_test)
    return [pearsonr(t, p)[0] for t, p in zip(y_test.T, predicted.T, strict=True)]


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
    cohort, tmp_path, settings, components, regressor
):
    (cell,) = run(cohort, tmp_path / "out", settings=settings)
    table = json.loads((tmp_path / "out/cohort/toy/results_kfold.json").read_text())
    expected = [
        by_hand(cohort, slide, components=components, regressor=regressor) for slide in SLIDES
    ]
    found = [gene["pearson_corrs"] for gene in table["pearson_corrs"]]
    np.testing.assert_allclose(np.transpose(found), expected, rtol=1e-6)
    np.testing.assert_allclose(cell.folds, np.mean(expected, axis=1), rtol=1e-6)
    assert cell.mean == pytest.approx(np.mean(cell.folds))
    assert cell.std == pytest.approx(np.std(cell.folds))
    assert cell.mean > 0.2  # the toy's expression is log-linear in its embeddings


def test_the_files_are_hests_and_the_better_encoder_comes_first(cohort, tmp_path):
    add_encoder(cohort, "noisy", 3.0)
    cells = run(cohort, tmp_path / "out", ["noisy", "toy"])
    assert [cell.encoder for cell in cells] == ["noisy", "toy"]
    out = tmp_path / "out"
    table = json.loads((out / "cohort" / "enc_results.json").read_text())["results"]
    assert [row["encoder_name"] for row in table] == ["toy", "noisy"]
    assert set(table[0]) == {"encoder_name", "pearson_mean", "pearson_std"}
    overall = json.loads((out / "dataset_results.json").read_text())
    assert overall["results"] == [{"dataset_name": "cohort", "results": table}]
    assert list(overall["average"]) == ["toy", "noisy"]
    header, row = (out / "dataset_results.csv").read_text().splitlines()
    assert header == "dataset,noisy_mean,noisy_std,toy_mean,toy_std"
    assert row.split(",")[3] == str(cells[1].mean)
    fold = json.loads((out / "cohort/toy/split2/results.json").read_text())
    assert fold["provenance"]["test_slides"] == ["C"]
    assert fold["pearson_mean"] == pytest.approx(cells[1].folds[2])


def test_finished_folds_are_kept_and_others_made(cohort, tmp_path, monkeypatch):
    (first,) = run(cohort, tmp_path / "out")
    (tmp_path / "out/cohort/toy/split1/results.json").unlink()
    calls = []
    fit = encoder_probe.fit_ridge
    monkeypatch.setattr(encoder_probe, "fit_ridge", lambda *a, **k: calls.append(1) or fit(*a, **k))
    (again,) = run(cohort, tmp_path / "out")
    assert (len(calls), again.up_to_date) == (1, False)
    np.testing.assert_array_equal(again.folds, first.folds)
    (last,) = run(cohort, tmp_path / "out")
    assert (len(calls), last.up_to_date) == (1, True)
    run(cohort, tmp_path / "out", overwrite=True)
    assert len(calls) == 1 + len(SLIDES)


def test_results_of_other_settings_or_inputs_are_refused(cohort, tmp_path):
    run(cohort, tmp_path / "out")
    with pytest.raises(BadConfig, match=r"alpha changed.*--overwrite to score anew"):
        run(cohort, tmp_path / "out", settings=ProbeSettings(alpha=2.0))
    write_slide(cohort.embedding("B"), cohort.expression("B"), 36, seed=9)
    with pytest.raises(BadConfig, match="embeddings/B, expression/B changed"):
        run(cohort, tmp_path / "out")
    (cell,) = run(cohort, tmp_path / "out", overwrite=True)
    assert not cell.up_to_date


def colours(x):
    return torch.cat([x.mean((2, 3)), x.std((2, 3))], dim=1)


def toy_encoder(name):
    """Mean and spread of a patch's colours: nothing to load."""
    transform = PatchTransform(8, mean=(0.0,) * 3, std=(1.0,) * 3)
    return Encoder(name, nn.Identity(), 6, transform, "0" * 64, colours)


def write_slide_patches(cohort, slide):
    known = read_embeddings(cohort.embedding(slide))
    images = np.random.default_rng(0).integers(0, 256, (36, 8, 8, 3), dtype=np.uint8)
    path = cohort.root / "patches" / f"{slide}.h5"
    settings = {"size": 8, "size_level0": 8.0, "um_per_px": 1.0}
    with write_patches(path, known.barcodes, known.coords, **settings) as writer:
        writer.append(images)


def test_what_is_missing_is_embedded_once_and_nothing_else(cohort, tmp_path):
    for slide in "AB":
        write_slide_patches(cohort, slide)
    kept = cohort.embeddings / "colours" / "C.h5"  # another layout, and no patches of it
    kept.parent.mkdir()
    for slide in "CD":
        write_slide(kept.with_name(f"{slide}.h5"), None, 36, seed=0, channels=6)
    before = kept.read_bytes()
    made, seen = [], []

    def make(name):
        made.append(name)
        return toy_encoder(name)

    def progress(slide, done, total):
        seen.append(slide)

    (cell,) = run(cohort, tmp_path / "o", ["colours"], make_encoder=make, progress=progress)
    assert (made, seen, cell.n_embedded) == (["colours"], ["A", "B"], 2)
    assert kept.read_bytes() == before
    (cell,) = run(cohort, tmp_path / "o", ["colours"])
    assert (cell.n_embedded, cell.up_to_date) == (0, True)


def test_a_slide_with_neither_embeddings_nor_patches_stops_its_encoder_alone(cohort, tmp_path):
    cells = []
    with pytest.raises(SomeFailed, match=r"1 of 2 slides failed: cohort, absent: .*slide A"):
        run(cohort, tmp_path / "out", ["absent", "toy"], report=cells.append)
    assert [cell.encoder for cell in cells] == ["toy"]
    overall = json.loads((tmp_path / "out/dataset_results.json").read_text())
    assert list(overall["average"]) == ["toy"]
    with pytest.raises(BadInput, match="absent"):
        run(cohort, tmp_path / "other", ["absent"])
    assert not (tmp_path / "other").exists()


def test_patches_that_cannot_be_embedded_stop_their_encoder_alone(cohort, tmp_path):
    for slide in SLIDES:
        write_slide_patches(cohort, slide)
    for slide in "AB":
        (cohort.root / "patches" / f"{slide}.h5").write_text("no")
    with pytest.raises(SomeFailed, match=r"cohort, colours: 2 of 4 slides failed: A: .*signature"):
        run(cohort, tmp_path / "out", ["colours", "toy"], make_encoder=toy_encoder)
    assert (tmp_path / "out/cohort/toy/results_kfold.json").exists()
    assert not (tmp_path / "out/cohort/colours").exists()


def test_one_file_is_not_two_encoders(cohort, tmp_path):
    for slide in SLIDES:
        cohort.embedding(slide).rename(cohort.embeddings / f"{slide}.h5")
    run(cohort, tmp_path / "one")
    with pytest.raises(BadInput, match=r"A\.h5: encoder: found the same file for toy and other"):
        run(cohort, tmp_path / "two", ["toy", "other"])


def test_embeddings_of_different_widths_are_refused(cohort, tmp_path):
    write_slide(cohort.embedding("D"), cohort.expression("D"), 36, seed=3, channels=4)
    with pytest.raises(BadInput, match=r"widths \[4, 10\]"):
        run(cohort, tmp_path / "out")


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


@pytest.mark.parametrize("encoders", [[], ["toy", "toy"], ["uni", "uni_v1"]])
def test_encoders_are_named_once(cohort, tmp_path, encoders):
    with pytest.raises(BadConfig, match="each once"):
        run(cohort, tmp_path / "out", encoders)


def test_an_encoder_that_is_no_folder_name_is_refused(cohort, tmp_path):
    with pytest.raises(BadInput, match="encoder: found '../toy'"):
        run(cohort, tmp_path / "out", ["../toy"])


@needs_real_slides
def test_hests_ridge_on_real_slides_gives_the_known_figures(tmp_path):
    encoder = "efficientnet_lite0"
    (cell,) = probe(BENCH, DATA / "embeddings", tmp_path, [encoder], make_encoder=no_encoder)
    assert cell.fold_numbers == [0, 1, 2]
    np.testing.assert_allclose(cell.folds, [0.164, 0.122, 0.182], atol=0.02)
