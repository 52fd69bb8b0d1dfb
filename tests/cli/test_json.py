"""``--json``: standard output is one object, whatever the command and however it ends."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from fault_commands import COMMANDS as TRIALS
from fault_commands import write_inputs
from hub_server import FakeHub, serve
from imaged import write_imaged
from stflow_graph_cli.document import Document, as_json
from stflow_graph_cli.main import app
from toy import toy_encoder
from typer.main import get_command

from stflow_graph.errors import BadInput
from stflow_graph.inference.in_range import InRange
from stflow_graph.io import hub as client
from stflow_graph.stages.export import Exported
from stflow_graph.version import __version__

COMMANDS = sorted(get_command(app).commands)
# fields of a record that a pipeline goes on with
FIELDS = {
    "convert": {"path", "denoiser", "in_channels", "n_genes"},
    "doctor": {"subject", "state", "found", "fix"},
    "download": {"repository", "out", "commit", "fetched", "kept", "n_bytes"},
    "embed": {"slide", "path", "n_spots", "n_blank", "up_to_date"},
    "encoders": {"name", "width", "licence", "gated", "weights"},
    "eval": {"metrics", "report", "rows", "slides", "notes", "protocols"},
    "export": {"path", "n_spots", "n_genes"},
    "genes": {"dataset", "fold", "file", "genes", "up_to_date"},
    "predict": {"slide", "path", "overlay", "report", "n_spots", "up_to_date", "in_range"},
    "prepare": {"slide", "patches", "adata", "n_spots", "pitch_um", "up_to_date"},
    "probe": {"dataset", "encoder", "mean", "std", "folds", "up_to_date"},
    "sample": {"slide", "path", "n_spots", "fold", "held_out", "up_to_date", "in_range"},
    "simulate": {"path", "slides", "n_spots", "n_folds"},
    "split": {"folder", "folds", "n_spots", "up_to_date"},
    "summarise": {"out", "slides", "content", "report"},
    "train": {"dataset", "fold", "checkpoint", "validation_pearson", "mean_pearson", "up_to_date"},
}
WITHOUT_NEXT = {"doctor", "download", "embed", "encoders", "eval", "export", "probe", "summarise"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def hub(monkeypatch):
    with serve(FakeHub({"datasets/a/b": {"x.txt": b"x"}})) as server:
        monkeypatch.setattr(client, "Hub", partial(client.Hub, server.url))
        monkeypatch.setenv("HF_TOKEN", "hf_good")
        yield server


def arguments(command: str, inputs: Path, out: Path) -> list[object]:
    """Return a command line on tiny data."""
    if command in TRIALS or command == "export":
        trial = TRIALS.get(command) or TRIALS["export csv"]
        trial.before(inputs, out)
        return trial.arguments(inputs, out)
    return {
        "doctor": ["doctor", out],
        "encoders": ["encoders"],
        "download": ["download", "--repo", "a/b", "--out", out],
        "predict": ["predict", "images/S3.svs", "--model", "run", "--out", out],
    }[command]


def document(run) -> dict:
    """Return the object on standard output, which has nothing else."""
    (line,) = run.out.splitlines()
    found = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert list(found)[:4] == ["command", "version", "ok", "results"]
    assert found["version"] == __version__
    assert found["ok"] is (run.code == 0)
    assert set(found) - {"command", "version", "ok", "results"} == (
        {"next"} if found["ok"] else {"error"}
    )
    if not found["ok"]:
        assert found["error"]["exit_code"] == run.code
        assert found["error"]["message"]
    return found


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_one_object(cli, inputs, hub, tmp_path, monkeypatch, command, place):
    if command == "predict":
        write_imaged(tmp_path)
        monkeypatch.setattr("stflow_graph.encoders.create_encoder", lambda *_: toy_encoder())
        monkeypatch.chdir(tmp_path)
    if command == "embed":
        monkeypatch.syspath_prepend(Path(__file__).parents[1])
    out = tmp_path / "out"
    out.mkdir()
    words = arguments(command, inputs, out)
    words = ["--json", *words] if place == "before" else [*words, "--json"]
    run = cli(*words)
    assert run.code == 0, run
    found = document(run)
    assert found["command"] == command
    assert found["results"]
    for record in found["results"]:
        assert FIELDS[command] <= set(record), record
    following = found["next"]
    assert following is None if command in WITHOUT_NEXT else following.startswith("stflow-graph ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_option(cli, command):
    assert "--json" in cli(command, "--help").out
    run = cli(command, "--no-such-option", "--json")
    assert run.code == 2
    assert "--no-such-option" in document(run)["error"]["message"]
    assert "Usage: " in run.err


def test_the_records_are_of_what_was_done(cli, inputs, tmp_path):
    words = [*arguments("sample", inputs, tmp_path), "--json"]
    first, again = document(cli(*words)), document(cli(*words))
    (record,) = first["results"]
    assert record["path"] == str(tmp_path / "A.h5ad")
    assert (record["n_spots"], record["fold"], record["held_out"]) == (36, 0, True)
    assert record["in_range"].keys() == {"slide", "share", "embeddings", "stain"}
    assert [r["up_to_date"] for r in (record, *again["results"])] == [False, True]


def test_a_failing_slide_does_not_hide_the_others(cli, inputs, tmp_path):
    (tmp_path / "B.h5").write_bytes(b"no embeddings")
    files = [inputs / "embeddings/cohort/toy/fp32/A.h5", tmp_path / "B.h5"]
    run = cli("sample", inputs / "run", *files, "--out", tmp_path / "out", "--json")
    found = document(run)
    assert run.code == 5
    assert [record["slide"] for record in found["results"]] == ["A"]
    (failed,) = found["error"]["failed"]
    assert failed["slide"] == "B"
    assert "B.h5" in failed["message"]
    assert run.error.startswith("error: 1 of 2 slides failed")


@pytest.mark.parametrize(
    ("words", "code", "command", "text"),
    [
        (["export", "absent.h5ad", "--to", "a.csv"], 3, "export", "absent.h5ad"),
        (["train", "--out", "run"], 4, "train", "source_dataroot"),
        (["doctor", "absent"], 3, "doctor", "found no folder"),
        (["embedd"], 2, None, "embedd"),
        ([], 2, None, "Usage"),
        (["train", "--lr", "fast"], 2, "train", "--lr"),
        (["split", "x"], 2, "split", "give --k"),
    ],
)
def test_errors_have_their_message_and_code(cli, tmp_path, monkeypatch, words, code, command, text):
    monkeypatch.chdir(tmp_path)
    run = cli(*words, "--json")
    found = document(run)
    assert (run.code, found["command"], found["results"]) == (code, command, [])
    assert text in found["error"]["message"]
    assert run.err.startswith("error: " if code != 2 else "Usage: ")


def test_a_check_that_fails_is_the_error(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", Mock(side_effect=OSError(5, "broken")))
    run = cli("doctor", tmp_path, "--json")
    found = document(run)
    assert run.code == 74
    assert found["error"]["message"] == f"writing in {tmp_path}: fsync: broken"
    assert len(found["results"]) > 9


@pytest.fixture
def prediction(tmp_path, monkeypatch) -> None:
    """A file p.h5ad in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.h5ad").touch()


