from __future__ import annotations

import pytest

from stflow_graph.data.splits import find_datasets


def test_a_cohort_its_summary_and_the_next_command(cli, tmp_path):
    out = tmp_path / "cohort"
    step = ["simulate", out, "--slides", 2, "--spots", 5, "--seed", 3]
    run = cli(*step)
    assert run.code == 0, run.err
    assert [sample.id for sample in find_datasets(out)[0].samples()] == ["S01", "S02"]
    assert "2 slides of 2 patients, 5 spots each, 2 folds" in run.out
    numbers = {"own": "20", "neighbour": "15", "slide": "5", "noise": "10"}
    assert {row[0]: row[1] for row in run.rows}.items() >= numbers.items()
    assert f"next: stflow-graph embed --source-dataroot {out}" in run.out
    again = cli(*step)
    assert (again.code, "--overwrite" in again.error) == (3, True)
    assert cli(*step, "--overwrite").code == 0


@pytest.mark.parametrize("arguments", [["--slides", "1"], ["--spots", "0"], ["--seed", "-1"]])
def test_bad_numbers_are_one_line_and_exit_code_3(cli, tmp_path, arguments):
    run = cli("simulate", tmp_path / "cohort", *arguments)
    assert run.code == 3
    assert run.error.startswith(f"error: {tmp_path / 'cohort'}: ")
    assert "expected a whole number" in run.error
    assert not (tmp_path / "cohort").exists()
