"""No command of the main job opens a connection."""

from __future__ import annotations

import socket

import pytest


@pytest.fixture
def attempts(monkeypatch):
    """Refuse every connection and name resolution; what was tried."""
    tried: list[object] = []

    def refuse(*arguments: object, **options: object) -> None:
        tried.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    return tried


def test_the_guard_notices_a_download(cli, tmp_path, attempts):
    done = cli("download", "--out", tmp_path / "bench", "--datasets", "IDC")
    assert done.code != 0
    assert len(done.err.splitlines()) == 1
    assert attempts


def test_the_main_job_needs_no_network(cli, tmp_path, attempts):
    root, embeddings, run = tmp_path / "ROOT", tmp_path / "EMB", tmp_path / "RUN"
    roots = ["--source-dataroot", root, "--embed-dataroot", embeddings]
    tiny = ["--epochs", 1, "--set", "train.members=1", "graph.n_neighbors=4"]
    files = embeddings / "ROOT" / "efficientnet_lite0" / "fp32"
    steps = [
        ["simulate", root, "--slides", 4, "--spots", 20],
        ["embed", *roots],
        ["split", root, "--leave-one-out", "--overwrite"],
        ["genes", root],
        ["encoders"],
        ["train", *roots, "--out", run, "--folds", 0, *tiny],
        ["sample", run, files, "--out", run / "predictions", "--n-samples", 2],
    ]
    for step in steps:
        done = cli(*step)
        assert done.code == 0, (step[0], done.err)
    predictions = sorted((run / "predictions").glob("*.h5ad"))
    steps = [
        ["eval", *predictions, "--truth", root / "adata", "--out", run / "eval"],
        ["summarise", *predictions, "--out", tmp_path / "summary", "--domains", 2],
        ["export", predictions[0], "--to", tmp_path / "p.csv"],
        ["doctor", tmp_path],
    ]
    for step in steps:
        done = cli(*step)
        assert done.code == 0, (step[0], done.err)
    assert attempts == []
