from __future__ import annotations

import csv
import dataclasses
import json
import shutil

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from artefacts import read_embeddings, write_prediction
from toy import GENES, write_slide

from stflow_graph.data.load import load_slide
from stflow_graph.errors import BadInput
from stflow_graph.evaluation import training_side
from stflow_graph.evaluation.baselines import NAMES, SLOW
from stflow_graph.evaluation.records import CEILING
from stflow_graph.io.expression import TRUE_MEAN, read_expression, write_expression
from stflow_graph.io.patches import write_patches
from stflow_graph.stages.evaluate import evaluate
from stflow_graph.stats import metrics
from stflow_graph.stats.ensembles import crps_per_gene

FILES = {"metrics.json", "metrics.csv", "report.html"}


@dataclasses.dataclass
class Predicted:
    """A prediction of a slide of the cohort, to be changed before it is written."""

    mean: np.ndarray
    barcodes: list[str]
    genes: list[str]
    coords: np.ndarray
    provenance: dict
    samples: np.ndarray | None = None

    def write(self, path):
        write_prediction(
            path,
            self.mean,
            self.barcodes,
            self.genes,
            self.coords,
            provenance=self.provenance,
            samples=self.samples,
        )
        return path

    def reordered(self, spots, genes):
        return dataclasses.replace(
            self,
            mean=self.mean[np.ix_(spots, genes)],
            barcodes=[self.barcodes[i] for i in spots],
            genes=[self.genes[i] for i in genes],
            coords=self.coords[spots],
        )


@pytest.fixture
def predict(cohort):
    """Return a function that makes a prediction: the truth and noise."""

    def make(slide, *, noise=0.5, denoiser="graph", seed=0, n_samples=None, target="log1p"):
        loaded = load_slide(cohort.embedding(slide), cohort.expression(slide), GENES, target=target)
        rng = np.random.default_rng(seed)
        shape = (n_samples or 1, *loaded.y.shape)
        samples = loaded.y + noise * rng.normal(size=shape)
        provenance = {
            "slide": slide,
            "dataset": "cohort",
            "target": target,
            "encoder": "toy",
            "denoiser": denoiser,
            "fold": "ABCD".index(slide),
            "train_slides": sorted(set("ABCD") - {slide}),
            "source_dataroot": str(cohort.root),
            "embed_dataroot": str(cohort.embeddings),
            "gene_list": "var_50genes.json",
        }
        return Predicted(
            samples.mean(0).astype(np.float32),
            loaded.barcodes,
            list(GENES),
            loaded.coords,
            provenance,
            samples.astype(np.float32) if n_samples else None,
        )

    return make


def write_dark_patches(cohort, slide, seed=0):
    barcodes = read_embeddings(cohort.embedding(slide)).barcodes
    images = np.random.default_rng(seed).integers(0, 256, (len(barcodes), 6, 6, 3), dtype=np.uint8)
    with write_patches(
        cohort.root / "patches" / f"{slide}.h5",
        barcodes,
        np.zeros((len(barcodes), 2)),
        size=6,
        size_level0=6,
        um_per_px=1,
    ) as writer:
        writer.append(images)
    return 255 - images[..., 0].mean(axis=(1, 2))


