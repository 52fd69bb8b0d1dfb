from __future__ import annotations

import json

import pytest
from toy import add_encoder


@pytest.fixture
def probe(cli, cohort, tmp_path):
    roots = ["--source-dataroot", cohort.root, "--embed-dataroot", cohort.embeddings]
    return lambda *more: cli("probe", *roots, "--out", tmp_path / "out", "--pca", 5, *more)


# the second by an alias: its column has the canonical name
@pytest.mark.parametrize(("name", "spelling"), [("noisy", "noisy"), ("uni_v1", "uni")])
def test_encoders_are_printed_side_by_side_with_their_folds(
    probe, cohort, tmp_path, name, spelling
):
    add_encoder(cohort, name, 3.0)
    run = probe("--encoders", spelling, "toy")
    assert run.code == 0, run.err
    scores = json.loads((tmp_path / "out/dataset_results.json").read_text())["average"]
    assert set(scores) == {name, "toy"}
    row, *folds = run.rows
    assert row[0] == "cohort"
    assert row[1].startswith(f"{scores[name]:.3f} ±")
    assert row[2].startswith(f"{scores['toy']:.3f} ±")
    assert [fold[0] for fold in folds] == ["fold 0", "fold 1", "fold 2", "fold 3"]
    assert "ridge on 5 principal components" in run.out
    assert name in run.out
    assert "1 of 1 scores up to date" in probe("--encoders", "toy").out


def test_the_other_scores_are_printed_when_an_encoder_fails(probe):
    run = probe("--encoders", "absent", "toy", "--dimreduce", "none")
    assert run.code == 5
    assert "absent" in run.error
    assert "ridge on the raw embeddings" in run.out
    assert "–" in run.out


def test_an_unknown_reduction_is_a_usage_error(probe):
    run = probe("--encoders", "toy", "--dimreduce", "umap")
    assert run.code == 2
    assert "pca" in run.err
