from __future__ import annotations

import typer
from stflow_graph_cli import split as command
from typer.testing import CliRunner


def run(*arguments):
    app = typer.Typer()
    app.command()(command.split)
    return CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "100"})


def test_folds_are_shown_with_their_patients_and_spots(cohort):
    table = cohort.root / "patients.csv"
    table.write_text("id,patient\nA,P1\nB,P1\nC,P2\nD,P3\nE,P4\n")
    result = run(cohort.root, "--k", 2, "--overwrite")
    assert result.exit_code == 0, result.exception
    rows = [line for line in result.stdout.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]
    assert cells == [
        ["0", "P1", "A, B", "72", "C, D", "72"],
        ["1", "P2, P3", "C, D", "72", "A, B", "72"],
    ]
    assert result.stdout.endswith(
        f"splits: written; patients from {table}; 1 slides of it are not here\n"
    )
    assert "there already, the same" in run(cohort.root, "--k", 2).stdout


def test_the_number_of_folds_must_be_said_once(cohort):
    for options in ([], ["--k", 2, "--leave-one-out"], ["--k", 2, "--balance", "genes"]):
        assert run(cohort.root, *options).exit_code == 2
