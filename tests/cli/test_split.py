from __future__ import annotations

import pytest


def test_folds_are_printed_with_their_patients_and_spots(cli, cohort):
    table = cohort.root / "patients.csv"
    table.write_text("id,patient\nA,P1\nB,P1\nC,P2\nD,P3\nE,P4\n")
    run = cli("split", cohort.root, "--k", 2, "--overwrite")
    assert run.code == 0, run.err
    assert run.rows == [
        ["0", "P1", "A, B", "72", "C, D", "72"],
        ["1", "P2, P3", "C, D", "72", "A, B", "72"],
    ]
    assert f"splits written; patients from {table}; 1 of its slides are absent\n" in run.out
    assert "splits is up to date" in cli("split", cohort.root, "--k", 2).out


@pytest.mark.parametrize(
    "options", [[], ["--k", 2, "--leave-one-out"], ["--k", 2, "--balance", "genes"]]
)
def test_the_number_of_folds_is_needed_once(cli, cohort, options):
    assert cli("split", cohort.root, *options).code == 2