def strict_json(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def rows_of(found):
    return {row.name: row for row in found.rows}


def test_the_truth_itself_scores_perfectly(predict, cohort, tmp_path):
    file = predict("A", noise=0).write(tmp_path / "A.h5ad")
    found = evaluate([file], cohort.root / "adata", tmp_path / "out", n_bootstrap=20)
    row = rows_of(found)["graph"]
    assert row.mean == pytest.approx(1)
    assert row.interval == (pytest.approx(1), pytest.approx(1))
    assert row.others["spearman"] == pytest.approx(1)
    assert row.others["r2"] == pytest.approx(1)
    for metric in ("mse", "moran_difference", "relative_variation", "gene_correlation_distance"):
        assert row.others[metric] == pytest.approx(0, abs=1e-6)
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


def test_spots_are_matched_by_barcode_and_genes_by_name(predict, cohort, tmp_path):
    prediction = predict("A")
    rng = np.random.default_rng(1)
    shuffled = prediction.reordered(rng.permutation(36), rng.permutation(len(GENES)))
    one, other = (
        evaluate(
            [p.write(tmp_path / name / "A.h5ad")],
            cohort.root,
            tmp_path / name / "out",
            n_bootstrap=5,
        ).slides[0]
        for name, p in (("one", prediction), ("other", shuffled))
    )
    for metric in ("pearson", "spearman", "mse", "moran"):
        a = dict(zip(one.genes, one.scores["graph"].per_gene[metric], strict=True))
        b = dict(zip(other.genes, other.scores["graph"].per_gene[metric], strict=True))
        assert a == pytest.approx(b)


def test_scores_are_those_of_the_metrics_on_the_transformed_counts(predict, cohort, tmp_path):
    prediction = predict("B", target="log1p_normalised")
    found = evaluate([prediction.write(tmp_path / "p.h5ad")], cohort.root, tmp_path / "out")
    truth = read_expression(cohort.expression("B"), GENES)
    counts = truth.counts.toarray().astype(float)
    expected = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    np.testing.assert_allclose(found.slides[0].truth, expected, rtol=1e-5)
    np.testing.assert_allclose(
        found.slides[0].scores["graph"].per_gene["pearson"],
        metrics.pearson_per_gene(prediction.mean, expected),
        rtol=1e-5,
    )
    assert found.target == "log1p_normalised"


@pytest.mark.parametrize("place", ["adata/A.h5ad", "adata", "", ".."])
def test_the_truth_may_be_a_file_a_folder_a_data_set_or_a_root(place, predict, cohort, tmp_path):
    file = predict("A").write(tmp_path / "p" / "A.h5ad")
    found = evaluate([file], cohort.root / place, tmp_path / "out", n_bootstrap=5)
    assert found.slides[0].truth_file.endswith("A.h5ad")


def test_json_and_csv_hold_the_same_scores_and_no_nan(predict, cohort, tmp_path):
    files = [predict(s).write(tmp_path / f"{s}.h5ad") for s in "AB"]
    found = evaluate(files, cohort.root, tmp_path / "out", baselines=True, n_bootstrap=20)
    content = strict_json(tmp_path / "out" / "metrics.json")
    with (tmp_path / "out" / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    models = {row.name for row in found.rows} - {CEILING}
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
    assert [row["name"] for row in content["table"]] == [row.name for row in found.rows]


def test_same_input_same_bytes_and_slides_do_not_touch_each_other(predict, cohort, tmp_path):
    files = [predict(s).write(tmp_path / f"{s}.h5ad") for s in "AB"]
    for name, some in (("one", files), ("two", files), ("alone", files[:1])):
        evaluate(some, cohort.root, tmp_path / name, n_bootstrap=10)
    for file in FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    both, alone = (strict_json(tmp_path / name / "metrics.json") for name in ("one", "alone"))
    assert both["models"]["graph"]["slides"]["A"] == alone["models"]["graph"]["slides"]["A"]
    assert both["truth"]["A"] == alone["truth"]["A"]


def test_baselines_are_scored_beside_the_model_and_the_best_is_compared(predict, cohort, tmp_path):
    dark = {s: write_dark_patches(cohort, s) for s in "AB"}
    files = [predict(s, noise=0.1).write(tmp_path / f"{s}.h5ad") for s in "AB"]
    found = evaluate(files, cohort.root, tmp_path / "out", baselines=True, n_bootstrap=50)
    rows = rows_of(found)
    kinds = [row.kind for row in found.rows]
    assert kinds == sorted(kinds, key=["model", "baseline", "reference"].index)
    quick = set(NAMES) - set(SLOW)
    assert set(rows) == {"graph", *quick, CEILING}
    # the toy's counts follow its embeddings spot by spot: ridge must win, smoothing must not
    best = max(quick, key=lambda name: np.nan_to_num(rows[name].mean, nan=-1))
    assert found.best_baseline == best in ("ridge", "tuned ridge")
    assert rows["ridge"].mean > 0.5 > rows["smoothed ridge"].mean > rows["darkness"].mean
    graph = rows["graph"]
    assert graph.difference == pytest.approx(graph.mean - rows[best].mean)
    assert graph.difference_interval[0] < graph.difference < graph.difference_interval[1]
    assert graph.interval[0] < graph.mean < graph.interval[1]
    assert rows["ridge"].difference is None
    for slide in found.slides:
        score = slide.scores["darkness"]
        expected = metrics.pearson_per_gene(np.tile(dark[slide.id][:, None], 6), slide.truth)
        np.testing.assert_allclose(score.per_gene["pearson"], expected)
        assert "mse" not in score.per_gene


def test_baselines_are_fitted_once_a_fold_on_its_training_slides(
    predict, cohort, tmp_path, monkeypatch
):
    fitted, fit = [], training_side.fit_baselines

    def counting(train, *, slow, seed):
        fitted.append([slide.name for slide in train])
        return fit(train, slow=slow, seed=seed)

    monkeypatch.setattr(training_side, "fit_baselines", counting)
    files = []
    for slide in "AB":
        for denoiser in ("graph", "transformer"):
            prediction = predict(slide, denoiser=denoiser)
            prediction.provenance["train_slides"] = ["C", "D"]
            files.append(prediction.write(tmp_path / denoiser / f"{slide}.h5ad"))
    found = evaluate(files, cohort.root, tmp_path / "out", baselines=True, n_bootstrap=5)
    assert fitted == [["C", "D"]]
    assert [row.name for row in found.rows if row.kind == "model"] == ["graph", "transformer"]
    assert [slide.name for slide in found.slides] == ["A", "B"]


def test_baselines_follow_data_that_has_moved(predict, cohort, tmp_path):
    file = predict("A").write(tmp_path / "A.h5ad")
    moved = tmp_path / "elsewhere"
    shutil.move(cohort.root, moved / "renamed")
    shutil.move(cohort.embeddings / "cohort" / "toy", moved / "embeddings" / "toy")
    found = evaluate(
        [file],
        moved / "renamed",
        tmp_path / "out",
        baselines=True,
        source_dataroot=moved / "renamed",
        embed_dataroot=moved / "embeddings",
        n_bootstrap=5,
    )
    assert found.best_baseline == "ridge"


def test_what_is_left_out_is_said(predict, cohort, tmp_path):
    prediction = predict("A")
    more = dataclasses.replace(
        prediction,
        mean=np.vstack([prediction.mean, prediction.mean[:2]]),
        barcodes=[*prediction.barcodes, "new1", "new2"],
        coords=np.vstack([prediction.coords, [[1e4, 1e4], [2e4, 2e4]]]),
    )
    truth = read_expression(cohort.expression("A"))
    counts = truth.counts.toarray()
    counts[:, 3] = 2
    write_expression(
        cohort.expression("A"),
        sp.csr_matrix(counts),
        truth.barcodes,
        truth.genes,
        truth.coords,
        um_per_px=1,
    )
    file = more.write(tmp_path / "A.h5ad")
    found = evaluate([file], cohort.root, tmp_path / "out", baselines=True, n_bootstrap=5)
    slide = found.slides[0]
    assert (slide.n_predicted, len(slide), slide.constant_genes) == (38, 36, ["G3"])
    assert np.isnan(slide.scores["graph"].per_gene["pearson"]).nonzero()[0].tolist() == [3]
    assert np.isfinite(rows_of(found)["graph"].mean)
    notes = "\n".join(found.notes)
    for text in ("2 of 38 spots have no truth", "1 of 6 genes are constant", "no row darkness"):
        assert text in notes
        assert text in (tmp_path / "out" / "report.html").read_text()


def test_a_slide_that_was_trained_on_gets_no_baselines_and_a_warning(predict, cohort, tmp_path):
    prediction = predict("A")
    prediction.provenance["train_slides"] = ["A", "B"]
    file = prediction.write(tmp_path / "A.h5ad")
    found = evaluate([file], cohort.root, tmp_path / "out", baselines=True, n_bootstrap=5)
    assert [row.name for row in found.rows] == ["graph", CEILING]
    assert found.slides[0].held_out is False
    assert any("trained on this slide" in note for note in found.notes)


def test_samples_give_scores_of_distributions(predict, cohort, tmp_path):
    prediction = predict("A", noise=0.4, n_samples=5)
    found = evaluate([prediction.write(tmp_path / "A.h5ad")], cohort.root, tmp_path / "out")
    slide = found.slides[0]
    np.testing.assert_allclose(
        slide.scores["graph"].per_gene["crps"],
        crps_per_gene(prediction.samples, slide.truth),
    )
    stored = strict_json(tmp_path / "out" / "metrics.json")
    coverage = stored["models"]["graph"]["slides"]["A"]["coverage"]
    assert [each["level"] for each in coverage] == [0.5, 0.8, 0.9]
    assert rows_of(found)["graph"].others["coverage_50"] == coverage[0]["covered"]


def test_the_simulators_mean_is_a_reference_for_log1p_only(predict, cohort, tmp_path):
    truth = read_expression(cohort.expression("A"))
    mean = np.log1p(truth.counts.toarray()) + 0.01
    write_expression(
        cohort.expression("A"),
        truth.counts,
        truth.barcodes,
        truth.genes,
        truth.coords,
        um_per_px=1,
        layers={TRUE_MEAN: mean},
    )
    for target, there in (("log1p", True), ("log1p_normalised", False)):
        file = predict("A", target=target).write(tmp_path / f"{target}.h5ad")
        rows = rows_of(evaluate([file], cohort.root, tmp_path / target, n_bootstrap=5))
        assert ("true mean (simulator)" in rows) == there
    assert evaluate([tmp_path / "log1p.h5ad"], cohort.root, tmp_path / "o").rows[1].mean > 0.99


def test_models_of_one_name_are_told_apart_by_folder(predict, cohort, tmp_path):
    for run in ("a", "b"):
        for slide in "AB":
            predict(slide, seed=ord(run)).write(
                tmp_path / "runs" / run / "predictions" / f"{slide}.h5ad"
            )
    folders = [tmp_path / "runs" / run / "predictions" for run in "ab"]
    found = evaluate(folders, cohort.root, tmp_path / "out", n_bootstrap=5)
    assert [row.name for row in found.rows] == ["graph (a)", "graph (b)", CEILING]
    # folds of one run lie in folders of their own, and are one model
    one = [predict(s).write(tmp_path / "runs" / f"fold{s}" / f"{s}.h5ad") for s in "AB"]
    found = evaluate(one, cohort.root, tmp_path / "out", n_bootstrap=5)
    assert [row.name for row in found.rows] == ["graph", CEILING]
    assert set(found.rows[0].slides) == {"A", "B"}


def test_a_model_cannot_pass_for_a_baseline(predict, cohort, tmp_path):
    file = predict("A", denoiser="ridge").write(tmp_path / "A.h5ad")
    found = evaluate([file], cohort.root, tmp_path / "out", baselines=True, n_bootstrap=5)
    rows = rows_of(found)
    assert (rows["ridge (model)"].kind, rows["ridge"].kind) == ("model", "baseline")


def test_a_mean_is_given_only_over_all_slides(predict, cohort, tmp_path):
    files = [predict(s).write(tmp_path / "g" / f"{s}.h5ad") for s in "AB"]
    files.append(predict("A", denoiser="transformer").write(tmp_path / "t" / "A.h5ad"))
    rows = rows_of(evaluate(files, cohort.root, tmp_path / "out", n_bootstrap=5))
    assert np.isfinite(rows["graph"].mean)
    assert np.isnan(rows["transformer"].mean)
    assert set(rows["transformer"].slides) == {"A"}
    strict_json(tmp_path / "out" / "metrics.json")


def test_pooled_correlation_is_over_the_test_slides_of_a_fold_together(predict, cohort, tmp_path):
    files = []
    for slide in "AB":
        prediction = predict(slide)
        prediction.provenance["fold"] = 7
        files.append(prediction.write(tmp_path / f"{slide}.h5ad"))
    found = evaluate(files, cohort.root, tmp_path / "out", n_bootstrap=5)
    predicted, truth = (
        np.concatenate(each)
        for each in zip(*((s.predictions["graph"], s.truth) for s in found.slides), strict=True)
    )
    assert rows_of(found)["graph"].others["pearson_pooled"] == pytest.approx(
        metrics.mean_of_defined(metrics.pearson_per_gene(predicted, truth))
    )


def test_foreign_numbers_in_the_provenance_do_not_break_json(predict, cohort, tmp_path):
    prediction = predict("A")
    prediction.provenance |= {"loss": float("nan"), "list": [float("inf"), 1]}
    evaluate([prediction.write(tmp_path / "A.h5ad")], cohort.root, tmp_path / "out", n_bootstrap=5)
    stored = strict_json(tmp_path / "out" / "metrics.json")["provenance"]["A"]["graph"]
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


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (rename, r"A\.h5ad: barcodes: found 0 of 36 barcodes in A\.h5ad.*Fix: .*suffixes"),
        (foreign_genes, r"A\.h5ad: var_names: found 4 of 6 genes absent, such as \['X0', 'X1'"),
        (change(target="log2"), r"target: found 'log2', expected log1p or log1p_normalised"),
        (change(slide="../../etc/passwd"), r"slide: found '\.\./\.\./etc/passwd'"),
        (change(slide="Z"), r"cohort: truth: found no Z\.h5ad, expected expression of slide Z"),
        (change(dataset="../x"), r"dataset: found '\.\./x'"),
        (change(encoder="../x"), r"encoder: found '\.\./x'"),
        (change(denoiser=3), r"denoiser: found 3, expected text"),
        (change(train_slides="A"), r"train_slides: found 'A', expected a list"),
    ],
)
def test_a_prediction_that_does_not_fit_is_refused(apply, message, predict, cohort, tmp_path):
    prediction = predict("A")
    apply(prediction)
    file = prediction.write(tmp_path / "A.h5ad")
    with pytest.raises(BadInput, match=message):
        evaluate([file], cohort.root, tmp_path / "out", n_bootstrap=5)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (change(source_dataroot=None), r"source_dataroot: found None.*Fix: give --source-dataroot"),
        (change(embed_dataroot=None), r"embed_dataroot: found None.*Fix: give --embed-dataroot"),
        (change(train_slides=["B", "Q"]), r"splits: found 1 of 2 absent, such as \['Q'\]"),
        (change(train_slides=[]), r"splits: found 0 of 0 absent"),
        (
            change(encoder="other"),
            r"other.fp32.B\.h5: file: found no file.*Fix: run `stflow-graph embed`",
        ),
    ],
)
def test_baselines_need_the_training_side(apply, message, predict, cohort, tmp_path):
    prediction = predict("A")
    apply(prediction)
    file = prediction.write(tmp_path / "A.h5ad")
    with pytest.raises(BadInput, match=message):
        evaluate([file], cohort.root, tmp_path / "out", baselines=True, n_bootstrap=5)
    assert not (tmp_path / "out").exists()


