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
