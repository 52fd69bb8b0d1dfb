"""Every option that names an input file refuses what is not a file, without waiting for it."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

INPUTS = {
    "config": ["train", "--out", "run", "--config", "{fifo}"],
    "gene list": ["train", *"--out run --source-dataroot {root} --embed-dataroot {emb}".split()]
    + ["--encoder", "toy", "--gene-list", "{fifo}"],
    "panel": ["genes", "{root}", "--panel", "{fifo}"],
    "patients": ["split", "{root}", "--k", "2", "--table", "{fifo}"],
    "patches": ["embed", "{fifo}", "--out", "e"],
    "weights": ["embed", "{fifo}", "--encoder", "uni", "--weights", "{fifo}", "--out", "e"],
    "counts": ["prepare", "--image", "{fifo}", "--spots", "{fifo}", "--counts", "{fifo}"]
    + ["--id", "A", "--out", "o"],
    "image": ["prepare", "--image", "{fifo}", "--grid", "--id", "A", "--out", "o"],
    "prediction": ["eval", "{fifo}", "--truth", "{root}", "--out", "o"],
    "prediction, summarised": ["summarise", "{fifo}", "--out", "o"],
    "gene sets": ["summarise", "p.h5ad", "--gene-sets", "{fifo}", "--out", "o"],
    "patients of predictions": ["summarise", "p.h5ad", "--patients", "{fifo}", "--out", "o"],
    "truth": ["export", "{fifo}", "--to", "o.csv"],
    "public weights": ["convert", "{fifo}", "o"],
    "token": ["download", "--datasets", "IDC", "--out", "o", "--token-file", "{fifo}"],
}


@pytest.mark.parametrize("name", INPUTS)
def test_a_fifo_is_no_input(cli, cohort, tmp_path, monkeypatch, name):
    def too_long(signum: int, frame: object) -> None:
        raise AssertionError("the command waits for the FIFO")

    monkeypatch.chdir(tmp_path)
    fifo = tmp_path / "A.h5"
    os.mkfifo(fifo)
    names = {"fifo": fifo, "root": cohort.root, "emb": cohort.embeddings}
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(30)
    try:
        run = cli(*(word.format_map(names) for word in INPUTS[name]))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert (run.code, "file: found a FIFO" in run.error) == (3, True), run
    assert not [path for path in ("run", "o", "o.csv", "e") if (tmp_path / path).exists()]


def test_names_of_any_language_are_predicted_and_failures_have_a_line_each(cli, cohort, tmp_path):
    settings = [["--set", f"{key}={value}"] for key, value in cohort.settings.items()]
    assert cli("train", "--out", tmp_path / "run", *sum(settings, [])).code == 0
    folder = tmp_path / "features"
    folder.mkdir()
    good = ("é", "切片 3", "S1 (left)", "S1,2", "a[b]")
    for name in good:
        shutil.copy(cohort.embedding("A"), folder / f"{name}.h5")
    for name in ("bad 1", "bad 2"):
        (folder / f"{name}.h5").write_bytes(b"no")
    run = cli("sample", tmp_path / "run", folder, "--out", tmp_path / "out")
    assert run.code == 5
    head, *lines = run.err.splitlines()
    assert head == "error: 2 of 7 slides failed:"
    assert [line.split(":")[0] for line in lines] == ["  bad 1", "  bad 2"]
    assert {path.stem for path in (tmp_path / "out").iterdir()} == set(good)
    files = [tmp_path / "out/S1,2.h5ad", "--truth", cohort.expression("A")]
    scores = cli("eval", *files, "--out", tmp_path / "scores")
    assert scores.code == 0