def test_baselines_need_embeddings_of_all_spots(predict, cohort, tmp_path):
    file = predict("A").write(tmp_path / "A.h5ad")
    write_slide(cohort.embedding("A"), None, 30, 0)
    with pytest.raises(BadInput, match=r"barcodes: found \d+ of 36 spots absent"):
        evaluate([file], cohort.root, tmp_path / "out", baselines=True, n_bootstrap=5)


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (rename, "obs_names: found 36 spots, 36 absent"),
        (foreign_gene, r"var_names: found 2 others, such as \['ENSG1', 'G5'\]"),
        (change(target="log1p_normalised"), "target: found 'log1p_normalised', expected 'log1p'"),
        (change(denoiser="graph"), "slide: found 'A' also in .*g.A.h5ad"),
        (change(train_slides=["B"]), r"train_slides: found \['B'\], expected the same"),
        (change(encoder="uni_v1"), "encoder: found 'uni_v1', expected the same"),
    ],
)
def test_models_that_do_not_compare_are_refused(apply, message, predict, cohort, tmp_path):
    files = [predict("A").write(tmp_path / "g" / "A.h5ad")]
    prediction = predict("A", denoiser="transformer")
    apply(prediction)
    files.append(prediction.write(tmp_path / "g" / "copy.h5ad"))
    with pytest.raises(BadInput, match=message):
        evaluate(files, cohort.root, tmp_path / "out", baselines=True, n_bootstrap=5)
    assert not (tmp_path / "out").exists()


