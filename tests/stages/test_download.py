from __future__ import annotations

import hashlib
import json
import shutil

import huggingface_hub.file_download
import numpy as np
import pytest
from hub_server import COMMIT, FakeHub, serve

from stflow_graph.errors import BadConfig, BadInput, StorageFailed
from stflow_graph.io.hub import Hub
from stflow_graph.stages.download import Selection, download

BENCH = "datasets/MahmoodLab/hest-bench"
CHUNK = 1000


def content(n, seed=0):
    return np.random.default_rng(seed).bytes(n)


@pytest.fixture
def server(monkeypatch):
    # the client hands on 10 MB at a time and waits a second before it tries again
    monkeypatch.setattr(huggingface_hub.file_download.constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    files = {
        "README.md": b"about",
        "IDC/splits/train_0.csv": b"sample_id\n",
        "IDC/patches/A.h5": content(5 * CHUNK),
        "IDC/adata/A.h5ad": content(2 * CHUNK, 1),
        "PRAD/patches/B.h5": content(300, 2),
        "fm_v1/ctranspath/CHIEF_CTransPath.pth": content(300, 3),
    }
    weights = {"config.json": b"{}", "pytorch_model.bin": content(4 * CHUNK, 4)}
    with serve(FakeHub({BENCH: files, "models/MahmoodLab/UNI": weights})) as hub:
        yield hub


def run(server, out, selection=None, token="hf_other", **options):
    selection = selection or Selection.bench(["IDC"])
    return download(selection, out, hub=Hub(server.url, token), **options)


def files_of(folder):
    """Return the paths of all files but the lock."""
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != ".download.lock")
    return sorted(str(p.relative_to(folder)) for p in found)


def test_a_data_set_is_fetched_in_its_layout_with_a_manifest(server, tmp_path):
    calls = []
    done = run(server, tmp_path, progress=lambda *call: calls.append(call))
    names = ["IDC/adata/A.h5ad", "IDC/patches/A.h5", "IDC/splits/train_0.csv"]
    assert files_of(tmp_path) == [*names, "download.json"]
    for name in names:
        assert (tmp_path / name).read_bytes() == server.repos[BENCH][name]
    manifest = json.loads((tmp_path / "download.json").read_text())["files"]
    assert set(manifest) == set(names)
    for name, entry in manifest.items():
        assert entry["sha256"] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert (entry["commit"], entry["repo"]) == (COMMIT, "MahmoodLab/hest-bench")
    assert (done.commit, done.kept) == (COMMIT, [])
    there = [n for _, n, _ in calls]
    assert there == sorted(there)
    assert calls[-1][1:] == (done.n_bytes, done.n_bytes)


def test_all_of_the_bench_leaves_the_weights_out(server, tmp_path):
    run(server, tmp_path, Selection.bench())
    assert (tmp_path / "PRAD/patches/B.h5").exists()
    assert not (tmp_path / "fm_v1").exists()


def test_complete_files_are_checked_and_not_fetched_again(server, tmp_path):
    run(server, tmp_path)
    server.requests.clear()
    again = run(server, tmp_path)
    assert (again.fetched, len(again.kept)) == ([], 3)
    assert not server.asked("resolve")
    broken = tmp_path / "IDC/patches/A.h5"
    broken.write_bytes(b"x" + broken.read_bytes()[1:])
    with pytest.raises(BadInput, match=r"A\.h5: file: found another content.*--overwrite"):
        run(server, tmp_path)
    assert run(server, tmp_path, overwrite=True).fetched == [broken]
    assert broken.read_bytes() == server.repos[BENCH]["IDC/patches/A.h5"]


def test_a_newer_version_replaces_what_was_fetched_before(server, tmp_path):
    run(server, tmp_path)
    server.repos[BENCH]["IDC/patches/A.h5"] = content(700, 9)
    run(server, tmp_path)
    assert (tmp_path / "IDC/patches/A.h5").read_bytes() == content(700, 9)


@pytest.mark.parametrize("came", [0, CHUNK, 3 * CHUNK + 10])
def test_a_transfer_that_broke_off_goes_on_where_it_was(server, tmp_path, came):
    selection = Selection.repository("MahmoodLab/hest-bench", "dataset", ["IDC/patches/*"])
    server.breaks_after = came
    with pytest.raises(StorageFailed, match="answered 503"):
        run(server, tmp_path, selection)
    (part,) = files_of(tmp_path)
    assert part.startswith("IDC/patches/.A.h5.")
    kept = (tmp_path / part).stat().st_size
    assert kept == came // CHUNK * CHUNK
    server.gone = False
    server.requests.clear()
    run(server, tmp_path, selection)
    assert set(server.asked("resolve")) == {f"bytes={kept}-" if kept else None}
    assert files_of(tmp_path) == ["IDC/patches/A.h5", "download.json"]
    assert (tmp_path / "IDC/patches/A.h5").read_bytes() == content(5 * CHUNK)


def test_a_connection_that_breaks_once_is_taken_up_at_once(server, tmp_path, monkeypatch, capfd):
    server.breaks_after = 3 * CHUNK
    monkeypatch.setattr(
        huggingface_hub.file_download.time, "sleep", lambda _: setattr(server, "gone", False)
    )
    run(server, tmp_path)
    assert f"bytes={3 * CHUNK}-" in server.asked("patches/A.h5")
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "IDC/patches/A.h5").read_bytes() == content(5 * CHUNK)


