from __future__ import annotations

import json
import subprocess
import sys

import pytest
from artefacts import write_prediction
from stflow_graph_cli.main import app
from toy import GENES
from typer.testing import CliRunner

from stflow_graph.data.load import load_slide
from stflow_graph.errors import BadInput


@pytest.fixture
def files(cohort, tmp_path):
    paths = []
    for slide in "AB":
        loaded = load_slide(cohort.embedding(slide), cohort.expression(slide), GENES)
        provenance = {
            "slide": slide,
            "dataset": "cohort",
            "target": "log1p",
            "encoder": "toy",
            "denoiser": "[red]graph\x1b[2J",
            "train_slides": ["C", "D"],
        }
        paths.append(tmp_path / f"{slide}.h5ad")
        write_prediction(
            paths[-1], loaded.y, loaded.barcodes, GENES, loaded.coords, provenance=provenance
        )
    return [str(path) for path in paths]


def invoke(*arguments):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)], env={"COLUMNS": "200"})


def test_eval_prints_the_table_and_writes_three_files(files, cohort, tmp_path):
    out = tmp_path / "out"
    result = invoke(*files, "--truth", cohort.root, "--out", out, "--n-bootstrap", 10)
    assert result.exit_code == 0, result.output
    assert "\x1b[2J" not in result.stdout
    for text in ("[red]graph", "noise ceiling", "1.000", "A: 36 of 36 predicted spots scored"):
        assert text in result.stdout
    assert "report.html" in result.stdout
    assert {path.name for path in out.iterdir()} == {"metrics.json", "metrics.csv", "report.html"}


@pytest.mark.parametrize("spelling", ["--source-dataroot", "--source_dataroot"])
def test_baselines_take_their_roots_from_the_command_line(spelling, files, cohort, tmp_path):
    arguments = [*files, "--truth", cohort.root, "--out", tmp_path / "out", "--baselines"]
    refused = invoke(*arguments).exception
    assert isinstance(refused, BadInput)
    assert "give --source-dataroot" in str(refused)
    result = invoke(
        *arguments,
        spelling,
        cohort.root,
        "--embed-dataroot",
        cohort.embeddings,
        "--n-bootstrap",
        10,
    )
    assert result.exit_code == 0, result.output
    for name in ("gene mean", "ridge", "smoothed ridge", "best baseline", "no row darkness"):
        assert name in result.stdout
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert stored["protocol"]["best_baseline"] == "ridge"


def test_bad_input_is_one_line_and_exit_code_3(files, tmp_path):
    command = [sys.executable, "-m", "stflow_graph_cli.main", "eval", *files]
    done = subprocess.run(
        [*command, "--truth", str(tmp_path / "none"), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "truth: found no A.h5ad" in line
    assert not (tmp_path / "out").exists()