def test_two_spots_are_too_few_to_correlate(predict, cohort, tmp_path):
    file = predict("A").reordered([0, 1], range(6)).write(tmp_path / "A.h5ad")
    with pytest.raises(BadInput, match="barcodes: found 2 spots with a truth, expected at least 3"):
        evaluate([file], cohort.root, tmp_path / "out")


def test_files_that_are_no_predictions_are_refused(cohort, tmp_path):
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "absent.h5ad", "No such file"),
        (cohort.expression("A"), "expected 'stflow_graph' with its provenance"),
        (tmp_path / "empty", r"no \.h5ad file"),
    ):
        with pytest.raises(BadInput, match=message):
            evaluate([path], cohort.root, tmp_path / "out")


def test_an_output_that_is_a_file_is_refused_before_any_work(predict, cohort, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(BadInput, match="output: found a file, expected a folder"):
        evaluate([tmp_path / "absent"], cohort.root, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_progress_names_the_steps(predict, cohort, tmp_path):
    steps = []
    file = predict("A").write(tmp_path / "A.h5ad")
    evaluate([file], cohort.root, tmp_path / "out", n_bootstrap=5, progress=steps.append)
    assert steps == ["reading", "scoring A", "bootstrap", "report"]


def rename_genes(path, names, column=None):
    adata = anndata.read_h5ad(path)
    if column is not None:
        adata.var[column] = list(adata.var_names)
    adata.var_names = names
    adata.write_h5ad(path)


def test_a_truth_with_other_gene_names_scores_the_same(predict, cohort, tmp_path):
    file = predict("A").write(tmp_path / "A.h5ad")
    options = {"n_bootstrap": 5, "baselines": True}
    before = evaluate([file], cohort.root, tmp_path / "before", **options)
    for slide in "ABCD":
        rename_genes(
            cohort.expression(slide), [f"ENSG0000014151{i}.7" for i in range(6)], column="gene_name"
        )
    after = evaluate([file], cohort.root, tmp_path / "after", **options)
    scores = [{row.name: row.slides["A"] for row in each.rows} for each in (before, after)]
    assert scores[1] == pytest.approx(scores[0], nan_ok=True)
    assert "A: 6 of 6 genes matched by symbol" in after.notes


def test_genes_that_the_truth_lacks_are_left_out_and_named(predict, cohort, tmp_path):
    file = predict("A").write(tmp_path / "A.h5ad")
    whole = evaluate([file], cohort.root, tmp_path / "whole", n_bootstrap=5).slides[0]
    rename_genes(cohort.expression("A"), ["G0", "G1", "other", "G3", "G4", "G5"])
    part = evaluate([file], cohort.root, tmp_path / "part", n_bootstrap=5, baselines=True)
    (slide,) = part.slides
    assert slide.genes == ["G0", "G1", "G3", "G4", "G5"]
    np.testing.assert_allclose(
        slide.scores["graph"].per_gene["pearson"],
        whole.scores["graph"].per_gene["pearson"][[0, 1, 3, 4, 5]],
    )
    assert "A: 1 of 6 genes are not in the truth (G2)" in part.notes
    assert strict_json(part.out / "metrics.json")["protocol"]["slides"]["A"]["absent_genes"] == [
        "G2"
    ]
    rename_genes(cohort.expression("A"), ["G0", "G1", *"wxyz"])
    with pytest.raises(BadInput, match="4 of 6 genes absent"):
        evaluate([file], cohort.root, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_predictions_of_two_protocols_get_a_line(predict, cohort, tmp_path):
    def files(*names):
        for i, name in enumerate(names):
            prediction = predict("A", seed=i, denoiser=f"model{i}")
            prediction.provenance["protocol"] = name
            yield prediction.write(tmp_path / f"{i}" / "A.h5ad")

    def score(*names):
        return evaluate(list(files(*names)), cohort.root, tmp_path / "out", n_bootstrap=5)

    two = score("log1p | a.json | x | 1", "log1p | b.json | x | 2")
    assert two.notes[0] == (
        "cohort: 2 protocols in one table, whose scores do not compare: "
        "log1p | a.json | x | 1; log1p | b.json | x | 2"
    )
    assert "2 protocols in one table" in (tmp_path / "out/report.html").read_text()
    for names in (("one", "one"), ("one", None)):
        found = score(*names)
        assert found.protocols == ["one"]
        assert found.notes == []
    protocol = strict_json(tmp_path / "out/metrics.json")["protocol"]
    assert protocol["names"] == ["one"]
    assert protocol["slides"]["A"]["name"] == "one"
    assert '<p class="facts">one</p>' in (tmp_path / "out/report.html").read_text()
    assert score(None).protocols == []
