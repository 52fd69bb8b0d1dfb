from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from artefacts import edit_h5, write_prediction
from scipy.spatial.distance import cdist

from stflow_graph.errors import BadConfig, BadInput, SomeFailed
from stflow_graph.io import prediction_file
from stflow_graph.io.predictions import Block, write_prediction_blocks
from stflow_graph.io.sealed_json import read_sealed
from stflow_graph.stages import summarise as summarise_module
from stflow_graph.stages.summarise import summarise
from stflow_graph.summary import domains as domains_module
from stflow_graph.summary import reference as reference_module
from stflow_graph.summary import slide as slide_module
from stflow_graph.summary.settings import SummarySettings

GENES = [f"G{i}" for i in range(8)]
SIDES = {"S1": 9, "S2": 12, "S3": 7}
PATIENTS = (
    "sample_id,patient,time,sex,block\nS1,P1,12.5,f,a\nS2,P1,12.5,f,b\nS3,P2,30,m,c\nX,P9,1,f,d\n"
)
SETS = "up\tx\tG0\tG1\tABC\n-down\tx\tg5\nabsent\tx\tABC\n"


@dataclasses.dataclass
class Made:
    """A prediction as it was written."""

    mean: np.ndarray
    samples: np.ndarray | None
    coords: np.ndarray
    barcodes: list[str]
    genes: list[str]


def made(name: str, genes=GENES, n_samples: int = 6) -> Made:
    rng = np.random.default_rng([1, len(name), ord(name[-1])])
    side = SIDES.get(name, 6)
    x, y = (g.ravel() for g in np.meshgrid(np.arange(side), np.arange(side)))
    coords = np.stack([100.0 * x + 50 * (y % 2), 87.0 * y], 1)
    pattern = np.stack([x < side / 2, y < side / 3], 1).astype(float)
    weights = np.random.default_rng(0).normal(size=(2, len(GENES)))[:, : len(genes)]
    mean = np.maximum(1 + pattern @ weights + 0.05 * rng.normal(size=(len(x), len(genes))), 0)
    mean[:, -1] = 0.5  # constant
    noise = rng.normal(size=(n_samples, 1, len(genes))) + rng.normal(size=(n_samples, *mean.shape))
    samples = (mean + 0.2 * noise).astype(np.float32) if n_samples else None
    barcodes = [f"{name}-{i}" for i in range(len(x))]
    return Made(mean.astype(np.float32), samples, coords, barcodes, list(genes))


def write(folder: Path, name: str, item: Made | None = None, **provenance: object) -> Path:
    item = item or made(name)
    write_prediction(
        folder / f"{name}.h5ad",
        item.mean,
        item.barcodes,
        item.genes,
        item.coords,
        samples=item.samples,
        provenance={
            **{"slide": name, "target": "log1p", "dataset": "D", "checkpoint_sha256": "c"},
            **provenance,
        },
        expected_pearson=np.linspace(0, 1, len(item.genes)),
    )
    return folder / f"{name}.h5ad"


@pytest.fixture
def cohort(tmp_path):
    folder = tmp_path / "predictions"
    folder.mkdir()
    for name in SIDES:
        write(folder, name)
    (tmp_path / "patients.csv").write_text(PATIENTS)
    (tmp_path / "sets.gmt").write_text(SETS)
    return folder


@pytest.fixture
def everything(tmp_path, cohort):
    return SummarySettings(
        gene_sets=(tmp_path / "sets.gmt",),
        patients=tmp_path / "patients.csv",
        reference=(cohort / "S2.h5ad", cohort / "S3.h5ad"),
        domains=3,
        smoothing=1,
    )


def tables(out: Path) -> dict[str, pd.DataFrame]:
    return {str(path.relative_to(out)): pd.read_csv(path) for path in sorted(out.rglob("*.csv"))}


