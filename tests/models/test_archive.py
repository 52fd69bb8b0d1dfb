from __future__ import annotations

import shutil
import zipfile

import pytest

from stflow_graph.config import load_config
from stflow_graph.errors import BadModel
from stflow_graph.inference.slide_model import SlideModel
from stflow_graph.models.checkpoint import find_checkpoints, load_checkpoint
from stflow_graph.stages.sample import sample
from stflow_graph.stages.train import train


@pytest.fixture
def folder(cohort, tmp_path):
    train(load_config(None, {**cohort.settings, "train.epochs": 1}), tmp_path / "run")
    return tmp_path / "run/fold0/checkpoint"


@pytest.mark.parametrize("top", [".", "checkpoint"])
def test_a_zip_of_a_checkpoint_is_one(cohort, folder, tmp_path, top):
    root = folder if top == "." else folder.parent
    archive = shutil.make_archive(str(tmp_path / "model"), "zip", root, top)
    (found,) = find_checkpoints(archive)
    assert load_checkpoint(found).genes == load_checkpoint(folder).genes
    for source, out in ((folder, "a"), (archive, "b")):
        sample(source, [cohort.embedding("A")], tmp_path / out)
    assert (tmp_path / "a/A.h5ad").read_bytes() == (tmp_path / "b/A.h5ad").read_bytes()
    assert SlideModel.from_pretrained(archive).genes == load_checkpoint(folder).genes


def test_archives_of_anything_else_are_refused(folder, tmp_path):
    path = tmp_path / "model.zip"

    def refused(message):
        with pytest.raises(BadModel, match=message) as caught:
            find_checkpoints(path)
        assert "\n" not in str(caught.value)

    path.write_text("no archive")
    refused("no zip archive")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "x")
    refused("0 files config.json")
    with zipfile.ZipFile(path, "w") as archive:
        for name in "ab":
            archive.write(folder / "config.json", f"{name}/config.json")
    refused("2 files config.json")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "config.json", "config.json")
        archive.writestr("model.safetensors", b"\0" * 2**27)
    refused("bytes in an archive of")
    whole = shutil.make_archive(str(tmp_path / "whole"), "zip", folder)
    content = (tmp_path / "whole.zip").read_bytes()
    assert whole
    path.write_bytes(content[: len(content) // 2])
    refused("zip")
    damaged = bytearray(content)
    damaged[len(damaged) // 3] ^= 255
    path.write_bytes(bytes(damaged))
    refused("content")


def test_names_that_lead_elsewhere_stay_inside(folder, tmp_path):
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
        archive.writestr("../escaped.txt", "x")
        archive.writestr("../config.json.txt", "x")
    (found,) = find_checkpoints(path)
    assert not (found.parent / "escaped.txt").exists()
    assert {file.name for file in found.iterdir()} == {file.name for file in folder.iterdir()}


def test_any_damaged_record_of_an_archive_is_refused_in_one_line(folder, tmp_path):
    shutil.make_archive(str(tmp_path / "whole"), "zip", folder)
    content = (tmp_path / "whole.zip").read_bytes()
    refusals = []
    for start in range(content.rindex(b"PK\x01\x02"), len(content) - 4):
        for value in (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4)):
            path = tmp_path / f"{start}-{value.hex()}.zip"
            path.write_bytes(content[:start] + value + content[start + 4 :])
            try:
                find_checkpoints(path)
            except BadModel as error:
                refusals.append(str(error))
            path.unlink()
    assert len(refusals) > 100
    assert all(map(str.isprintable, refusals))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_members_of_any_packing_are_refused(folder, tmp_path, method):
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    content = path.read_bytes()
    assert find_checkpoints(path)
    for i in range(5):
        other, at = tmp_path / f"{i}.zip", 60 + 10 * i
        other.write_bytes(content[:at] + bytes(30) + content[at + 30 :])
        with pytest.raises(BadModel, match="content: found damaged"):
            find_checkpoints(other)


def test_an_archive_with_a_password_is_refused(folder, tmp_path):
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "config.json", "config.json")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(content))
    with pytest.raises(BadModel, match="found encrypted, expected a zip .* without a password"):
        find_checkpoints(path)
