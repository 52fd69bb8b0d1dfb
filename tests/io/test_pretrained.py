from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from stflow_graph import GraphDenoiser, SlideModel
from stflow_graph.errors import BadConfig, BadInput, StorageFailed
from stflow_graph.io.pretrained import fetch, push

SMALL = {"hidden_channels": 8, "edge_channels": 4, "n_heads": 2, "n_layers": 1}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's API that fetching a repository needs."""

    folder = None
    status = 200
    asked: list[str] = []

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.asked.append(self.path)
        body, headers = b"{}", {}
        if self.status == 200:
            body, headers = self._answer()
        self.send_response(self.status)
        if self.status in (401, 404):
            self.send_header("X-Error-Code", "RepoNotFound")
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _answer(self):
        files = sorted(self.folder.iterdir())
        if "/tree/" in self.path:
            entries = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f"{i:040x}"}
                for i, f in enumerate(files)
            ]
            return json.dumps(entries).encode(), {"Content-Type": "application/json"}
        if self.path.startswith("/api/models/"):
            siblings = [{"rfilename": file.name} for file in files]
            answer = {"id": "me/model", "sha": COMMIT, "siblings": siblings}
            return json.dumps(answer).encode(), {"Content-Type": "application/json"}
        file = self.folder / self.path.rsplit("/", 1)[1].split("?")[0]
        headers = {"ETag": f'"{files.index(file):040x}"', "X-Repo-Commit": COMMIT}
        return file.read_bytes(), headers


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine with one network, and a client whose cache is empty."""
    GraphDenoiser(6, 5, **SMALL).save_pretrained(tmp_path / "on_hub")
    (tmp_path / "on_hub" / "pytorch_model.bin").write_bytes(b"pickle")
    handler = type("Handler", (_Hub,), {"folder": tmp_path / "on_hub", "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    real = huggingface_hub.snapshot_download

    def download(*arguments, **options):
        return real(*arguments, endpoint=endpoint, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    yield handler
    server.shutdown()
    server.server_close()


def test_a_repository_is_fetched_once_and_then_read_from_the_cache(hub, tmp_path):
    cache = tmp_path / "cache"
    first = GraphDenoiser.from_pretrained("me/model", cache_dir=cache)
    assert first.n_genes == 5
    assert not any("pytorch_model.bin" in path for path in hub.asked if "resolve" in path)
    hub.asked.clear()
    hub.status = 500
    GraphDenoiser.from_pretrained("me/model", cache_dir=cache)
    GraphDenoiser.from_pretrained("me/model", cache_dir=cache, local_files_only=True)
    assert not hub.asked
    hub.status = 200
    fetch("me/model", cache_dir=cache, force_download=True)
    assert hub.asked


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_part_in_the_cache_is_completed(hub, tmp_path, missing):
    cache = tmp_path / "cache"
    folder = fetch("me/model", cache_dir=cache)
    (folder / missing).unlink()
    assert (fetch("me/model", cache_dir=cache) / missing).is_file()


def test_what_the_hub_refuses_is_one_line(hub, tmp_path):
    for status, message in [
        (401, r"me/model: no access, or no such repository \(HTTP 401\).*hf auth login"),
        (403, r"HTTP 403|no answer"),
        (500, r"answered 500|no answer"),
    ]:
        hub.status = status
        with pytest.raises((BadConfig, StorageFailed), match=message) as caught:
            fetch("me/model", cache_dir=tmp_path / "cache")
        assert "\n" not in str(caught.value)
    hub.status = 200
    (hub.folder / "config.json").unlink()
    with pytest.raises(BadInput, match=r"hub: found no config.json.*push_to_hub"):
        fetch("me/model", cache_dir=tmp_path / "cache")


def test_without_a_network_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StorageFailed, match="nothing in the cache.*a folder on this machine"):
        fetch("me/model", cache_dir=tmp_path)
    with pytest.raises(BadInput, match="leave out local_files_only"):
        fetch("me/model", cache_dir=tmp_path, local_files_only=True)


def test_what_is_no_name_never_asks_the_network(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    (tmp_path / "file").write_text("x")
    for name in ("model", "a/b/c", "../model", "/etc/model", "a/..", str(tmp_path / "file")):
        with pytest.raises(BadInput, match="owner/name of the hub"):
            fetch(name)


class _Api:
    """Records what would be sent."""

    calls: list[tuple[str, dict]] = []
    fails: Exception | None = None

    def __init__(self, token=None):
        self.token = token

    def create_repo(self, repo_id, **options):
        if self.fails:
            raise self.fails
        self.calls.append((repo_id, {"token": self.token, **options}))

    def upload_folder(self, *, folder_path, **options):
        files = {file.name: file.read_bytes() for file in folder_path.iterdir()}
        self.calls.append((options["repo_id"], {"files": files, **options}))
        return type("Commit", (), {"commit_url": f"https://hub/{options['repo_id']}/commit/1"})


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(_Api, "calls", [])
    monkeypatch.setattr(_Api, "fails", None)
    monkeypatch.setattr(huggingface_hub, "HfApi", _Api)
    return _Api


def test_what_is_pushed_is_what_is_saved(api, tmp_path):
    network = GraphDenoiser(6, 5, **SMALL)
    url = network.push_to_hub("me/model", token="secret", private=True, commit_message="First")
    assert url == "https://hub/me/model/commit/1"
    (_, made), (_, sent) = api.calls
    assert (made["token"], made["private"], made["exist_ok"]) == ("secret", True, True)
    assert sent["commit_message"] == "First"
    network.save_pretrained(tmp_path / "model")
    saved = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    assert sent["files"] == saved


def test_pushing_to_what_is_no_repository_is_refused(api):
    with pytest.raises(BadInput, match="owner/name"):
        push(Path.mkdir, "model")
    api.fails = ConnectionError("no route\nto host")
    with pytest.raises(StorageFailed, match="no route to host"):
        push(Path.mkdir, "me/model")
    api.fails = ZeroDivisionError("ours")
    with pytest.raises(ZeroDivisionError):
        push(Path.mkdir, "me/model")


def test_a_checkpoint_is_not_taken_for_a_network_or_the_other_way(tmp_path):
    GraphDenoiser(6, 5, **SMALL).save_pretrained(tmp_path / "model")
    with pytest.raises(BadConfig, match="loads a bare network"):
        SlideModel.from_pretrained(tmp_path / "model")