def test_a_corrupt_transfer_is_discarded_and_named(server, tmp_path):
    server.corrupt = True
    with pytest.raises(StorageFailed, match="not what the hub lists.*run the command again"):
        run(server, tmp_path)
    assert files_of(tmp_path) == []
    server.corrupt = False
    run(server, tmp_path)
    assert (tmp_path / "IDC/patches/A.h5").exists()


def test_parts_of_another_content_are_not_continued(server, tmp_path):
    server.breaks_after = 2 * CHUNK
    with pytest.raises(StorageFailed):
        run(server, tmp_path, Selection.weights("uni_v1"))
    server.gone = False
    server.repos["models/MahmoodLab/UNI"]["pytorch_model.bin"] = content(3 * CHUNK, 7)
    run(server, tmp_path, Selection.weights("uni_v1"))
    assert (tmp_path / "uni_v1/pytorch_model.bin").read_bytes() == content(3 * CHUNK, 7)
    assert files_of(tmp_path) == ["download.json", "uni_v1/pytorch_model.bin"]


@pytest.mark.parametrize(("status", "code"), [(403, "GatedRepo"), (401, "GatedRepo"), (403, "")])
def test_a_licence_to_accept_is_one_line_with_the_page(server, tmp_path, status, code):
    server.refuse["models/MahmoodLab/UNI"] = (status, code)
    with pytest.raises(BadConfig) as caught:
        run(server, tmp_path, Selection.weights("uni"))
    message = str(caught.value)
    assert message.startswith(f"{server.url}/MahmoodLab/UNI: no access")
    assert f"HTTP {status}" in message
    assert "accept the licence on that page" in message
    assert "hf_other" not in message
    assert "\n" not in message
    assert "uni_v1/pytorch_model.bin" not in files_of(tmp_path)
    run(server, tmp_path, Selection.weights("uni"), token="hf_good")
    assert files_of(tmp_path) == ["download.json", "uni_v1/pytorch_model.bin"]


def test_what_is_not_there_is_named(server, tmp_path):
    with pytest.raises(BadConfig, match="no such repository"):
        run(server, tmp_path, Selection.repository("nobody/nothing", "dataset"))
    with pytest.raises(BadConfig, match="no such revision"):
        run(server, tmp_path, Selection.bench(["IDC"], "v9"))
    with pytest.raises(BadConfig, match=r"no file COAD/\*; it has IDC, PRAD, README.md"):
        run(server, tmp_path, Selection.bench(["IDC", "COAD"]))
    with pytest.raises(BadConfig, match="expected owner/name"):
        run(server, tmp_path, Selection.repository("a/b/c", "dataset"))
    with pytest.raises(BadConfig, match="expected dataset or model"):
        Selection.repository("a/b", "space")
    with pytest.raises(BadConfig, match="unknown encoder 'nonesuch'.*known: .*uni_v1"):
        Selection.weights("nonesuch")
    assert files_of(tmp_path) == []


def test_weights_take_the_first_file_that_is_there(server, tmp_path):
    files = server.repos["models/MahmoodLab/UNI"]
    files["model.safetensors"] = files.pop("pytorch_model.bin")
    run(server, tmp_path, Selection.weights("uni_v1_official"))
    assert files_of(tmp_path) == ["download.json", "uni_v1/model.safetensors"]
    run(server, tmp_path, Selection.weights("ctranspath"))
    assert (tmp_path / "ctranspath/CHIEF_CTransPath.pth").read_bytes() == content(300, 3)


def test_too_little_disk_is_said_before_anything_is_fetched(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=6 * CHUNK)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageFailed, match=r"0\.00 GB are needed and 0\.00 GB are free"):
        run(server, tmp_path)
    assert not server.asked("resolve")
    # what has come already needs no room
    selection = Selection.repository("MahmoodLab/hest-bench", "dataset", ["IDC/patches/*"])
    run(server, tmp_path, selection)
    run(server, tmp_path)


def test_a_disk_that_fills_up_is_one_line_and_the_part_is_kept(server, tmp_path, monkeypatch):
    import stflow_graph.io.hub as io_hub

    write = io_hub._Counted.write

    def full(self, chunk):
        if self.tell() >= 2 * CHUNK:
            raise OSError(28, "No space left on device")
        return write(self, chunk)

    monkeypatch.setattr(io_hub._Counted, "write", full)
    with pytest.raises(StorageFailed, match="No space left"):
        run(server, tmp_path, Selection.weights("uni"))
    (part,) = files_of(tmp_path)
    assert (tmp_path / part).stat().st_size == 2 * CHUNK


def test_no_network_is_one_line(tmp_path):
    with pytest.raises(StorageFailed, match="cannot be reached") as caught:
        download(Selection.bench(["IDC"]), tmp_path, hub=Hub("http://127.0.0.1:9"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil", "a//b", "a\\b", "a\nb"])
def test_names_that_leave_the_folder_are_refused(server, tmp_path, path):
    server.repos[BENCH][path] = b"x"
    with pytest.raises(BadInput, match="a path inside the repository"):
        run(server, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_are_not_followed_out_of_the_folder(server, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/IDC").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="a link out of the folder"):
        run(server, tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_second_download_into_a_folder_is_refused(server, tmp_path):
    def meanwhile(*call):
        with pytest.raises(StorageFailed, match="another download"):
            run(server, tmp_path)

    run(server, tmp_path, progress=meanwhile)
    assert (tmp_path / "IDC/patches/A.h5").exists()
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="found a file, expected a folder"):
        run(server, tmp_path / "file")
