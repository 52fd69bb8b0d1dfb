from __future__ import annotations

import csv
import dataclasses
import functools
import json
import shutil
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from artefacts import read_embeddings
from predicted import Predicted, predicted
from toy import GENES, write_slide

from stflow_graph.errors import BadInput, SomeFailed
from stflow_graph.evaluation import training_side
from stflow_graph.evaluation.baselines import NAMES, SLOW
from stflow_graph.evaluation.records import CEILING
from stflow_graph.io.expression import TRUE_MEAN, read_expression, write_expression
from stflow_graph.io.h5ad import read_h5ad
from stflow_graph.io.patches import write_patches
from stflow_graph.stages.evaluate import evaluate
from stflow_graph.stats import metrics
from stflow_graph.stats.ensembles import crps_per_gene

FILES = {"metrics.json", "metrics.csv", "report.html"}


@pytest.fixture
def predict(cohort):
    """Return a function that makes a prediction: the truth and noise."""
    return functools.partial(predicted, cohort)


@pytest.fixture
def score(cohort, tmp_path):
    """Return a function that evaluates predictions in files; without ``out`` it writes nothing."""

    def run(*predictions, out=None, truth="", n_bootstrap=5, **options):
        folder = tmp_path / (out or "in")
        files = [
            p.write(folder / "in" / f"{p.provenance['denoiser']}{i}.h5ad")
            if isinstance(p, Predicted)
            else p
            for i, p in enumerate(predictions)
        ]
        roots = {"source_dataroot": cohort.root, "embed_dataroot": cohort.embeddings}
        options = {"n_bootstrap": n_bootstrap, **roots, **options}
        return evaluate(files, cohort.root / truth, out and folder / "results", **options)

    return run


@pytest.fixture
def write_scores(score):
    """Return a function that evaluates predictions and writes the results."""
    return functools.partial(score, out="out")


def write_dark_patches(cohort, slide, seed=0):
    barcodes = read_embeddings(cohort.embedding(slide)).barcodes
    images = np.random.default_rng(seed).integers(0, 256, (len(barcodes), 6, 6, 3), dtype=np.uint8)
    path, coords = cohort.root / "patches" / f"{slide}.h5", np.zeros((len(barcodes), 2))
    with write_patches(path, barcodes, coords, size=6, size_level0=6, um_per_px=1) as writer:
        writer.append(images)
    return 255 - images[..., 0].mean(axis=(1, 2))


def rewrite_counts(cohort, slide, counts=None, **options):
    """Write a slide's expression again with other counts or further layers."""
    truth = read_expression(cohort.expression(slide))
    counts = truth.counts if counts is None else sp.csr_matrix(counts)
    names = truth.barcodes, truth.genes, truth.coords
    write_expression(cohort.expression(slide), counts, *names, um_per_px=1, **options)


