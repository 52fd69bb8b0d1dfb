"""The command line as a user meets it: the main job, bad input, exit codes."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import h5py
import numpy as np
import pytest
from artefacts import resealed
from stflow_graph_cli.main import app, main, spread
from toy import write_cohort, write_slide
from typer.main import get_command
from typer.testing import CliRunner

from stflow_graph.errors import BadConfig
from stflow_graph.io import atomic
from stflow_graph.io.predictions import read_prediction
from stflow_graph.stages.train import Progress, train

COMMANDS = ("download", "simulate", "prepare", "split", "genes", "embed", "encoders", "probe")
COMMANDS += ("train", "sample", "predict", "eval", "summarise", "export", "convert", "doctor")


def arguments(cohort, *more: object) -> list[object]:
    """Return the options that train the toy cohort in a second."""
    roots = {"--source-dataroot": cohort.root, "--embed-dataroot": cohort.embeddings}
    options = [word for pair in roots.items() for word in pair]
    values = {k: v for k, v in cohort.settings.items() if not k.startswith(("data", "train.folds"))}
    sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return ["train", *options, "--encoder", "toy", "--folds", 0, *sets, *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run on the toy cohort with a configuration file; tests only read it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "c.toml").write_text("[train]\nepochs = 9\nseed = 4\n")
    options = [
        "--config",
        folder / "c.toml",
        "--set",
        "train.epochs=2",
        "--max_spots_per_batch",
        999,
    ]
    step = arguments(write_cohort(folder), "--out", folder / "run", *options)
    assert CliRunner().invoke(app, spread(list(map(str, step)))).exit_code == 0
    return folder / "run"


def test_the_main_job_from_embeddings_to_a_report(cli, cohort, tmp_path):
    root, run = cohort.root, tmp_path / "run"
    steps = [
        [
            *["train", "--source_dataroot", root, "--embed_dataroot", cohort.embeddings],
            *["--encoder", "toy", "--out", run, "--n_layers", 1, "--epochs", 1, "--members", 1],
            *["--n_neighbors", 4, "--set", "train.regions_per_slide=2", "train.flow_steps=20"],
        ],
        ["sample", run, cohort.embedding("A").parent, "--out", run / "predictions"],
    ]
    for step in steps:
        code, out, err = cli(*step)
        assert (code, bool(out)) == (0, True), (step, err)
    roots = ["--source-dataroot", root, "--embed-dataroot", cohort.embeddings]
    following = f"eval {run}/predictions/*.h5ad --truth {root}/adata --out {run}/eval --baselines "
    following += " ".join(map(str, roots))
    assert out.splitlines()[-1] == f"next: stflow-graph {following}"
    cohort.expression("B").unlink()  # as after another patient's slide without expression
    out = cli(*steps[-1]).out
    assert out.splitlines()[-1].startswith(f"next: stflow-graph export {run}/predictions/A.h5ad")
    write_cohort(tmp_path / "again")
    shutil.copy(tmp_path / "again/cohort/adata/B.h5ad", cohort.expression("B"))
    predictions = sorted((run / "predictions").glob("*.h5ad"))
    step = ["eval", *predictions, "--truth", root, "--out", run / "eval", "--baselines"]
    assert cli(*step, *roots).code == 0
    assert json.loads((run / "results_kfold.json").read_text())["pearson_corrs"]
    step = ["export", predictions[0], "--to", tmp_path / "out.csv"]
    refused = cli(*step, "--genes", "no", "nope")
    assert (refused.code, "2 of 2 genes absent" in refused.error) == (3, True)
    assert cli(*step).out == f"{tmp_path / 'out.csv'}: 36 spots x 6 genes written\n"
    metrics = (run / "eval" / "metrics.json").read_text()
    for name in ("graph", "ridge", "gene mean"):
        assert name in metrics
    assert (run / "eval" / "report.html").read_text().lower().startswith("<!doctype html>")


def test_the_next_command_quotes_paths_with_blanks(cli, tmp_path):
    """Each is parsed as a shell would, and names the files as they are."""
    folder = tmp_path / "my data"
    root, embeddings, run = folder / "ROOT 1", folder / "ROOT 1_embeddings", folder / "RUN 1"
    roots = ["--source-dataroot", root, "--embed-dataroot", embeddings]
    tiny = ["--epochs", 1, "--set", "train.members=1", "graph.n_neighbors=4"]
    files, predictions = embeddings / "ROOT 1/efficientnet_lite0/fp32", run / "predictions"
    sample = ["sample", run, files, "--out", predictions]
    steps: list[tuple[list[object], list[object]]] = [
        (["simulate", root, "--slides", 4, "--spots", 20], ["embed", *roots]),
        (["embed", *roots], ["train", *roots, "--encoder"]),
        (["split", root, "--leave-one-out", "--overwrite"], ["genes", root]),
        (["genes", root], ["train", *roots, "--encoder", "efficientnet_lite0", "--gene-list"]),
        (["train", *roots, "--out", run, "--folds", 0, *tiny], sample),
        (sample, ["eval", f"{predictions}/*.h5ad", "--truth", root / "adata", "--out"]),
    ]
    for step, following in steps:
        done = cli(*step)
        assert done.code == 0, done.err
        words = shlex.split(done.out.splitlines()[-1])
        assert words[: len(following) + 2] == ["next:", "stflow-graph", *map(str, following)]


def test_the_command_line_overrides_the_file_in_both_spellings(trained):
    text = (trained / "config.toml").read_text()
    for line in ("epochs = 2", "seed = 4", "max_spots_per_batch = 999"):
        assert line in text


def test_options_take_several_values():
    assert spread(["train", "--datasets", "A", "B", "--lr", "1", "--folds", "0"]) == [
        *["train", "--datasets", "A", "--datasets", "B", "--lr", "1", "--folds", "0"]
    ]


def test_sampling_again_leaves_the_prediction_as_it_is(cli, trained, cohort, tmp_path):
    path = tmp_path / "p/A.h5ad"
    step = ["sample", trained, cohort.embedding("A"), "--out", path.parent, "--n-samples", 2]
    first, second = cli(*step).out, cli(*step).out
    assert re.search(rf"A: 36 spots, fold 0 \(held out\), \d+% in range: {path} written", first)
    assert f"in range: {path} is up to date" in second
    prediction = read_prediction(path)
    assert prediction.samples.shape[0] == 2
    assert np.isfinite(prediction.mean).all()


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
        (arguments(cohort, "--out", out, "--device", "meta"), 4, "device 'meta': expected auto"),
        (
            arguments(cohort, "--out", out, "--device", "cpu", "--precision", "tf32"),
            4,
            "precision 'tf32': device 'cpu' has",
        ),
        (["embedd"], 2, "embedd"),
    ]
    for step, code, message in cases:
        run = cli(*step)
        assert (run.code, message in run.err) == (code, True), (step, run)
        if code != 2:
            assert run.error.startswith("error: ")
        assert not out.exists()


def test_a_precision_that_the_device_lacks_is_refused_before_any_slide(
    cli, trained, cohort, tmp_path
):
    step = ["sample", trained, cohort.embedding("A"), "--out", tmp_path / "p", "--device", "cpu"]
    for precision, message in (
        ("tf32", "device 'cpu' has none"),
        ("fp8", "expected float32, tf32"),
    ):
        run = cli(*step, "--precision", precision)
        assert (run.code, message in run.error) == (4, True)
        assert not (tmp_path / "p").exists()


def test_embeddings_of_another_width_end_with_exit_code_4(cli, trained, tmp_path):
    write_slide(tmp_path / "W.h5", None, 36, 0, channels=7)
    run = cli("sample", trained, tmp_path / "W.h5", "--out", tmp_path / "p")
    assert (run.code, "7 channels" in run.error) == (4, True)
    assert not (tmp_path / "p").exists()


def test_debug_shows_the_traceback(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stflow-graph", "train", "--out", "x", "--debug"])
    with pytest.raises(Exception, match="source_dataroot"):
        main()


OUT_OF_MEMORY = (
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("could not create a primitive"),
    OSError("Can't synchronously read data (memory allocation failed for chunk)"),
    ValueError("Unable to allocate 3.6 TiB for an array"),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
)


def test_a_path_that_is_too_long_is_bad_input(cli, tmp_path):
    long = tmp_path / ("x" * 300)
    for step in (["sample", long, "e.h5"], ["eval", long, "--truth", "t"]):
        run = cli(*step, "--out", tmp_path / "out")
        assert (run.code, "x" * 100 in run.error) == (3, True), run


@pytest.fixture
def given(tmp_path, monkeypatch) -> None:
    """A prediction, embeddings and a run in the current folder, of no content."""
    monkeypatch.chdir(tmp_path)
    for name in ("p.h5ad", "e.h5"):
        (tmp_path / name).touch()
    (tmp_path / "run").mkdir()


@pytest.mark.usefixtures("given")
def test_a_long_message_is_cut_and_has_no_control_characters(cli, monkeypatch):
    error = BadConfig("\x1b[2J\x00\n" + "x" * 10**6)
    monkeypatch.setattr("stflow_graph.stages.export.export", Mock(side_effect=error))
    run = cli("export", "p.h5ad", "--to", "p.csv")
    assert run.error.startswith(r"error: \x1b[2J\x00 xxx")
    assert len(run.error) < 2100


def test_output_that_is_not_utf_8_does_not_end_a_command(trained, cohort, tmp_path):
    out = tmp_path / "é"
    step = ["sample", trained, cohort.embedding("A"), "--out", out]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "COLUMNS": "80"}
    code = "from stflow_graph_cli.main import main; main()"
    command = [sys.executable, "-c", code, *map(str, step)]
    run = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (run.returncode, run.stderr) == (0, b"")
    assert rb"/\xe9/A.h5ad written" in run.stdout
    assert (out / "A.h5ad").is_file()
    shutil.rmtree(out)
    out.touch()
    run = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (run.returncode, run.stdout) == (3, b"")
    assert rb"/\xe9: output: found a file" in run.stderr


def test_a_full_disk_is_74_and_memory_75(cli, cohort, tmp_path, monkeypatch):
    step = arguments(cohort, "--out", tmp_path / "run")
    full = Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        run = cli(*step)
    assert (run.code, "No space left" in run.error) == (74, True)
    for error in OUT_OF_MEMORY:
        monkeypatch.setattr("stflow_graph.stages.train.train", Mock(side_effect=error))
        run = cli(*step)
        assert (run.code, "out of memory" in run.error) == (75, True)


@pytest.mark.usefixtures("given")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_command_with_one_line(cli, monkeypatch, signum, code):
    interrupted = Mock(side_effect=lambda *_, **__: signal.raise_signal(signum))
    for stage in ("export.export", "sample.sample"):
        monkeypatch.setattr(f"stflow_graph.stages.{stage}", interrupted)
    lines = {
        "export p.h5ad --to p.csv": "interrupted\n",
        "sample run e.h5 --out p": "interrupted; the same command resumes\n",
        "sample run e.h5 --out p --overwrite": "interrupted\n",
    }
    for step, line in lines.items():
        write = Mock()
        with monkeypatch.context() as patch:
            patch.setattr("stflow_graph_cli.signals.os.write", write)
            patch.setattr("stflow_graph_cli.signals.os.isatty", lambda _: False)
            assert cli(*step.split()) == (code, "", "")
        write.assert_called_once_with(2, line.encode())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_that_it_was_interrupted(tmp_path, command):
    code = (
        "import signal, sys; from stflow_graph_cli import main as m\n"
        "def app(**_): signal.raise_signal(signal.SIGINT)\n"
        f"m.app, sys.argv = app, ['stflow-graph', {command!r}]; m.main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (130, "")
    assert run.stderr.startswith("interrupted")
    assert run.stderr.count("\n") == 1


def test_an_interrupt_before_the_libraries_are_there_is_one_line_too():
    code = (
        "import signal, sys; from stflow_graph_cli.__main__ import main\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt()); sys.argv = ['stflow-graph', 'train']; main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    line = "interrupted; the same command resumes\n"
    assert (run.returncode, run.stdout, run.stderr) == (130, "", line)


@pytest.mark.usefixtures("given")
def test_errors_of_the_program_keep_their_traceback(cli, monkeypatch):
    monkeypatch.setattr("stflow_graph.stages.export.export", Mock(side_effect=RuntimeError("bug")))
    with pytest.raises(RuntimeError, match="bug"):
        cli("export", "p.h5ad", "--to", "p.csv")


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys; sys.argv = ['stflow-graph', '--version']\n"
        "from stflow_graph_cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'anndata', 'matplotlib', 'timm', 'sklearn', 'PIL', 'tifffile',"
        " 'zarr', 'numpy', 'h5py'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"
    assert out.stdout.startswith("stflow-graph ")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_whole_at_80_columns(cli, command):
    run = cli(*command.split(), "--help", columns=80)
    assert run.code == 0
    assert max(map(len, run.out.splitlines())) <= 80
    assert "…" not in run.out
    group = get_command(app)
    if command:
        names = [name for p in group.commands[command].params for name in p.opts if "--" in name]
    else:
        names = list(group.commands)
        assert set(names) == set(COMMANDS)
        assert "..." not in run.out.split("Commands:")[1]
    for name in names:
        assert f" {name}" in run.out


def test_sigterm_ends_a_run_with_143_and_it_resumes(cli, cohort, tmp_path, monkeypatch):
    def terminated(*positional: object, report: Callable, **named: object) -> object:
        def report_and_stop(progress: Progress) -> None:
            report(progress)
            epochs.append(progress.epoch.epoch)
            if len(epochs) == 2:
                signal.raise_signal(signal.SIGTERM)

        return train(*positional, report=report_and_stop, **named)

    epochs: list[int] = []
    monkeypatch.setattr("stflow_graph.stages.train.train", terminated)
    step = arguments(cohort, "--out", tmp_path / "run", "--set", "train.patience=9")
    assert cli(*step).code == 143
    files = [path.name for path in (tmp_path / "run/fold0").iterdir()]
    assert "state-0.safetensors" in files
    assert not [name for name in files if name.endswith(".tmp")]
    assert cli(*step).code == 0
    assert epochs[2] > 1  # it goes on after the last epoch that was saved
    assert epochs[-1] == 3


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, ["PASSIVE", "3000", "0", "False"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", "None", "None", "False"]),
        ({"GOMP_SPINCOUNT": "100"}, ["PASSIVE", "100", "0", "False"]),
    ],
)
def test_openmp_threads_soon_sleep_while_they_wait_unless_the_user_set_it(own, expected):
    names = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"]
    code = (
        "import os, sys, stflow_graph_cli.main\n"
        f"print(*map(os.environ.get, {names}), 'torch' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if k not in names} | own
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.split() == expected


def replace(file: h5py.File, key: str, values: np.ndarray) -> None:
    del file[key]
    file[key] = values


def nan_coords(file: h5py.File) -> None:
    replace(file, "coords", np.where(np.arange(36)[:, None] == 3, np.nan, file["coords"][()]))


def no_spots(file: h5py.File) -> None:
    for key in ("embeddings", "coords", "barcodes"):
        replace(file, key, file[key][:0])


def other_barcodes(file: h5py.File) -> None:
    file["barcodes"][...] = np.char.replace(file["barcodes"][()], b"x", b"y")


BROKEN = {
    "wrong keys": (lambda f: f.move("embeddings", "x"), "'embeddings' or 'features'"),
    "NaN coordinates": (nan_coords, "1 of 36 rows not finite"),
    "zero spots": (no_spots, "0 spots"),
    "killed writer": (lambda f: f.attrs.__delitem__("complete"), "completed write"),
    "barcodes that do not match": (other_barcodes, "0 of 36 barcodes"),
    "genes absent": (lambda f: f["var"]["_index"].__setitem__(0, "other"), "1 of 6"),
}
CASES = [("train", fault) for fault in BROKEN] + [("sample", fault) for fault in list(BROKEN)[:4]]


@pytest.mark.parametrize(("command", "fault"), CASES)
def test_bad_data_is_named_by_file_and_field(cli, trained, cohort, tmp_path, command, fault):
    change, message = BROKEN[fault]
    slide = "B" if command == "train" else "A"  # fold 0 trains on B and tests A
    path = cohort.expression(slide) if fault == "genes absent" else cohort.embedding(slide)
    with resealed(path) as file:
        change(file)
    steps = {"train": arguments(cohort), "sample": ["sample", trained, path]}
    run = cli(*steps[command], "--out", tmp_path / "out")
    assert run.code == 3, run.err
    assert run.error.startswith(f"error: {path}: ")
    assert message in run.error
    assert not (tmp_path / "out").exists()


def test_patients_on_both_sides_need_an_option_and_are_in_the_protocol(cli, cohort, tmp_path):
    (cohort.root / "patients.csv").write_text("id,patient\nA,P1\nB,P1\nC,P2\nD,P3\n")
    step = arguments(cohort, "--out", tmp_path / "run")
    run = cli(*step)
    assert (run.code, "also in train_0.csv" in run.error) == (3, True)
    run = cli(*step, "--allow-patient-overlap")
    assert run.code == 0
    rule = "slide-grouped 4-fold, patients on both sides"
    assert f"protocol: log1p | var_50genes.json | {rule} | " in run.out
    # a run without patients on both sides needs no option
    assert cli("split", cohort.root, "--leave-one-out", "--overwrite")[0] == 0
    run = cli(*arguments(cohort, "--out", tmp_path / "apart"))
    assert (run.code, "patient-grouped 3-fold" in run.out) == (0, True)