def hashes(out: Path) -> dict[str, str]:
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    return {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def dense_morans_i(values: np.ndarray, coords: np.ndarray, k: int = 6) -> float:
    """Moran's I by its definition, with the spots up to the k-th nearest's distance, in a row 1."""
    distance = cdist(coords, coords)
    reach = np.sort(distance, axis=1)[:, k] * (1 + 1e-9)
    w = (distance <= reach[:, None]) & ~np.eye(len(coords), dtype=bool)
    w = w / w.sum(axis=1, keepdims=True)
    z = values - values.mean()
    return len(z) / w.sum() * (z @ w @ z) / (z @ z)


def test_genes_have_their_mean_interval_and_moran(cohort, tmp_path):
    summarise([cohort], tmp_path / "out")
    table = tables(tmp_path / "out")["genes.csv"]
    assert list(table["slide"]) == [name for name in SIDES for _ in GENES]
    for name, part in table.groupby("slide"):
        item = made(name)
        mean = item.mean.astype(float)
        np.testing.assert_allclose(part["mean"], mean.mean(0), rtol=1e-6)
        np.testing.assert_allclose(part["std"], mean.std(0) * (np.arange(8) < 7), rtol=1e-5)
        np.testing.assert_allclose(part["share_zero"], (mean == 0).mean(0), rtol=1e-6)
        of_samples = item.samples.astype(float).mean(1)
        ends = np.quantile(of_samples, [0.1, 0.9], axis=0, method="weibull")
        np.testing.assert_allclose(part[["lower", "upper"]].T, ends, rtol=1e-5)
        moran = [dense_morans_i(mean[:, g], item.coords) for g in range(7)]
        np.testing.assert_allclose(part["morans_i"][:-1], moran, rtol=1e-5)
        assert np.isnan(part["morans_i"].iloc[-1])
        np.testing.assert_allclose(part["expected_pearson"], np.linspace(0, 1, 8), rtol=1e-6)


def test_without_samples_there_is_no_interval(tmp_path):
    file = write(tmp_path, "S1", made("S1", n_samples=0))
    result = summarise([file], tmp_path / "out")
    genes = tables(tmp_path / "out")["genes.csv"]
    assert genes[["lower", "upper"]].isna().all(axis=None)
    assert genes["mean"].notna().all()
    assert result.slides["n_samples"].tolist() == [0]


def test_gene_sets_are_means_over_genes_present_with_joint_intervals(cohort, tmp_path, everything):
    result = summarise([cohort], tmp_path / "out", everything)
    table = tables(tmp_path / "out")["gene_sets.csv"]
    assert list(table["gene_set"]) == ["up", "'-down"] * 3
    assert table[["n_present", "n_genes"]].to_numpy().tolist() == [[2, 3], [1, 1]] * 3
    for name, part in table.groupby("slide"):
        item = made(name)
        for row, genes in zip(part.itertuples(), ([0, 1], [5]), strict=True):
            assert row.mean == pytest.approx(item.mean[:, genes].mean(), rel=1e-5)
            joint = item.samples[:, :, genes].astype(float).mean((1, 2))
            ends = np.quantile(joint, [0.1, 0.9], method="weibull")
            np.testing.assert_allclose([row.lower, row.upper], ends, rtol=1e-5)
    slides = result.slides
    np.testing.assert_allclose(slides["up"], table["mean"][table["gene_set"] == "up"], rtol=1e-6)
    assert result.content["left_out"]["gene_sets"] == ["absent"]
    assert any("1 of 3 gene sets left out" in note for note in result.content["notes"])
    assert any("1 genes match" in note for note in result.content["notes"])


def test_sets_without_any_gene_are_refused(cohort, tmp_path):
    (tmp_path / "no.gmt").write_text("a\tx\tABC\nb\tx\tDEF\n")
    settings = SummarySettings(gene_sets=(tmp_path / "no.gmt",))
    with pytest.raises(BadInput, match="no gene of 2 sets in any prediction"):
        summarise([cohort], tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_hundreds_of_sets_and_columns_of_patients(cohort, tmp_path):
    (tmp_path / "many.gmt").write_text("".join(f"s{i}\tx\tG{i % 8}\n" for i in range(150)))
    names = ",".join(f"c{i}" for i in range(150))
    rows = [f"{slide},P{slide}{',1' * 150}" for slide in SIDES]
    (tmp_path / "wide.csv").write_text("\n".join([f"sample_id,patient,{names}", *rows]))
    settings = SummarySettings((tmp_path / "many.gmt",), tmp_path / "wide.csv")
    result = summarise([cohort], tmp_path / "out", settings)
    assert result.patients.shape == (3, 1 + 150 + 2 + 150)
    expected = [made("S1").mean[:, i % 8].mean() for i in range(150)]
    np.testing.assert_allclose(result.slides.iloc[0, -150:].astype(float), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["slide", "n_spots", "domain_2", "patient"])
def test_a_set_called_like_a_column_is_refused(cohort, tmp_path, name):
    (tmp_path / "s.gmt").write_text(f"{name}\tx\tG0\n")
    settings = SummarySettings(gene_sets=(tmp_path / "s.gmt",), domains=2)
    with pytest.raises(BadInput, match="names that no other column has"):
        summarise([cohort], tmp_path / "out", settings)


def test_shares_are_of_spots_above_quantiles_of_the_reference(cohort, tmp_path, everything):
    summarise([cohort], tmp_path / "out", everything)
    pooled = np.concatenate([made(name).mean for name in ("S2", "S3")])
    for name, part in tables(tmp_path / "out")["genes.csv"].groupby("slide"):
        for q in (0.5, 0.9):
            limit = np.quantile(pooled, q, axis=0).astype(np.float32)
            expected = (made(name).mean > limit).mean(0)
            np.testing.assert_allclose(part[f"share_above_q{round(100 * q)}"], expected, rtol=1e-6)


def test_a_gene_that_the_reference_lacks_has_no_share(cohort, tmp_path):
    other = write(tmp_path, "R", made("R", GENES[:5]))
    summarise([cohort], tmp_path / "out", SummarySettings(reference=(other,)))
    genes = tables(tmp_path / "out")["genes.csv"]
    assert (genes["share_above_q50"].isna() == genes["gene"].isin(GENES[5:])).all()


def test_without_a_reference_shares_are_above_the_quantiles_that_predictions_carry(tmp_path):
    """Those of the training slides; NaN where the model does not know them."""
    known, unknown = made("S1"), made("S2")
    write(tmp_path, "S2", unknown)
    levels = np.array([0.0, 0.25, 0.5, 0.9, 1.0])
    write_prediction_blocks(
        tmp_path / "S1.h5ad",
        [Block(slice(0, len(known.mean)), known.mean, None)],
        known.barcodes,
        known.genes,
        known.coords,
        provenance={"slide": "S1", "target": "log1p"},
        quantiles=(np.quantile(known.mean, levels, axis=0).T, levels),
    )
    summarise([tmp_path / "S1.h5ad", tmp_path / "S2.h5ad"], tmp_path / "out")
    genes = tables(tmp_path / "out")["genes.csv"].set_index("slide")
    for q in (0.5, 0.9):
        above = known.mean > np.quantile(known.mean, q, axis=0).astype(np.float32)
        name = f"share_above_q{round(100 * q)}"
        np.testing.assert_allclose(genes.loc["S1", name], above.mean(0), atol=1e-6)
    assert genes.loc["S2", "share_above_q90"].isna().all()


def test_domains_follow_the_pattern_and_are_the_same_in_all_slides(cohort, tmp_path):
    settings = SummarySettings(domains=4)
    result = summarise([cohort], tmp_path / "out", settings)
    found = tables(tmp_path / "out")
    kinds: dict[tuple[bool, bool], set[int]] = {}
    for name, side in SIDES.items():
        table, item = found[f"domains/{name}.csv"], made(name)
        assert list(table["barcode"]) == item.barcodes
        np.testing.assert_allclose(table[["x", "y"]], item.coords)
        x, y = (g.ravel() for g in np.meshgrid(np.arange(side), np.arange(side)))
        for spot in zip(x < side / 2, y < side / 3, table["domain"], strict=True):
            kinds.setdefault(spot[:2], set()).add(spot[2])
        shares = table["domain"].value_counts(normalize=True)
        row = result.slides.set_index("slide").loc[name]
        assert all(row[f"domain_{i}"] == pytest.approx(shares.get(i, 0)) for i in range(1, 5))
    assert sorted(map(list, kinds.values())) == [[1], [2], [3], [4]]
    sizes = pd.concat([found[f"domains/{name}.csv"] for name in SIDES])["domain"].value_counts()
    assert sizes.sort_index().is_monotonic_decreasing


def test_genes_of_domains_are_means_over_their_spots(cohort, tmp_path):
    summarise([cohort], tmp_path / "out", SummarySettings(domains=3))
    found = tables(tmp_path / "out")
    labels = np.concatenate([found[f"domains/{name}.csv"]["domain"] for name in SIDES])
    values = np.concatenate([made(name).mean for name in SIDES]).astype(float)
    table = found["domain_genes.csv"]
    means = np.stack([values[labels == k].mean(0) for k in (1, 2, 3)])
    np.testing.assert_allclose(table["mean"], means.ravel(), rtol=1e-5)
    np.testing.assert_allclose(table["difference"], (means - values.mean(0)).ravel(), atol=1e-5)
    assert list(table["gene"]) == GENES * 3


def test_smoothing_leaves_fewer_neighbours_of_another_domain(tmp_path):
    item = made("S2")
    item.mean += np.random.default_rng(3).gamma(1, 0.5, item.mean.shape).astype(np.float32)
    file = write(tmp_path, "S2", item)

    def borders(smoothing: int) -> int:
        out = tmp_path / f"out{smoothing}"
        summarise([file], out, SummarySettings(domains=3, smoothing=smoothing))
        labels = tables(out)["domains/S2.csv"]["domain"].to_numpy()
        near = cdist(item.coords, item.coords) < 110
        return int((near & (labels[:, None] != labels)).sum())

    assert borders(2) < borders(0)


def test_patients_are_means_weighted_by_spots(cohort, tmp_path, everything):
    result = summarise([cohort], tmp_path / "out", everything)
    found = tables(tmp_path / "out")
    slides, patients = found["slides.csv"].set_index("slide"), found["patients.csv"]
    fixed = ["patient", "time", "sex", "n_slides", "n_spots"]
    values = ["domain_1", "domain_2", "domain_3", "up", "'-down"]
    assert list(patients.columns) == fixed + values
    assert patients[fixed].to_numpy().tolist() == [
        ["P1", 12.5, "f", 2, 81 + 144],
        ["P2", 30.0, "m", 1, 49],
    ]
    weights = np.array([81, 144])
    expected = np.average(slides.loc[["S1", "S2"], values], axis=0, weights=weights)
    np.testing.assert_allclose(patients.loc[0, values].astype(float), expected, rtol=1e-6)
    np.testing.assert_allclose(
        patients.loc[1, values].astype(float), slides.loc["S3", values].astype(float)
    )
    genes = found["patient_genes.csv"]
    pooled = np.concatenate([made("S1").mean, made("S2").mean])
    np.testing.assert_allclose(genes.loc[0, GENES].astype(float), pooled.mean(0), rtol=1e-5)
    assert list(slides["patient"]) == ["P1", "P1", "P2"]
    left_out = result.content["left_out"]
    assert left_out["columns that differ among slides of a patient"] == ["block"]
    assert left_out["slides of the table of patients without a prediction"] == ["X"]
    assert not patients.columns.str.contains("Unnamed").any()
    assert patients.notna().all(axis=None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sample_id,patient\nS1,P1\nS2,P1\n", "no row of 1 slide, such as ['S3']"),
        ("sample_id,patient\nS1,P1\nS2,\nS3,P1\n", "a patient for each slide"),
        ("sample_id,patient\nS1,P1\nS1,P2\n", "one for each slide"),
        ("sample_id,person\nS1,P1\n", "also patient"),
        ("name,patient\nS1,P1\n", "one of sample_id"),
        ("sample_id,patient,n_spots\nS1,P1,9\n", "names that no other column has"),
    ],
)
def test_patients_that_cannot_be_used_are_refused(cohort, tmp_path, text, message):
    (tmp_path / "patients.csv").write_text(text)
    settings = SummarySettings(patients=tmp_path / "patients.csv")
    with pytest.raises(BadInput) as caught:
        summarise([cohort], tmp_path / "out", settings)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_order_of_files_and_an_earlier_summary_do_not_matter(cohort, tmp_path, everything):
    files = sorted(cohort.glob("*.h5ad"))
    summarise(files, tmp_path / "a", everything)
    summarise([cohort], tmp_path / "b", SummarySettings(domains=2))
    before = hashes(tmp_path / "b")
    summarise(files[::-1], tmp_path / "b", everything)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b") != before
    read_sealed(tmp_path / "a/summary.json", (), "")


def test_a_slides_numbers_do_not_depend_on_the_others(cohort, tmp_path):
    summarise([cohort], tmp_path / "all")
    summarise([cohort / "S2.h5ad"], tmp_path / "one")
    whole = tables(tmp_path / "all")["genes.csv"]
    part = whole[whole["slide"] == "S2"].reset_index(drop=True)
    pd.testing.assert_frame_equal(part, tables(tmp_path / "one")["genes.csv"])


def test_blocks_and_groups_give_the_same_as_the_whole(cohort, tmp_path, everything, monkeypatch):
    summarise([cohort], tmp_path / "whole", everything)
    monkeypatch.setattr(prediction_file, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(prediction_file, "chunk_rows", lambda n_genes: 10)
    for module in (slide_module, reference_module):
        monkeypatch.setattr(module, "_GROUP_BYTES", 3 * 4 * 200)
    monkeypatch.setattr(slide_module, "_MORAN_VALUES", 1)
    monkeypatch.setattr(domains_module, "_ROWS", 9)
    summarise([cohort], tmp_path / "parts", everything)
    whole, parts = tables(tmp_path / "whole"), tables(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, table in whole.items():
        pd.testing.assert_frame_equal(table, parts[name], rtol=1e-6)


def test_domains_of_large_slides_are_fitted_to_some_spots_of_each(cohort, tmp_path, monkeypatch):
    summarise([cohort], tmp_path / "all", SummarySettings(domains=4))
    monkeypatch.setattr(domains_module, "MAX_FIT", 60)
    result = summarise([cohort], tmp_path / "some", SummarySettings(domains=4))
    assert result.content["domains"]["n_spots_fitted"] == 60
    for name in SIDES:  # the pattern is clear enough
        a, b = (tables(tmp_path / out)[f"domains/{name}.csv"] for out in ("all", "some"))
        pd.testing.assert_frame_equal(a, b)


def test_slides_of_other_genes_have_theirs_and_domains_the_common_ones(
    cohort, tmp_path, everything
):
    write(cohort, "S3", made("S3", GENES[:5]))
    result = summarise([cohort], tmp_path / "out", everything)
    found = tables(tmp_path / "out")
    genes = found["genes.csv"]
    assert list(genes.loc[genes["slide"] == "S3", "gene"]) == GENES[:5]
    assert result.content["domains"]["n_genes"] == 5
    assert result.content["domains"]["n_genes_not_in_all_slides"] == 3
    assert np.isnan(result.slides.set_index("slide").loc["S3", "-down"])
    assert found["patient_genes.csv"].set_index("patient").loc["P2", GENES[5:]].isna().all()
    assert any("1 slides lack some of 8 genes (S3)" in n for n in result.content["notes"])


def test_no_gene_in_common_leaves_no_domains(cohort, tmp_path):
    item = made("S3", GENES[:2])
    item.genes = ["A", "B"]
    write(cohort, "S3", item)
    summarise([cohort], tmp_path / "out")
    with pytest.raises(BadInput, match="genes in common, for domains"):
        summarise([cohort], tmp_path / "again", SummarySettings(domains=2))


def test_a_slide_that_fails_does_not_stop_the_others(cohort, tmp_path):
    edit_h5(cohort / "S1.h5ad", "X", lambda x: np.where(x == x.max(), np.nan, x))
    (cohort / "S0.h5ad").write_text("no file of ours")
    seen = []
    with pytest.raises(SomeFailed, match="2 of 4 slides failed: S0: .*; S1: .*not finite"):
        summarise([cohort], tmp_path / "out", SummarySettings(domains=2), done=seen.append)
    (result,) = seen
    assert list(result.slides["slide"]) == ["S2", "S3"]
    assert set(result.content["left_out"]["slides"]) == {"S0", "S1"}
    assert sorted(tables(tmp_path / "out")["genes.csv"]["slide"].unique()) == ["S2", "S3"]
    with pytest.raises(BadInput, match="not finite"):  # the only one
        summarise([cohort / "S1.h5ad"], tmp_path / "one")
    with pytest.raises(SomeFailed, match="2 of 2"):
        summarise([cohort / "S0.h5ad", cohort / "S1.h5ad"], tmp_path / "one")
    assert not (tmp_path / "one").exists()


def test_predictions_that_do_not_belong_together_are_refused(cohort, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    normalised = write(other, "S9", target="log1p_normalised")
    for paths, settings, message in [
        ([cohort, normalised], None, "expected 'log1p' as in .*each target by a command"),
        ([cohort], SummarySettings(reference=(normalised,)), "expected 'log1p' as in"),
        ([cohort, write(other, "S1")], None, "'S1' also in .*one prediction a slide"),
        ([cohort, cohort / "S1.h5ad"], None, "this file twice"),
        ([tmp_path / "nothing"], None, "no such file|No such file"),
        ([write(other, "S4", slide="a/b")], None, "letters, digits"),
        ([write(other, "S5", target="counts")], None, "log1p or log1p_normalised"),
    ]:
        with pytest.raises(BadInput, match=message):
            summarise(paths, tmp_path / "out", settings)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"no .h5ad file"):
        summarise([tmp_path / "empty"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_several_models_and_training_slides_are_noted(cohort, tmp_path):
    write(cohort, "S1", checkpoint_sha256="d", train_slides=["S1", "S2"])
    result = summarise([cohort], tmp_path / "out")
    notes = " ".join(result.content["notes"])
    assert "predictions of 2 checkpoints" in notes
    assert "1 of 3 slides were in their model's training (S1)" in notes
    assert list(result.slides["in_training"]) == [True, False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domains": 1}, "0, or 2 to 100"),
        ({"smoothing": -1}, "smoothing -1"),
        ({"seed": -1}, "seed -1"),
        ({"format": "xlsx"}, "one of csv, parquet"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(BadConfig, match=message):
        SummarySettings(**options)


def test_more_domains_than_different_spots_are_refused(tmp_path):
    item = made("S3")
    item.mean[:] = item.mean[0]
    file = write(tmp_path, "S3", item)
    with pytest.raises(BadConfig, match=r"2 domains of 1 different spots. Fix: fewer"):
        summarise([file], tmp_path / "out", SummarySettings(domains=2))


def test_a_thousand_spots_at_one_place_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(slide_module, "_MAX_AT_ONE_PLACE", 5)
    item = made("S3")
    item.coords[:6] = 7
    with pytest.raises(BadInput, match="6 spots at one place"):
        summarise([write(tmp_path, "S3", item)], tmp_path / "out")


def test_only_a_summary_is_replaced(cohort, tmp_path):
    with pytest.raises(BadInput, match="a folder with other entries.*a summary of predictions"):
        summarise([cohort], cohort)
    assert sorted(path.name for path in cohort.iterdir()) == ["S1.h5ad", "S2.h5ad", "S3.h5ad"]
    (tmp_path / "out").write_text("mine")
    with pytest.raises(BadInput, match="found a file"):
        summarise([cohort], tmp_path / "out")


def test_a_prediction_that_is_replaced_meanwhile_is_noticed(cohort, tmp_path):
    other = shutil.copy(cohort / "S1.h5ad", tmp_path / "other.h5ad")

    def report(step: str) -> None:
        if step.endswith("S3"):
            shutil.move(other, cohort / "S1.h5ad")

    with pytest.raises(BadInput, match=r"S1.h5ad: file: found another one than at first"):
        summarise([cohort], tmp_path / "out", report=report)
    assert not (tmp_path / "out").exists()


def test_parquet_has_the_same_tables(cohort, tmp_path, everything):
    pytest.importorskip("pyarrow", reason="needs pip install .[parquet]")
    summarise([cohort], tmp_path / "csv", everything)
    summarise([cohort], tmp_path / "pq", dataclasses.replace(everything, format="parquet"))
    for name, table in tables(tmp_path / "csv").items():
        other = pd.read_parquet((tmp_path / "pq" / name).with_suffix(".parquet"))
        assert [column.lstrip("'") for column in table] == list(other)
        numbers = [frame.select_dtypes("number").to_numpy() for frame in (other, table)]
        np.testing.assert_allclose(*numbers, rtol=1e-5)
    assert not list((tmp_path / "pq").rglob("*.csv"))


def test_summary_json_says_what_was_read_and_written(cohort, tmp_path, everything):
    result = summarise([cohort], tmp_path / "out", everything)
    content = json.loads((tmp_path / "out/summary.json").read_text())
    digest = hashlib.sha256((cohort / "S1.h5ad").read_bytes()).hexdigest()
    assert content["slides"]["S1"]["sha256"] == digest
    assert content["settings"] == {"domains": 3, "smoothing": 1, "seed": 0, "format": "csv"}
    assert content["files"].keys() == {str(p) for p in (*everything.gene_sets, everything.patients)}
    assert len(content["reference"]["files"]) == 2
    there = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").glob("*.csv")}
    assert set(content["tables"]) == there | {"domains/<slide>.csv"}
    assert {**content, "content_sha256": None} == {**result.content, "content_sha256": None}


@pytest.fixture
def page_of(monkeypatch):
    """Return what the page shows of a summary, and do not draw it."""
    seen = []
    monkeypatch.setattr(summarise_module, "render_cohort", lambda c: seen.append(c) or "")
    return lambda *args: summarise(*args) and seen.pop()


def test_the_report_is_beside_the_tables_and_follows_them(cohort, tmp_path, everything):
    result = summarise([cohort], tmp_path / "out", everything)
    page = result.report.read_text()
    assert result.report == tmp_path / "out/report.html"
    for text in ("S1", "P1", "G5", "Domains", "--smoothing 1", "patients.csv, SHA-256"):
        assert text in page, text
    assert "<b>3 slides</b> of <b>2 patients</b>,\n<b>8 genes</b>, 274 spots" in page
    assert str(tmp_path) not in page
    summarise([cohort / "S1.h5ad"], tmp_path / "out", SummarySettings())
    assert "No domains were asked for" in result.report.read_text()


def test_markers_are_the_largest_differences_from_the_other_domains(cohort, tmp_path, page_of):
    shown = page_of([cohort], tmp_path / "out", SummarySettings(domains=4))
    values = np.concatenate([made(name).mean.astype(float) for name in SIDES])
    labels = np.concatenate([each.domains for each in shown.slides])
    for number, domain in enumerate(shown.domains, 1):
        inside = labels == number
        difference = values[inside].mean(0) - values[~inside].mean(0)
        order = [g for g in np.argsort(-difference)[:5] if difference[g] > 0]
        assert [gene for gene, _ in domain.markers] == [GENES[g] for g in order]
        np.testing.assert_allclose([d for _, d in domain.markers], difference[order], rtol=1e-4)
        assert domain.share == pytest.approx(inside.mean())
        assert domain.n_slides == 3
    assert any(domain.markers for domain in shown.domains)


def test_as_many_spots_of_each_slide_are_plotted(cohort, tmp_path, page_of, monkeypatch):
    whole = page_of([cohort], tmp_path / "out", SummarySettings(domains=3)).sample
    assert len(whole.features) == sum(side**2 for side in SIDES.values())
    monkeypatch.setattr(domains_module, "MAX_SAMPLED", 60)
    some = page_of([cohort], tmp_path / "out", SummarySettings(domains=3)).sample
    again = page_of([cohort], tmp_path / "out", SummarySettings(domains=3)).sample
    assert np.bincount(some.slide).tolist() == [20, 20, 20]
    assert some.slides == ["S1", "S2", "S3"]
    np.testing.assert_array_equal(some.features, again.features)
    # each with the features and the domain that it has among all
    place = {row.tobytes(): i for i, row in enumerate(whole.features)}
    at = [place[row.tobytes()] for row in some.features]
    np.testing.assert_array_equal(whole.domain[at], some.domain)
    np.testing.assert_array_equal(whole.slide[at], some.slide)
    monkeypatch.setattr(domains_module, "MAX_SAMPLED", 2)
    few = page_of([cohort], tmp_path / "out", SummarySettings(domains=3)).sample
    assert (len(few.features), len(few.slides), few.slide.tolist()) == (2, 2, [0, 1])