def strict_json(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def rows_of(evaluation):
    return {row.name: row for row in evaluation.rows}


def test_the_truth_itself_scores_perfectly(predict, write_scores):
    evaluation = write_scores(predict(noise=0), truth="adata", n_bootstrap=20)
    row = rows_of(evaluation)["graph"]
    assert row.mean == pytest.approx(1)
    assert row.interval == (pytest.approx(1), pytest.approx(1))
    assert row.others["spearman"] == pytest.approx(1)
    assert row.others["r2"] == pytest.approx(1)
    for metric in ("mse", "moran_difference", "relative_variation", "gene_correlation_distance"):
        assert row.others[metric] == pytest.approx(0, abs=1e-6)
    assert {path.name for path in evaluation.out.iterdir()} == FILES


def test_spots_are_matched_by_barcode_and_genes_by_name(predict, score):
    prediction, rng = predict(), np.random.default_rng(1)
    shuffled = prediction.reordered(rng.permutation(36), rng.permutation(len(GENES)))
    one, other = (score(p).slides[0] for p in (prediction, shuffled))
    for metric in ("pearson", "spearman", "mse", "moran"):
        a, b = (
            dict(zip(s.genes, s.scores["graph"].per_gene[metric], strict=True))
            for s in (one, other)
        )
        assert a == pytest.approx(b)


def test_scores_are_those_of_the_metrics_on_the_transformed_counts(predict, score, cohort):
    prediction = predict("B", target="log1p_normalised")
    evaluation = score(prediction)
    counts = read_expression(cohort.expression("B"), GENES).counts.toarray().astype(float)
    expected = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    (slide,) = evaluation.slides
    np.testing.assert_allclose(slide.truth, expected, rtol=1e-5)
    pearson = metrics.pearson_per_gene(prediction.mean, expected)
    np.testing.assert_allclose(slide.scores["graph"].per_gene["pearson"], pearson, rtol=1e-5)
    assert evaluation.target == "log1p_normalised"


@pytest.mark.parametrize("place", ["adata/A.h5ad", "adata", "", ".."])
def test_the_truth_may_be_a_file_a_folder_a_data_set_or_a_root(place, predict, score):
    assert score(predict(), truth=place).slides[0].truth_file.endswith("A.h5ad")


def test_files_and_memory_give_the_same_scores_and_memory_writes_nothing(
    predict, write_scores, cohort, tmp_path
):
    files = [predict(s, n_samples=3).write(tmp_path / f"{s}.h5ad") for s in "AB"]
    stored = write_scores(*files, baselines=True)
    truths = {slide: read_h5ad(cohort.expression(slide)) for slide in "AB"}
    predictions = [anndata.read_h5ad(file) for file in files]
    roots = {"source_dataroot": cohort.root, "embed_dataroot": cohort.embeddings}
    in_memory = evaluate(predictions, truths, n_bootstrap=5, baselines=True, **roots)
    assert in_memory.table().equals(stored.table())
    assert (in_memory.out, in_memory.slides[0].truth_file) == (None, "")


def test_json_and_csv_hold_the_same_scores_and_no_nan(predict, write_scores):
    evaluation = write_scores(predict("A"), predict("B"), baselines=True, n_bootstrap=20)
    content = strict_json(evaluation.out / "metrics.json")
    with (evaluation.out / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    models = {row.name for row in evaluation.rows} - {CEILING}
    assert len(table) == 2 * len(models) * len(GENES)
    for line in table:
        stored = content["models"][line["model"]]["slides"][line["slide"]]["genes"][line["gene"]]
        for name, value in stored.items():
            assert line[name] == ("" if value is None else f"{value:.6g}")
    assert content["models"]["gene mean"]["slides"]["A"]["mean"]["pearson"] is None
    assert content["models"]["gene mean"]["slides"]["A"]["n_genes_defined"]["pearson"] == 0
    slide = content["protocol"]["slides"]["A"]
    assert (slide["fold"], slide["train_slides"]) == (0, ["B", "C", "D"])
    assert (slide["n_spots_predicted"], slide["n_spots_scored"]) == (36, 36)
    assert content["provenance"]["A"]["graph"]["encoder"] == "toy"
    assert [row["name"] for row in content["table"]] == [row.name for row in evaluation.rows]


def test_same_input_same_bytes_and_slides_do_not_touch_each_other(predict, write_scores, tmp_path):
    files = [predict(s).write(tmp_path / f"{s}.h5ad") for s in "AB"]
    runs = (("one", files), ("two", files), ("alone", files[:1]))
    one, two, alone = (write_scores(*some, out=name).out for name, some in runs)
    for file in FILES:
        assert (one / file).read_bytes() == (two / file).read_bytes()
    both, alone = (strict_json(folder / "metrics.json") for folder in (one, alone))
    assert both["models"]["graph"]["slides"]["A"] == alone["models"]["graph"]["slides"]["A"]
    assert both["truth"]["A"] == alone["truth"]["A"]


def test_baselines_are_scored_beside_the_model_and_the_best_is_compared(predict, score, cohort):
    dark = {s: write_dark_patches(cohort, s) for s in "AB"}
    predictions = [predict(s, noise=0.1) for s in "AB"]
    evaluation = score(*predictions, baselines=True, n_bootstrap=50)
    rows = rows_of(evaluation)
    kinds = [row.kind for row in evaluation.rows]
    assert kinds == sorted(kinds, key=["model", "baseline", "reference"].index)
    quick = set(NAMES) - set(SLOW)
    assert set(rows) == {"graph", *quick, CEILING}
    # the toy's counts follow its embeddings spot by spot: ridge must win, smoothing must not
    best = max(quick, key=lambda name: np.nan_to_num(rows[name].mean, nan=-1))
    assert evaluation.best_baseline == best in ("ridge", "tuned ridge")
    assert rows["ridge"].mean > 0.5 > rows["smoothed ridge"].mean > rows["darkness"].mean
    graph = rows["graph"]
    assert graph.difference == pytest.approx(graph.mean - rows[best].mean)
    assert graph.difference_interval[0] < graph.difference < graph.difference_interval[1]
    assert graph.interval[0] < graph.mean < graph.interval[1]
    assert rows["ridge"].difference is None
    for slide in evaluation.slides:
        per_gene = slide.scores["darkness"].per_gene
        expected = metrics.pearson_per_gene(np.tile(dark[slide.id][:, None], 6), slide.truth)
        np.testing.assert_allclose(per_gene["pearson"], expected)
        assert "mse" not in per_gene


def test_baselines_are_fitted_once_a_fold_on_its_training_slides(predict, score, monkeypatch):
    fitted, fit = [], training_side.fit_baselines

    def counting(train, *, slow, seed):
        fitted.append([slide.name for slide in train])
        return fit(train, slow=slow, seed=seed)

    monkeypatch.setattr(training_side, "fit_baselines", counting)
    predictions = [
        predict(slide, denoiser=denoiser, train_slides=["C", "D"])
        for slide in "AB"
        for denoiser in ("graph", "transformer")
    ]
    evaluation = score(*predictions, baselines=True)
    assert fitted == [["C", "D"]]
    models = [row.name for row in evaluation.rows if row.kind == "model"]
    assert models == ["graph", "transformer"]
    assert [slide.name for slide in evaluation.slides] == ["A", "B"]


def test_baselines_follow_data_that_has_moved(predict, cohort, tmp_path):
    file = predict().write(tmp_path / "A.h5ad")
    root, embeddings = tmp_path / "elsewhere/renamed", tmp_path / "elsewhere/embeddings"
    shutil.move(cohort.root, root)
    shutil.move(cohort.embeddings / "cohort" / "toy", embeddings / "toy")
    roots = {"source_dataroot": root, "embed_dataroot": embeddings}
    evaluation = evaluate([file], root, tmp_path / "out", baselines=True, n_bootstrap=5, **roots)
    assert evaluation.best_baseline == "ridge"


@pytest.mark.parametrize("missing", ["source_dataroot", "embed_dataroot"])
def test_baselines_open_nothing_below_roots_that_only_the_prediction_names(
    predict, cohort, tmp_path, monkeypatch, missing
):
    # the roots of a stranger's file hold a data set that could be read
    shutil.copytree(cohort.root, tmp_path / "trap/cohort")
    shutil.copytree(cohort.embeddings, tmp_path / "trap/embeddings")
    recorded = {
        "source_dataroot": str(tmp_path / "trap/cohort"),
        "embed_dataroot": str(tmp_path / "trap/embeddings"),
    }
    file = predict(**recorded).write(tmp_path / "A.h5ad")
    roots = {"source_dataroot": cohort.root, "embed_dataroot": cohort.embeddings}
    options = {"baselines": True, "n_bootstrap": 5}
    looked_at = opened_below(tmp_path / "trap", monkeypatch)
    option = f"--{missing.replace('_', '-')}"
    with pytest.raises(BadInput, match=rf"{missing}: found '.*trap.*', expected a root given with"):
        evaluate([file], cohort.root, None, **options, **{**roots, missing: None})
    with pytest.raises(BadInput, match=f"Fix: give {option}"):
        evaluate([file], cohort.root, None, **options, **{**roots, missing: None})
    assert evaluate([file], cohort.root, None, **options, **roots).best_baseline == "ridge"
    assert looked_at == []
    # the trap would have caught it
    trapped = evaluate([file], cohort.root, None, **options, **recorded)
    assert (trapped.best_baseline, bool(looked_at)) == ("ridge", True)


def opened_below(folder, monkeypatch):
    """Return a list that gets the paths below a folder that the package looks at from now on."""
    looked_at = []
    for name in ("stat", "open", "iterdir", "glob"):
        original = getattr(Path, name)

        def watched(path, *arguments, original=original, **options):
            if folder in path.parents or path == folder:
                looked_at.append(path)
            return original(path, *arguments, **options)

        monkeypatch.setattr(Path, name, watched)
    return looked_at


def test_exclusions_are_listed_as_warnings(predict, write_scores, cohort):
    prediction = predict()
    more = dataclasses.replace(
        prediction,
        mean=np.vstack([prediction.mean, prediction.mean[:2]]),
        barcodes=[*prediction.barcodes, "new1", "new2"],
        coords=np.vstack([prediction.coords, [[1e4, 1e4], [2e4, 2e4]]]),
    )
    counts = read_expression(cohort.expression("A")).counts.toarray()
    counts[:, 3] = 2
    rewrite_counts(cohort, "A", counts)
    evaluation = write_scores(more, baselines=True)
    (slide,) = evaluation.slides
    assert (slide.n_predicted, len(slide), slide.constant_genes) == (38, 36, ["G3"])
    assert np.isnan(slide.scores["graph"].per_gene["pearson"]).nonzero()[0].tolist() == [3]
    assert np.isfinite(rows_of(evaluation)["graph"].mean)
    notes, report = "\n".join(evaluation.notes), (evaluation.out / "report.html").read_text()
    for text in ("2 of 38 spots have no truth", "1 of 6 genes are constant", "no row darkness"):
        assert text in notes
        assert text in report


def test_measured_spots_without_a_prediction_are_told(predict, write_scores):
    prediction = predict()
    fewer = dataclasses.replace(
        prediction,
        mean=prediction.mean[:30],
        barcodes=prediction.barcodes[:30],
        coords=prediction.coords[:30],
    )
    evaluation = write_scores(fewer)
    (slide,) = evaluation.slides
    assert (slide.n_predicted, slide.n_unpredicted, len(slide)) == (30, 6, 30)
    text = "6 of 36 measured spots have no prediction"
    assert any(text in note for note in evaluation.notes)
    assert text in (evaluation.out / "report.html").read_text()


def test_a_slide_that_was_trained_on_gets_no_baselines_and_a_warning(predict, score):
    evaluation = score(predict(train_slides=["A", "B"]), baselines=True)
    assert [row.name for row in evaluation.rows] == ["graph", CEILING]
    assert evaluation.slides[0].held_out is False
    assert any("trained on this slide" in note for note in evaluation.notes)


def test_means_leave_training_slides_out(predict, score):
    predictions = [predict("A"), predict("B", fold=0, train_slides=["B", "C"])]
    evaluation = score(*predictions, baselines=True)
    row, alone = (
        rows_of(evaluation)["graph"],
        rows_of(score(predictions[0], baselines=True))["graph"],
    )
    assert row.slides.keys() == {"A", "B"}
    assert (row.mean, row.interval) == (alone.mean, alone.interval)
    assert (row.difference, row.of_ceiling) == (alone.difference, alone.of_ceiling)
    assert [slide.name for slide in evaluation.averaged] == ["A"]
    only = score(predictions[1])
    assert rows_of(only)["graph"].mean == row.slides["B"]
    assert (only.test_slides, [slide.name for slide in only.averaged]) == ([], ["B"])


def test_samples_give_scores_of_distributions(predict, write_scores):
    prediction = predict(noise=0.4, n_samples=5)
    evaluation = write_scores(prediction)
    (slide,) = evaluation.slides
    crps = crps_per_gene(prediction.samples, slide.truth)
    np.testing.assert_allclose(slide.scores["graph"].per_gene["crps"], crps)
    stored = strict_json(evaluation.out / "metrics.json")
    by_scale = stored["models"]["graph"]["slides"]["A"]["calibration_by_scale"]
    assert [(part["spots"], part["genes"]) for part in by_scale] == [
        (spots, genes) for spots in (1, 9, 25, 36) for genes in ("each", "mean")
    ]
    of_spots = stored["models"]["graph"]["slides"]["A"]["coverage"]
    assert [part["covered"] for part in by_scale[0]["raw"]] == [p["covered"] for p in of_spots]
    assert [part["whole_slide"] for part in by_scale] == 6 * [False] + 2 * [True]
    assert (len(by_scale[0]["centred"]), by_scale[-1]["centred"]) == (3, [])
    (row,) = (row for row in stored["table"] if row["name"] == "graph")
    assert 0 < row["region_energy_score"] < row["energy_score"]
    # noise that is drawn spot by spot, about a mean whose error is as well
    assert abs(row["residual_moran_difference"]) < 0.2
    coverage = stored["models"]["graph"]["slides"]["A"]["coverage"]
    assert [part["level"] for part in coverage] == [0.5, 0.8, 0.9]
    assert rows_of(evaluation)["graph"].others["coverage_50"] == coverage[0]["covered"]


@pytest.mark.parametrize(("target", "scored"), [("log1p", True), ("log1p_normalised", False)])
def test_the_simulators_mean_is_a_reference_for_log1p_only(target, scored, predict, score, cohort):
    mean = np.log1p(read_expression(cohort.expression("A")).counts.toarray()) + 0.01
    rewrite_counts(cohort, "A", layers={TRUE_MEAN: mean})
    rows = rows_of(score(predict(target=target)))
    assert ("true mean (simulator)" in rows) == scored
    assert not scored or rows["true mean (simulator)"].mean > 0.99


def test_models_of_one_name_are_distinguished_by_folder(predict, score, tmp_path):
    runs = tmp_path / "runs"
    for run in ("a", "b"):
        for slide in "AB":
            predict(slide, seed=ord(run)).write(runs / run / "predictions" / f"{slide}.h5ad")
    evaluation = score(*(runs / run / "predictions" for run in "ab"))
    assert [row.name for row in evaluation.rows] == ["graph (a)", "graph (b)", CEILING]
    # folds of one run lie in folders of their own, and are one model
    evaluation = score(*(predict(s).write(runs / f"fold{s}" / f"{s}.h5ad") for s in "AB"))
    assert [row.name for row in evaluation.rows] == ["graph", CEILING]
    assert set(evaluation.rows[0].slides) == {"A", "B"}


def test_a_model_cannot_pass_for_a_baseline(predict, score):
    rows = rows_of(score(predict(denoiser="ridge"), baselines=True))
    assert (rows["ridge (model)"].kind, rows["ridge"].kind) == ("model", "baseline")


def test_a_mean_is_given_only_over_all_slides(predict, write_scores):
    evaluation = write_scores(predict("A"), predict("B"), predict("A", denoiser="transformer"))
    rows = rows_of(evaluation)
    assert np.isfinite(rows["graph"].mean)
    assert np.isnan(rows["transformer"].mean)
    assert set(rows["transformer"].slides) == {"A"}
    strict_json(evaluation.out / "metrics.json")


def test_pooled_correlation_is_over_the_test_slides_of_a_fold_together(predict, score):
    evaluation = score(*(predict(slide, fold=7) for slide in "AB"))
    mean = np.concatenate([slide.predictions["graph"] for slide in evaluation.slides])
    truth = np.concatenate([slide.truth for slide in evaluation.slides])
    pooled = metrics.mean_of_defined(metrics.pearson_per_gene(mean, truth))
    assert rows_of(evaluation)["graph"].others["pearson_pooled"] == pytest.approx(pooled)


def test_foreign_numbers_in_the_provenance_do_not_break_json(predict, write_scores):
    evaluation = write_scores(predict(loss=float("nan"), list=[float("inf"), 1]))
    stored = strict_json(evaluation.out / "metrics.json")["provenance"]["A"]["graph"]
    assert (stored["loss"], stored["list"]) == (None, [None, 1])


def change(**provenance):
    def apply(prediction):
        prediction.provenance |= provenance

    return apply


def rename(prediction):
    prediction.barcodes = [f"{barcode}-1" for barcode in prediction.barcodes]


def foreign_gene(prediction):
    prediction.genes = [*prediction.genes[:-1], "ENSG1"]


def foreign_genes(prediction):
    prediction.genes = [*prediction.genes[:2], "X0", "X1", "X2", "X3"]


def two_spots(prediction):
    prediction.__dict__ |= prediction.reordered([0, 1], range(6)).__dict__


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (rename, r"0\.h5ad: barcodes: found 0 of 36 barcodes in A\.h5ad.*Fix: .*suffixes"),
        (foreign_genes, r"A\.h5ad: var_names: found 4 of 6 genes absent, such as \['X0', 'X1'"),
        (two_spots, "barcodes: found 2 spots with a truth, expected at least 3"),
        (change(target="log2"), r"target: found 'log2', expected log1p or log1p_normalised"),
        (change(slide="../../etc/passwd"), r"slide: found '\.\./\.\./etc/passwd'"),
        (change(slide="Z"), r"cohort: truth: found no Z\.h5ad, expected expression of slide Z"),
        (change(dataset="../x"), r"dataset: found '\.\./x'"),
        (change(encoder="../x"), r"encoder: found '\.\./x'"),
        (change(denoiser=3), r"denoiser: found 3, expected text"),
        (change(train_slides="A"), r"train_slides: found 'A', expected a list"),
        (change(train_slides=["B", "Q"]), r"splits: found 1 of 2 absent, such as \['Q'\]"),
        (change(train_slides=[]), r"splits: found 0 of 0 absent"),
        (
            change(encoder="other"),
            r"other.fp32.B\.h5: file: found no file.*Fix: run `stflow-graph embed`",
        ),
    ],
)
def test_a_prediction_that_does_not_fit_is_refused(apply, message, predict, write_scores, tmp_path):
    prediction = predict()
    apply(prediction)
    with pytest.raises(BadInput, match=message):
        write_scores(prediction, baselines=True)
    assert not (tmp_path / "out/results").exists()


