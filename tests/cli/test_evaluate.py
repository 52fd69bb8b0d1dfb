from __future__ import annotations

import json

import pytest
from artefacts import write_prediction
from predicted import predicted
from toy import GENES

from stflow_graph.data.load import load_slide


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
    return paths


@pytest.mark.parametrize("columns", [80, 200])
def test_the_tables_are_printed_and_three_files_written(cli, files, cohort, tmp_path, columns):
    out = tmp_path / "out"
    options = ["--truth", cohort.root, "--out", out, "--n-bootstrap", 10]
    run = cli("eval", *files, *options, columns=columns)
    assert run.code == 0, run.err
    assert "\x1b[2J" not in run.out
    assert "…" not in run.out
    assert run.out.count("other measures") == (2 if columns == 80 else 1)
    for text in ("[red]graph", "noise ceiling", "1.000", "A: 36 of 36 predicted spots scored"):
        assert text in run.out
    assert "report.html" in run.out
    assert {path.name for path in out.iterdir()} == {"metrics.json", "metrics.csv", "report.html"}


def test_training_slides_are_marked_and_left_out_of_the_means(cli, cohort, tmp_path):
    sides = {"A": {}, "B": {"fold": 0, "train_slides": ["B"]}}
    files = [predicted(cohort, s, **o).write(tmp_path / f"{s}.h5ad") for s, o in sides.items()]
    step = ["eval", *files, "--truth", cohort.root, "--out", tmp_path / "out", "--n-bootstrap", 10]
    out = cli(*step).out
    assert "mean over genes, A (1 training slide left out)" in out
    assert "B (trained on)" in out
    assert "mean over genes, B (trained on)" in cli(*step[:1], *step[2:]).out


def test_samples_have_a_line_a_scale(cli, cohort, tmp_path):
    path = predicted(cohort, n_samples=4).write(tmp_path / "A.h5ad")
    out = tmp_path / "out"
    run = cli("eval", path, "--truth", cohort.root, "--out", out, "--n-bootstrap", 10, columns=80)
    assert run.code == 0, run.err
    table = run.out[run.out.index("calibration by scale, graph") :].splitlines()
    assert [line.split()[0] for line in table[3:8] if line.strip()][:4] == ["1", "9", "25", "slide"]
    assert max(map(len, table[:8])) <= 80


def test_baselines_take_their_roots_from_the_command_line(cli, files, cohort, tmp_path):
    step = ["eval", *files, "--truth", cohort.root, "--out", tmp_path / "out", "--baselines"]
    step += ["--n-bootstrap", 10]
    refused = cli(*step)
    assert (refused.code, "give --source-dataroot" in refused.error) == (3, True)
    run = cli(*step, "--source_dataroot", cohort.root, "--embed-dataroot", cohort.embeddings)
    assert run.code == 0, run.err
    for name in ("gene mean", "ridge", "smoothed ridge", "best baseline", "no row darkness"):
        assert name in run.out
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert stored["protocol"]["best_baseline"] == "ridge"


def test_bad_input_is_one_line_and_exit_code_3(cli, files, tmp_path):
    (tmp_path / "none").mkdir()
    run = cli("eval", *files, "--truth", tmp_path / "none", "--out", tmp_path / "out")
    assert (run.code, run.out) == (3, "")
    assert run.error.startswith("error: ")
    assert "truth: found no A.h5ad" in run.error
    assert not (tmp_path / "out").exists()
