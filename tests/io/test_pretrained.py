from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import FakeHub, serve
from huggingface_hub import constants

from stflow_graph import GraphDenoiser, SlideModel
from stflow_graph.errors import BadConfig, BadInput, StorageFailed
from stflow_graph.io.pretrained import fetch, push

SMALL = {"hidden_channels": 8, "n_heads": 2, "n_layers": 1}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine with one network, and a client whose cache is empty."""
    GraphDenoiser(6, 5, **SMALL).save_pretrained(tmp_path / "on_hub")
    (tmp_path / "on_hub" / "pytorch_model.bin").write_bytes(b"pickle")
    files = {file.name: file.read_bytes() for file in (tmp_path / "on_hub").iterdir()}
    with serve(FakeHub({"models/me/model": files}, large=10**9)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        download = partial(huggingface_hub.snapshot_download, endpoint=server.url)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        yield server


def test_a_repository_is_fetched_once_and_then_read_from_the_cache(hub, tmp_path):
    cache = tmp_path / "cache"
    first = GraphDenoiser.from_pretrained("me/model", cache_dir=cache)
    assert first.n_genes == 5
    assert not hub.asked("pytorch_model.bin")
    hub.requests.clear()
    hub.status = 500
    GraphDenoiser.from_pretrained("me/model", cache_dir=cache)
    GraphDenoiser.from_pretrained("me/model", cache_dir=cache, local_files_only=True)
    assert not hub.requests
    hub.status = None
    fetch("me/model", cache_dir=cache, force_download=True)
    assert hub.requests


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
    hub.status = None
    del hub.repos["models/me/model"]["config.json"]
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
    (_, created), (_, sent) = api.calls
    assert (created["token"], created["private"], created["exist_ok"]) == ("secret", True, True)
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
    with pytest.raises(BadConfig, match=r"GraphDenoiser\.from_pretrained loads a bare network"):
        SlideModel.from_pretrained(tmp_path / "model")