def test_baselines_need_embeddings_of_all_spots(predict, score, cohort):
    prediction = predict()
    write_slide(cohort.embedding("A"), None, 30, 0)
    with pytest.raises(BadInput, match=r"barcodes: found \d+ of 36 spots absent"):
        score(prediction, baselines=True)


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (rename, "obs_names: found 36 spots, 36 absent"),
        (foreign_gene, r"var_names: found 2 others, such as \['ENSG1', 'G5'\]"),
        (change(target="log1p_normalised"), "target: found 'log1p_normalised', expected 'log1p'"),
        (change(denoiser="graph"), "slide: found 'A' also in .*graph0.h5ad"),
        (change(train_slides=["B"]), r"train_slides: found \['B'\], expected the same"),
        (change(encoder="uni_v1"), "encoder: found 'uni_v1', expected the same"),
    ],
)
def test_models_that_do_not_compare_are_refused(apply, message, predict, write_scores, tmp_path):
    prediction = predict(denoiser="transformer")
    apply(prediction)
    with pytest.raises(BadInput, match=message):
        write_scores(predict(), prediction, baselines=True)
    assert not (tmp_path / "out/results").exists()


def test_files_that_are_no_predictions_are_refused(score, cohort, tmp_path):
    (tmp_path / "empty").mkdir()
    for paths, message in (
        ([tmp_path / "absent.h5ad"], "No such file"),
        ([cohort.expression("A")], "expected 'stflow_graph' with its provenance"),
        ([tmp_path / "empty"], r"no \.h5ad file"),
        ([], "predictions: list: found none, expected at least one"),
    ):
        with pytest.raises(BadInput, match=message):
            score(*paths)


