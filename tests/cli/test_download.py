from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import pytest
from hub_server import FakeHub, serve

from stflow_graph.io import hub as client

REPO = "models/owner/secret"
MAIN = "from stflow_graph_cli.main import main; main()"


@pytest.fixture
def server():
    files = {"config.json": b"{}", "weights.bin": bytes(500)}
    with serve(FakeHub({REPO: files}, refuse={REPO: (403, "GatedRepo")})) as hub:
        yield hub


@pytest.fixture
def download(cli, server, monkeypatch, tmp_path):
    """Download the repository from the server, with a token unless one is given."""
    monkeypatch.setattr(client, "Hub", partial(client.Hub, server.url))
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    step = ["download", "--repo", "owner/secret", "--repo-type", "model", "--out", tmp_path / "out"]
    return partial(cli, *step)


def test_the_environment_sets_the_hub_and_a_refusal_is_one_line(server, tmp_path):
    words = ["download", "--repo", "owner/secret", "--repo-type", "model", "--out", "out"]
    home = {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *words],
        cwd=tmp_path,
        env={**os.environ, **home, "HF_ENDPOINT": server.url, "HF_TOKEN": ""},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (4, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {server.url}/owner/secret: no access")
    assert not (tmp_path / "out/weights.bin").exists()


def test_a_token_opens_and_complete_files_stay(download, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    assert download().code == 4
    (tmp_path / "token").write_text("hf_good\n")
    run = download("--token-file", tmp_path / "token")
    assert run.code == 0, run.err
    assert "owner/secret at c0ffee000000: 2 files downloaded, 0.00 GB in total" in run.out
    assert (tmp_path / "out/weights.bin").read_bytes() == bytes(500)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert "0 files downloaded, 1 up to date" in download("--include", "weights.*").out


def test_a_hub_that_is_gone_is_one_line_and_exit_code_74(download, server):
    server.gone = True
    run = download()
    assert (run.code, "the hub answered 503" in run.error) == (74, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of --datasets, --encoder and --repo"),
        (["--encoder", "uni_v1", "--repo", "a/b"], "give one of"),
        (["--encoder", "uni_v1", "--out", "here"], "--weights-root is needed"),
        (["--datasets", "IDC"], "--out is needed"),
    ],
)
def test_a_source_and_a_folder_are_needed(cli, words, message):
    run = cli("download", *words)
    assert (run.code, message in run.err) == (2, True)
