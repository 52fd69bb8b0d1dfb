from __future__ import annotations

from pathlib import Path

import pytest
from linear import configured

from stflow_graph.config.stored import check_same_run
from stflow_graph.errors import BadConfig, BadInput
from stflow_graph.io.atomic import write_json, write_text
from stflow_graph.training.run_folder import check_is_run, claim

STATES = ("state-0.safetensors", "result.json", "provenance.json", "history.csv")


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def write_fold(folder: Path) -> None:
    for name in STATES:
        write_text(folder / name, "x")


@pytest.mark.parametrize(
    "name", ["run.json", "config.toml", "results_kfold.json", "fold0/x", "data/fold1/result.json"]
)
def test_files_of_a_runs_names_that_are_of_no_run_are_refused(tmp_path, name):
    write_text(tmp_path / name, "mine")
    with pytest.raises(BadInput, match=f"output: found {name[:5]}.*of no run of this package"):
        check_is_run(tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    write_json(tmp_path / "run.json", {"format": "another/1"})
    with pytest.raises(BadInput, match="found run.json"):
        check_is_run(tmp_path)


def test_free_folders_runs_and_folders_of_runs_are_accepted(tmp_path):
    check_is_run(tmp_path / "none")
    check_is_run(tmp_path)
    write_text(tmp_path / "notes/slurm.log", "")
    check_is_run(tmp_path)
    claim(tmp_path / "one", configured(), overwrite=False)
    write_fold(tmp_path / "one/fold0")
    check_is_run(tmp_path / "one")
    check_is_run(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="found a file"):
        check_is_run(tmp_path / "file")


def test_overwriting_removes_states_of_this_run_and_of_no_other(tmp_path):
    config = configured()
    claim(tmp_path, config, overwrite=False)
    claim(tmp_path / "other", config, overwrite=False)
    for folder in ("fold0", "data/fold1", "other/fold0", "a/b/fold0", "folder", "data/mine"):
        write_fold(tmp_path / folder)
    before = files(tmp_path)
    claim(tmp_path, configured(train__lr=0.5), overwrite=True)
    gone = set(before) - set(files(tmp_path))
    assert gone == {f"{fold}/{s}" for fold in ("fold0", "data/fold1") for s in STATES[:3]}


def test_another_configuration_is_not_resumed(tmp_path):
    check_same_run(tmp_path, configured())
    claim(tmp_path, configured(), overwrite=False)
    check_same_run(tmp_path, configured(train__epochs=9))
    with pytest.raises(BadConfig, match=r"train\.lr = .* \(now 0\.5\)"):
        check_same_run(tmp_path, configured(train__lr=0.5))
