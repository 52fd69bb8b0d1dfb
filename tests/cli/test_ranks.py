"""``--nproc`` and ``torchrun``: several processes write what one writes, and one of them speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks import start_ranks
from toy import Cohort, write_cohort

from stflow_graph.io.atomic import sha256


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("ranks"))


def words(cohort: Cohort, **changes: object) -> list[str]:
    settings = {**cohort.settings, "train.folds": [0, 1], "train.members": 2}
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    return ["train", "--set", *(f"{k}={json.dumps(v)}" for k, v in settings.items())]


def run(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stflow_graph_cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | more,
        timeout=300,
    )


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".h5ad", ".safetensors") and not path.name.startswith("state-")
    }


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory) -> Path:
    """A run of one process."""
    out = tmp_path_factory.mktemp("one") / "run"
    found = run(*words(files), "--out", out)
    assert found.returncode == 0, found
    return out


def test_train_and_sample_by_two_processes(files, trained, tmp_path):
    out = tmp_path / "run"
    found = run(*words(files), "--out", out, "--nproc", 2, "--json")
    assert found.returncode == 0, found
    assert found.stderr == ""
    (document,) = map(json.loads, found.stdout.splitlines())
    assert sorted(result["fold"] for result in document["results"]) == [0, 1]
    assert document["next"].startswith("stflow-graph sample")
    assert hashes(out) == hashes(trained)
    for fold in (0, 1):
        assert len((out / f"fold{fold}/history.csv").read_text().splitlines()) == 1 + 2 * 3
    tables = [json.loads((each / "results_kfold.json").read_text()) for each in (out, trained)]
    assert tables[0] == tables[1]
    assert not list(out.rglob("*.lock"))

    sampled = ["sample", trained, files.embedding("A").parent, "--n-samples", 2]
    for name, more in (("one", []), ("two", ["--nproc", 2])):
        found = run(*sampled, "--out", tmp_path / name, *more)
        assert found.returncode == 0, found
        lines = found.stdout.splitlines()
        assert sorted(line.split(":")[0] for line in lines[:-1]) == ["A", "B", "C", "D"]
        assert lines[-1].startswith("next: ")
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two") != {}


@pytest.mark.slow
def test_torchrun_starts_ranks(files, trained, tmp_path):
    arguments = [*words(files), "--out", str(tmp_path / "run")]
    found = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
        + ["-m", "stflow_graph_cli", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found
    assert found.stdout.count("next: ") == 1
    assert hashes(tmp_path / "run") == hashes(trained)


@pytest.mark.slow
def test_more_processes_than_members_share_the_steps(files, tmp_path):
    many = {"train__folds": "all", "train__members": 1, "train__batch_size": 4}
    for name, more in (("one", []), ("two", ["--nproc", 2])):
        found = run(*words(files, **many), "--out", tmp_path / name, *more)
        assert found.returncode == 0, found
    histories = [(tmp_path / name / "all/history.csv").read_text() for name in ("one", "two")]
    one, two = ([line.split(",") for line in text.splitlines()[1:]] for text in histories)
    assert len(one) == len(two) == 3
    # dropout draws other masks; the losses are those of the same regions
    assert [row[1] for row in one] == [row[1] for row in two]
    losses = [[float(row[2]) for row in rows] for rows in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_one_line_and_one_code_where_all_fail_alike(files, tmp_path):
    found = run("sample", tmp_path / "none", tmp_path, "--out", tmp_path / "out", "--nproc", 2)
    assert found.returncode == 3
    (line,) = found.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'none'}")


def test_slides_that_fail_are_named_by_the_first(files, trained, tmp_path):
    bad = tmp_path / "bad.h5"
    bad.write_bytes(b"no HDF5")
    folder = files.embedding("A").parent
    found = run("sample", trained, folder, bad, "--out", tmp_path / "out", "--nproc", 2)
    assert found.returncode == 5
    (line,) = found.stderr.splitlines()
    assert line.startswith("error: 1 of 5 slides failed: bad: ")
    assert len(list((tmp_path / "out").glob("*.h5ad"))) == 4


def test_a_rank_that_is_killed_is_named(files, tmp_path):
    killer = (
        "import os, signal, sys, threading\n"
        "if os.environ.get('RANK') == '1':\n"
        "    threading.Timer(6, os.kill, (os.getpid(), signal.SIGKILL)).start()\n"
    )
    (tmp_path / "sitecustomize.py").write_text(killer)
    long = words(files, train__epochs=100_000, train__patience=100_000)
    found = run(*long, "--out", tmp_path / "run", "--nproc", 2, PYTHONPATH=str(tmp_path))
    assert found.returncode == 75, found
    assert "error: rank 1 was ended by SIGKILL" in found.stderr
    assert "the same command goes on" in found.stderr
    assert "Traceback" not in found.stderr


def test_sigterm_ends_all_with_one_line(files, tmp_path):
    long = words(files, train__epochs=100_000, train__patience=100_000)
    arguments = [*long, "--out", str(tmp_path / "run"), "--nproc", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "stflow_graph_cli", *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while not list(tmp_path.glob("run/fold*/state-*")) and time.monotonic() < until:
        time.sleep(0.1)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert errors.splitlines() == ["interrupted; the same command resumes"]


@pytest.mark.slow
def test_a_part_and_ranks_are_refused(files, trained, tmp_path):
    started = start_ranks(
        2,
        ["-m", "stflow_graph_cli", "sample", str(trained), str(files.embedding("A"))]
        + ["--out", str(tmp_path), "--part", "1/2"],
    )
    for process in started:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "the ranks of torchrun share the slides already" in errors
