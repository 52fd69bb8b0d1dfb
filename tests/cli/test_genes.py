from __future__ import annotations

import typer
from stflow_graph_cli import genes as command
from typer.testing import CliRunner


def run(*arguments):
    app = typer.Typer()
    app.command()(command.genes)
    return CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "100"})


def test_the_best_genes_are_shown_and_the_next_command(cohort):
    result = run(cohort.root, "--method", "mean", "--n-genes", 4, "--top", 2, "--fold", 1)
    assert result.exit_code == 0, result.exception
    rows = [line.strip("│ ").split("│") for line in result.stdout.splitlines() if line[0] == "│"]
    assert [row[0].strip() for row in rows] == ["1", "2"]
    assert float(rows[0][2]) >= float(rows[1][2])
    assert f"{cohort.root}/mean_4genes_fold1.json: 4 genes, written" in result.stdout
    assert "next: stflow-graph train --gene-list 'mean_4genes_fold{fold}.json'" in result.stdout
    again = run(cohort.root, "--method", "mean", "--n-genes", 4, "--top", 0)
    assert again.stdout.count("there already") == 1
    assert again.stdout.count("written") == 3
    assert "│" not in again.stdout


def test_an_unknown_method_is_a_usage_error(cohort):
    result = run(cohort.root, "--method", "var")
    assert result.exit_code == 2
    assert "hvg, mean, moran" in result.output
