from __future__ import annotations

from stflow_graph.preparation.gene_choice import METHODS


def test_the_best_genes_are_printed_and_the_next_command(cli, cohort):
    step = ["genes", cohort.root, "--method", "mean", "--n-genes", 4]
    run = cli(*step, "--top", 2, "--fold", 1)
    assert run.code == 0, run.err
    assert [row[0] for row in run.rows] == ["1", "2"]
    assert float(run.rows[0][2]) >= float(run.rows[1][2])
    assert f"{cohort.root}/mean_4genes_fold1.json written: 4 genes" in run.out
    assert " --gene-list 'mean_4genes_fold{fold}.json' --out RUN" in run.out
    again = cli(*step, "--top", 0)
    assert again.out.count("is up to date") == 1
    assert again.out.count("written") == 3
    assert "─" not in again.out


def test_an_unknown_method_is_a_usage_error(cli, cohort):
    run = cli("genes", cohort.root, "--method", "var")
    assert run.code == 2
    for name in METHODS:
        assert name in run.err