@pytest.mark.usefixtures("prediction")
def test_an_interrupted_command_has_its_code(cli, monkeypatch):
    end = Mock(side_effect=lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr("stflow_graph.stages.export.export", end)
    monkeypatch.setattr("stflow_graph_cli.signals.os.write", Mock())
    found = document(cli("export", "p.h5ad", "--to", "p.csv", "--json"))
    assert found["error"] == {"message": "interrupted", "exit_code": 143}


@pytest.mark.usefixtures("prediction")
def test_an_error_of_the_program_keeps_its_traceback(cli, monkeypatch, capsys):
    monkeypatch.setattr("stflow_graph.stages.export.export", Mock(side_effect=RuntimeError("bug")))
    with pytest.raises(RuntimeError, match="bug"):
        cli("export", "p.h5ad", "--to", "p.csv", "--json")
    error = json.loads(capsys.readouterr().out)["error"]
    assert error == {"message": "RuntimeError: bug", "exit_code": 1}


def test_debug_has_the_code_of_a_traceback(cli, capsys):
    with pytest.raises(BadInput):
        cli("export", "p.h5ad", "--to", "p.csv", "--json", "--debug")
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 1


@pytest.mark.usefixtures("prediction")
def test_what_else_is_printed_goes_to_standard_error(cli, monkeypatch):
    def noisy(prediction, to, **options):
        print("noise")
        return Exported(to, 1, 2)

    monkeypatch.setattr("stflow_graph.stages.export.export", noisy)
    run = cli("export", "p.h5ad", "--to", "p.csv", "--json")
    assert document(run)["results"] == [{"path": "p.csv", "n_spots": 1, "n_genes": 2}]
    assert run.err == "noise\n"
    run = cli("--version", "--json")
    assert (document(run)["command"], run.err) == (None, f"stflow-graph {__version__}\n")


@dataclasses.dataclass(frozen=True)
class Nested:
    path: Path
    values: np.ndarray
    table: pd.DataFrame
    in_range: InRange | None = None


def test_values_become_those_of_json():
    table = pd.DataFrame({"mean": [1.5, math.nan]}, index=pd.Index(["g0", "g1"], name="gene"))
    record = Nested(Path("a/b"), np.array([1, math.inf], np.float32), table)
    document = Document("x")
    document.add(record, n=np.int64(3), flag=np.bool_(True), text="\udcff")
    (found,) = json.loads(document.text())["results"]
    assert found == {
        "path": "a/b",
        "values": [1.0, None],
        "table": [{"gene": "g0", "mean": 1.5}, {"gene": "g1", "mean": None}],
        "in_range": None,
        "n": 3,
        "flag": True,
        "text": "\udcff",
    }
    assert as_json(InRange(0.5, True, None))["slide"] is True
