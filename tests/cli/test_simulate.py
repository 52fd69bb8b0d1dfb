import sys

import pytest
from stflow_graph_cli import main
from typer.testing import CliRunner

from stflow_graph.data.splits import find_datasets


def test_simulate_writes_a_cohort_and_says_what_and_what_next(tmp_path):
    out = tmp_path / "cohort"
    arguments = ["simulate", str(out), "--slides", "2", "--spots", "5", "--seed", "3"]
    result = CliRunner().invoke(main.app, arguments)
    assert result.exit_code == 0, result.output
    assert [sample.id for sample in find_datasets(out)[0].samples()] == ["S01", "S02"]
    assert "2 slides of 2 patients, 5 spots each, 2 folds" in result.stdout
    for name, number in (("own", 20), ("neighbour", 15), ("slide", 5), ("noise", 10)):
        (row,) = [line for line in result.stdout.splitlines() if line.startswith(f"│ {name} ")]
        assert row.split("│")[2].strip() == str(number)
    assert f"next: stflow-graph embed --source-dataroot {out}" in result.stdout


@pytest.mark.parametrize("arguments", [["--slides", "1"], ["--spots", "0"], ["--seed", "-1"]])
def test_bad_numbers_are_one_line_and_exit_code_three(tmp_path, monkeypatch, capsys, arguments):
    out = tmp_path / "cohort"
    monkeypatch.setattr(sys, "argv", ["stflow-graph", "simulate", str(out), *arguments])
    with pytest.raises(SystemExit) as error:
        main.main()
    assert error.value.code == 3
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {out}: ")
    assert "expected a whole number" in line
    assert not out.exists()


def test_a_folder_with_content_needs_overwrite(tmp_path, monkeypatch, capsys):
    arguments = ["stflow-graph", "simulate", str(tmp_path / "out"), "--slides", "2", "--spots", "2"]
    codes = []
    for more in ([], [], ["--overwrite"]):
        monkeypatch.setattr(sys, "argv", [*arguments, *more])
        with pytest.raises(SystemExit) as error:
            main.main()
        codes.append(error.value.code)
    assert codes == [0, 3, 0]
    assert "--overwrite" in capsys.readouterr().err