def test_an_output_that_is_a_file_is_refused_before_any_work(write_scores, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/results").write_text("mine")
    with pytest.raises(BadInput, match="output: found a file, expected a folder"):
        write_scores(tmp_path / "absent")
    assert (tmp_path / "out/results").read_text() == "mine"


def test_progress_names_the_steps(predict, write_scores):
    steps = []
    write_scores(predict(), progress=steps.append)
    assert steps == ["reading", "scoring A", "bootstrap", "report"]


def rename_genes(path, names, column=None):
    adata = anndata.read_h5ad(path)
    if column is not None:
        adata.var[column] = list(adata.var_names)
    adata.var_names = names
    adata.write_h5ad(path)


def test_a_truth_with_other_gene_names_scores_the_same(predict, score, cohort):
    prediction = predict()
    before = score(prediction, baselines=True)
    for slide in "ABCD":
        names = [f"ENSG0000014151{i}.7" for i in range(6)]
        rename_genes(cohort.expression(slide), names, column="gene_name")
    after = score(prediction, baselines=True)
    scores = [{row.name: row.slides["A"] for row in run.rows} for run in (before, after)]
    assert scores[1] == pytest.approx(scores[0], nan_ok=True)
    assert "A: 6 of 6 genes matched by symbol" in after.notes


def test_genes_that_the_truth_lacks_are_left_out_and_named(predict, write_scores, cohort, tmp_path):
    prediction = predict()
    whole = write_scores(prediction).slides[0].scores["graph"].per_gene["pearson"]
    rename_genes(cohort.expression("A"), ["G0", "G1", "other", "G3", "G4", "G5"])
    part = write_scores(prediction, baselines=True)
    (slide,) = part.slides
    assert slide.genes == ["G0", "G1", "G3", "G4", "G5"]
    pearson = slide.scores["graph"].per_gene["pearson"]
    np.testing.assert_allclose(pearson, whole[[0, 1, 3, 4, 5]])
    assert "A: 1 of 6 genes are not in the truth (G2)" in part.notes
    protocol = strict_json(part.out / "metrics.json")["protocol"]
    assert protocol["slides"]["A"]["absent_genes"] == ["G2"]
    rename_genes(cohort.expression("A"), ["G0", "G1", *"wxyz"])
    with pytest.raises(BadInput, match="4 of 6 genes absent"):
        write_scores(prediction, out="none")
    assert not (tmp_path / "none/results").exists()


def test_predictions_of_two_protocols_get_a_line(predict, write_scores):
    def scored(*names):
        return write_scores(
            *(predict(denoiser=f"model{i}", protocol=n) for i, n in enumerate(names))
        )

    two = scored("log1p | a.json | x | 1", "log1p | b.json | x | 2")
    assert two.notes[0] == (
        "cohort: 2 protocols in one table, whose scores do not compare: "
        "log1p | a.json | x | 1; log1p | b.json | x | 2"
    )
    assert "2 protocols in one table" in (two.out / "report.html").read_text()
    for names in (("one", "one"), ("one", None)):
        evaluation = scored(*names)
        assert (evaluation.protocols, evaluation.notes) == (["one"], [])
    protocol = strict_json(evaluation.out / "metrics.json")["protocol"]
    assert (protocol["names"], protocol["slides"]["A"]["name"]) == (["one"], "one")
    assert '<p class="facts">one</p>' in (evaluation.out / "report.html").read_text()
    assert scored(None).protocols == []


def test_a_foreign_error_on_one_slide_leaves_the_results_of_the_others(
    predict, write_scores, tmp_path, monkeypatch
):
    calls, real = [], metrics.spearman_per_gene

    def breaks_once(*arrays: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("deep inside a library")
        return real(*arrays)

    monkeypatch.setattr(metrics, "spearman_per_gene", breaks_once)
    with pytest.raises(SomeFailed, match="1 of 2 slides failed: A: unexpected: deep inside"):
        write_scores(predict("A"), predict("B"))
    written = strict_json(tmp_path / "out/results/metrics.json")
    assert set(written["models"]["graph"]["slides"]) == {"B"}
    monkeypatch.setattr(metrics, "spearman_per_gene", lambda *_: real(0))
    with pytest.raises(SomeFailed, match="2 of 2 slides failed: A: .*; B: "):
        write_scores(predict("A"), predict("B"))
