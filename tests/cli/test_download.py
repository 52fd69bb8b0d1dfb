from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hub_server import FakeHub, serve

REPO = "models/owner/secret"
MAIN = "from stflow_graph_cli.main import main; main()"


@pytest.fixture
def server():
    files = {"config.json": b"{}", "weights.bin": bytes(500)}
    with serve(FakeHub({REPO: files}, refuse={REPO: (403, "GatedRepo")})) as hub:
        yield hub


def command(server, out, *more, **environment):
    """Run the command line as a user does, who has set HF_ENDPOINT."""
    words = ["download", "--repo", "owner/secret", "--repo-type", "model", "--out", out, *more]
    home = {"HF_HOME": str(out.parent / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, words)],
        env={**os.environ, "HF_ENDPOINT": server.url, **home, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_refusal_is_one_line_and_a_token_opens(server, tmp_path):
    done = command(server, tmp_path / "out", HF_TOKEN="")
    assert (done.returncode, done.stdout) == (4, "")
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {server.url}/owner/secret: no access")
    assert not (tmp_path / "out/weights.bin").exists()
    (tmp_path / "token").write_text("hf_good\n")
    again = command(server, tmp_path / "out", "--token-file", tmp_path / "token")
    assert again.returncode == 0, again.stderr
    assert "owner/secret at c0ffee000000: 2 files downloaded, 0.00 GB in total" in again.stdout
    assert (tmp_path / "out/weights.bin").read_bytes() == bytes(500)
    third = command(server, tmp_path / "out", "--include", "weights.*", HF_TOKEN="hf_good")
    assert "0 files downloaded, 1 up to date" in third.stdout


def test_a_hub_that_is_gone_is_one_line_and_exit_code_74(server, tmp_path):
    server.gone = True
    done = command(server, tmp_path / "out", HF_TOKEN="hf_good")
    assert done.returncode == 74
    (line,) = done.stderr.strip().splitlines()
    assert "the hub answered 503" in line


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
