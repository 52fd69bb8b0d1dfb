"""No command of the main job opens a connection."""

from __future__ import annotations

import socket

import pytest
from huggingface_hub import constants
from toy import write_images


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


@pytest.mark.parametrize("encoder", ["phikon", "resnet18"])
def test_weights_that_no_network_brings_are_74_as_a_download_is(
    cli, tmp_path, attempts, monkeypatch, encoder
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    write_images(tmp_path / "p.h5")
    commands = [
        ["embed", tmp_path / "p.h5", "--out", tmp_path / "e.h5", "--encoder", encoder],
        ["download", "--encoder", "phikon", "--weights-root", tmp_path / "weights"],
    ]
    for command in commands:
        done = cli(*command)
        assert done.code == 74, done
        assert done.err.splitlines()[-1].startswith("error: ")
    assert attempts
    assert not (tmp_path / "e.h5").exists()


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
