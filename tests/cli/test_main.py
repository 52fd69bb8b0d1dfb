"""The command line as a user meets it: the main job, bad input, exit codes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from stflow_graph_cli.main import main, spread
from toy import write_slide

from stflow_graph.io.predictions import read_prediction


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run the command line in this process; returns exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stflow-graph", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


def arguments(cohort, *more: object) -> list[object]:
    """Return the options that train the toy cohort in a second."""
    roots = {"--source-dataroot": cohort.root, "--embed-dataroot": cohort.embeddings}
    options = [word for pair in roots.items() for word in pair]
    values = {k: v for k, v in cohort.settings.items() if not k.startswith(("data", "train.folds"))}
    sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return ["train", *options, "--encoder", "toy", "--folds", 0, *sets, *more]


def test_the_main_job_from_simulated_slides_to_a_report(cli, tmp_path):
    root, emb, run = tmp_path / "cohort", tmp_path / "emb", tmp_path / "run"
    steps = [
        ["simulate", root, "--slides", 4, "--spots", 30, "--seed", 1],
        ["embed", "--source-dataroot", root, "--embed-dataroot", emb],
        [
            *["train", "--source_dataroot", root, "--embed_dataroot", emb, "--out", run],
            *["--n_layers", 1, "--epochs", 1, "--set", "train.regions_per_slide=2"],
        ],
        ["sample", run, emb / "cohort/efficientnet_lite0/fp32", "--out", run / "predictions"],
    ]
    for step in steps:
        code, out, err = cli(*step)
        assert code == 0, (step, err)
        assert out
    predictions = sorted((run / "predictions").glob("*.h5ad"))
    code, out, err = cli(
        "eval", *predictions, "--truth", root, "--out", run / "eval", "--baselines"
    )
    assert code == 0, err
    assert json.loads((run / "results_kfold.json").read_text())["pearson_corrs"]
    code, out, err = cli(
        "export", predictions[0], "--to", tmp_path / "out.csv", "--genes", "no", "nope"
    )
    assert (code, err.count("\n")) == (3, 1)
    assert "2 of 2 genes absent" in err
    code, out, err = cli("export", predictions[0], "--to", tmp_path / "out.csv")
    assert (code, out) == (0, f"{tmp_path / 'out.csv'}: 30 spots x 50 genes written\n")
    metrics = (run / "eval" / "metrics.json").read_text()
    for name in ("graph", "ridge", "darkness"):
        assert name in metrics
    assert (run / "eval" / "report.html").read_text().lower().startswith("<!doctype html>")


def test_both_spellings_of_options_and_several_values(cli, cohort, tmp_path):
    code, out, err = cli(*arguments(cohort, "--out", tmp_path / "run", "--n_sample_steps", 3))
    assert code == 0, err
    text = (tmp_path / "run/config.toml").read_text()
    assert "n_sample_steps = 3" in text
    assert spread(["train", "--datasets", "A", "B", "--lr", "1", "--folds", "0"]) == [
        *["train", "--datasets", "A", "--datasets", "B", "--lr", "1", "--folds", "0"]
    ]


def test_the_command_line_wins_over_the_file(cli, cohort, tmp_path):
    (tmp_path / "c.toml").write_text("[train]\nepochs = 9\nseed = 4\n")
    options = ["--config", tmp_path / "c.toml", "--set", "train.epochs=2", "--out", tmp_path / "r"]
    code, _, err = cli(*arguments(cohort, *options))
    assert code == 0, err
    text = (tmp_path / "r/config.toml").read_text()
    assert "epochs = 2" in text
    assert "seed = 4" in text


def test_sampling_twice_says_that_it_is_there(cli, cohort, tmp_path):
    cli(*arguments(cohort, "--out", tmp_path / "run"))
    step = ["sample", tmp_path / "run", cohort.embedding("A"), "--out", tmp_path / "p"]
    assert "written" in cli(*step, "--n-samples", 2)[1]
    assert "is there already" in cli(*step, "--n-samples", 2)[1]
    found = read_prediction(tmp_path / "p/A.h5ad")
    assert found.samples.shape[0] == 2
    assert np.isfinite(found.mean).all()


def test_bad_input_is_one_line_with_its_code_and_leaves_nothing(cli, cohort, tmp_path):
    out = tmp_path / "run"
    cases = [
        (["train", "--out", out], 4, "data.source_dataroot is needed"),
        (arguments(cohort, "--out", out, "--set", "train.speed=3"), 4, "unknown name train.speed"),
        (arguments(cohort, "--out", out, "--denoiser", "mlp"), 4, "'graph', 'transformer'"),
        (arguments(cohort, "--out", out, "--gene-list", "none.json"), 3, "none.json"),
        (arguments(cohort, "--out", out, "--set", "graph.n_neighbors=36"), 3, "36 neighbours"),
        (["sample", tmp_path / "no", cohort.embedding("A"), "--out", out], 3, "checkpoint"),
        (["train", "--out", out, "--lr", "fast"], 2, "--lr"),
        (["embedd"], 2, "embedd"),
    ]
    for step, code, message in cases:
        found, _, err = cli(*step)
        assert (found, message in err) == (code, True), (step, found, err)
        if code != 2:
            assert err.startswith("error: ")
            assert err.count("\n") == 1
            assert "Traceback" not in err
        assert not out.exists()


def test_embeddings_of_another_width_are_told_with_exit_code_4(cli, cohort, tmp_path):
    cli(*arguments(cohort, "--out", tmp_path / "run"))
    write_slide(tmp_path / "W.h5", None, 36, 0, channels=7)
    code, _, err = cli("sample", tmp_path / "run", tmp_path / "W.h5", "--out", tmp_path / "p")
    assert code == 4
    assert "7 channels" in err
    assert not (tmp_path / "p").exists()


def test_debug_shows_the_traceback(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stflow-graph", "train", "--out", "x", "--debug"])
    with pytest.raises(Exception, match="source_dataroot"):
        main()


def test_a_full_disk_is_74_and_memory_75(cli, cohort, tmp_path, monkeypatch):
    import stflow_graph.io.atomic as atomic

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", full)
        code, _, err = cli(*arguments(cohort, "--out", tmp_path / "run"))
    assert code == 74
    assert "No space left" in err

    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):

        def greedy(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("stflow_graph.stages.train.train", greedy)
            code, _, err = cli(*arguments(cohort, "--out", tmp_path / "run"))
        assert code == 75
        assert "out of memory" in err


def test_help_and_version_are_quick_and_import_nothing_heavy():
    code = (
        "import sys; sys.argv = ['stflow-graph', '--version']\n"
        "from stflow_graph_cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'anndata', 'matplotlib', 'timm', 'sklearn'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"
    assert out.stdout.startswith("stflow-graph ")


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, ["PASSIVE", "0", "0", "False"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", "None", "None", "False"]),
        ({"GOMP_SPINCOUNT": "100"}, ["PASSIVE", "100", "0", "False"]),
    ],
)
def test_openmp_threads_sleep_while_they_wait_unless_the_user_set_it(own, expected):
    names = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"]
    code = (
        "import os, sys, stflow_graph_cli.main\n"
        f"print(*map(os.environ.get, {names}), 'torch' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if k not in names} | own
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.split() == expected


def test_sigterm_ends_a_run_with_143_and_it_can_go_on(cohort, tmp_path):
    words = arguments(cohort, "--out", tmp_path / "run", "--set", "train.epochs=500")
    words += ["--set", "train.patience=500"]
    command = [sys.executable, "-m", "stflow_graph_cli.main", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    state = tmp_path / "run/fold0/state-0.safetensors"
    deadline = time.time() + 60
    while not state.exists() and time.time() < deadline:
        time.sleep(0.05)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert state.exists()
    assert not list((tmp_path / "run/fold0").glob(".*.tmp"))


def nan_coords(file: h5py.File) -> None:
    coords = file["coords"][()].astype(float)
    coords[3] = np.nan
    del file["coords"]
    file["coords"] = coords


def no_spots(file: h5py.File) -> None:
    for key in ("embeddings", "coords", "barcodes"):
        empty = file[key][:0]
        del file[key]
        file[key] = empty


def other_barcodes(file: h5py.File) -> None:
    file["barcodes"][...] = np.char.replace(file["barcodes"][()], b"x", b"y")


BROKEN = {
    "wrong keys": (lambda f: f.move("embeddings", "x"), "embeddings", "'embeddings' or 'features'"),
    "NaN coordinates": (nan_coords, "embeddings", "1 of 36 rows not finite"),
    "zero spots": (no_spots, "embeddings", "0 spots"),
    "barcodes that do not match": (other_barcodes, "embeddings", "0 of 36 barcodes"),
    "genes absent": (lambda f: f["var"]["_index"].__setitem__(0, "other"), "expression", "1 of 6"),
    "killed writer": (lambda f: f.attrs.__delitem__("complete"), "embeddings", "completed write"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_train_names_the_file_and_field_of_bad_data(cli, cohort, tmp_path, fault):
    change, kind, message = BROKEN[fault]
    path = cohort.embedding("B") if kind == "embeddings" else cohort.expression("B")
    with h5py.File(path, "r+") as file:
        change(file)
    code, _, err = cli(*arguments(cohort, "--out", tmp_path / "run"))
    assert code == 3, err
    assert err.startswith(f"error: {path}: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fault", ["wrong keys", "NaN coordinates", "zero spots", "killed writer"])
def test_sample_names_the_file_and_field_of_bad_data(cli, cohort, tmp_path, fault):
    cli(*arguments(cohort, "--out", tmp_path / "run"))
    with h5py.File(cohort.embedding("A"), "r+") as file:
        BROKEN[fault][0](file)
    step = ["sample", tmp_path / "run", cohort.embedding("A"), "--out", tmp_path / "p"]
    code, _, err = cli(*step)
    assert code == 3, err
    assert err.startswith(f"error: {cohort.embedding('A')}: ")
    assert BROKEN[fault][2] in err
    assert not (tmp_path / "p").exists()


def test_patients_on_both_sides_take_an_option_and_the_protocol_says_so(cli, cohort, tmp_path):
    (cohort.root / "patients.csv").write_text("id,patient\nA,P1\nB,P1\nC,P2\nD,P3\n")
    step = arguments(cohort, "--out", tmp_path / "run")
    code, _, err = cli(*step)
    assert (code, "also in train_0.csv" in err, err.count("\n")) == (3, True, 1)
    code, out, _ = cli(*step, "--allow-patient-overlap")
    assert code == 0
    rule = "slide-grouped 4-fold, patients on both sides"
    assert f"protocol: log1p | var_50genes.json | {rule} | " in out
    # a run without patients on both sides needs no option
    assert cli("split", cohort.root, "--leave-one-out", "--overwrite")[0] == 0
    code, out, _ = cli(*arguments(cohort, "--out", tmp_path / "apart"))
    assert code == 0
    assert "patient-grouped 3-fold" in out
