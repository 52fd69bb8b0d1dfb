from __future__ import annotations

import shlex

import pytest
from stflow_graph_cli.following import follow_embed, follow_genes


@pytest.fixture
def next_lines(capsys):
    """Return the words of the commands that were printed."""

    def read():
        lines = capsys.readouterr().out.splitlines()
        assert all(line.startswith("next: stflow-graph ") for line in lines)
        return [shlex.split(line)[2:] for line in lines]

    return read


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")


def test_slides_without_folds_are_to_be_split_and_others_to_be_trained_on(
    cohort, tmp_path, next_lines
):
    roots = ["--source-dataroot", str(cohort.root), "--embed-dataroot", str(cohort.embeddings)]
    train = ["train", *roots, "--encoder", "toy"]
    follow_embed(cohort.root, cohort.embeddings, "toy", [])
    assert next_lines() == [[*train, "--out", "RUN"]]
    (tmp_path / "prepared" / "patches").mkdir(parents=True)
    follow_embed(tmp_path / "prepared", cohort.embeddings, "toy", [])
    assert next_lines() == [["split", f"{tmp_path}/prepared", "--leave-one-out"]]
    # without a gene list there is nothing to train on
    gene_list = cohort.root / "var_50genes.json"
    moved = gene_list.rename(cohort.root / "kept.txt")
    follow_embed(cohort.root, cohort.embeddings, "toy", [])
    assert next_lines() == [["genes", str(cohort.root)]]
    # one of another name is taken, one of all slides needs no folds
    moved.rename(cohort.root / "mean_4genes_fold0.json")
    follow_embed(cohort.root, cohort.embeddings, "toy", [])
    assert next_lines() == [[*train, "--gene-list", "mean_4genes_fold{fold}.json", "--out", "RUN"]]
    (cohort.root / "mean_4genes_fold0.json").rename(cohort.root / "var_50genes_all.json")
    follow_embed(cohort.root, cohort.embeddings, "toy", [])
    assert next_lines() == [[*train, "--folds", "all", "--out", "RUN"]]


def test_after_genes_come_embeddings_where_there_are_none(cohort, tmp_path, next_lines):
    root, options = tmp_path / "ROOT", ["--folds", "all"]
    follow_genes(root, "ROOT", options)
    roots = ["--source-dataroot", str(root), "--embed-dataroot", f"{tmp_path}/embeddings"]
    train = ["train", *roots, *options, "--out", "RUN"]
    assert next_lines() == [["embed", *roots], train]
    file = tmp_path / "embeddings/ROOT/toy/fp32/A.h5"
    file.parent.mkdir(parents=True)
    file.touch()
    follow_genes(root, "ROOT", options)
    assert next_lines() == [["train", *roots, "--encoder", "toy", *options, "--out", "RUN"]]
