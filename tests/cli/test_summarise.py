from __future__ import annotations

import json

import pandas as pd
import pytest
from predicted import predicted


@pytest.fixture
def predictions(cohort, tmp_path):
    folder = tmp_path / "predictions"
    for name in "ABC":
        predicted(cohort, name, n_samples=4).write(folder / f"{name}.h5ad")
    (tmp_path / "p.csv").write_text("sample_id,patient,time\nA,P1,3\nB,P1,3\nC,P2,5\n")
    (tmp_path / "a.gmt").write_text("A_SET\tx\tG0\tG1\nGONE\x1b[2J\tx\tABC\n")
    (tmp_path / "b.gmt").write_text("OTHER\tx\tG2\n")
    return folder


def test_a_cohort_becomes_tables(cli, predictions, tmp_path):
    sets = ["--gene-sets", tmp_path / "a.gmt", tmp_path / "b.gmt"]
    out, patients = tmp_path / "out", tmp_path / "p.csv"
    step = ["summarise", predictions, "--out", out, *sets, "--patients", patients, "--domains", 2]
    run = cli(*step)
    assert (run.code, run.err) == (0, "")
    assert [row[:3] for row in run.rows] == [
        ["A", "P1", "36"],
        ["B", "P1", "36"],
        ["C", "P2", "36"],
    ]
    assert "\x1b" not in run.out
    assert "note: 1 of 3 gene sets left out" in run.out
    assert f"{out / 'slides.csv'}: a row a slide" in run.out
    assert f"report: {out / 'report.html'}" in run.out
    assert "\x1b" not in (out / "report.html").read_text()
    assert list(pd.read_csv(out / "patients.csv")["time"]) == [3, 5]
    again = cli(*step, "--json")
    (record,) = json.loads(again.out)["results"]
    assert (again.code, record["out"]) == (0, str(out))
    assert record["report"] == str(out / "report.html")
    assert [row["slide"] for row in record["slides"]] == ["A", "B", "C"]
    content = record["content"]
    assert content["slides"].keys() == {"A", "B", "C"}
    assert content["left_out"]["gene_sets"] == ["GONE\x1b[2J"]


def test_what_is_written_of_the_others_is_shown_before_the_error(cli, predictions, tmp_path):
    (predictions / "B.h5ad").write_bytes(b"no prediction")
    run = cli("summarise", predictions, "--out", tmp_path / "out")
    assert run.code == 5
    assert run.error.startswith("error: 1 of 3 slides failed: B: ")
    assert [row[0] for row in run.rows] == ["A", "C"]


def test_a_value_out_of_range_is_one_line(cli, predictions, tmp_path):
    run = cli("summarise", predictions, "--out", tmp_path / "out", "--domains", 1)
    assert (run.code, run.error) == (4, "error: domains 1: expected 0, or 2 to 100")
