from __future__ import annotations

import json

from stflow_graph_cli.main import app, spread
from toy import add_encoder
from typer.testing import CliRunner


def invoke(cohort, out, *more):
    words = ["probe", "--source-dataroot", cohort.root, "--embed-dataroot", cohort.embeddings]
    words = spread([str(word) for word in [*words, "--out", out, *more]])
    return CliRunner().invoke(app, words, env={"COLUMNS": "200"})


def test_probe_prints_encoders_side_by_side_and_the_folds_of_one_data_set(cohort, tmp_path):
    add_encoder(cohort, "noisy", 3.0)
    result = invoke(cohort, tmp_path / "out", "--encoders", "noisy", "toy", "--pca", 5)
    assert result.exit_code == 0, result.output
    scores = json.loads((tmp_path / "out/dataset_results.json").read_text())["average"]
    (row,) = [line for line in result.stdout.splitlines() if line.strip().startswith("cohort")]
    assert row.index(f"{scores['noisy']:.3f} ±") < row.index(f"{scores['toy']:.3f} ±")
    assert "ridge on 5 principal components" in result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines()[-5:-1]] == list("0123")
    again = invoke(cohort, tmp_path / "out", "--encoders", "toy", "--pca", 5)
    assert "1 of 1 scores there already" in again.stdout


def test_probe_has_a_column_for_an_encoder_called_by_its_alias(cohort, tmp_path):
    add_encoder(cohort, "uni_v1", 3.0)
    result = invoke(cohort, tmp_path / "out", "--encoders", "uni", "toy", "--pca", 5)
    assert result.exit_code == 0, result.output
    scores = json.loads((tmp_path / "out/dataset_results.json").read_text())["average"]
    assert set(scores) == {"uni_v1", "toy"}
    (row,) = [line for line in result.stdout.splitlines() if line.strip().startswith("cohort")]
    assert row.index(f"{scores['uni_v1']:.3f} ±") < row.index(f"{scores['toy']:.3f} ±")
    assert "uni_v1" in result.stdout


def test_probe_shows_what_it_has_when_an_encoder_fails(cohort, tmp_path):
    result = invoke(cohort, tmp_path / "out", "--encoders", "absent", "toy", "--dimreduce", "none")
    assert "embeddings as they are" in result.stdout
    assert "–" in result.stdout
    assert "absent" in str(result.exception)


def test_an_unknown_reduction_is_a_usage_error(cohort, tmp_path):
    result = invoke(cohort, tmp_path / "out", "--encoders", "toy", "--dimreduce", "umap")
    assert result.exit_code == 2
    assert "expected pca or none" in result.output
