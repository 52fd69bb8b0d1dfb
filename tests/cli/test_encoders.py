"""``encoders``, and ``embed`` with names, roots and users' own encoders."""

from __future__ import annotations

import pytest
import torch
from artefacts import read_embeddings
from huggingface_hub import constants
from toy import write_images

from stflow_graph.data.splits import find_embedding
from stflow_graph.encoders import ENCODERS
from stflow_graph.encoders.torchvision_shim import import_timm


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    """Work in an empty folder, offline, with an empty hub cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def patches(tmp_path):
    (tmp_path / "root/D/splits").mkdir(parents=True)
    write_images(tmp_path / "root/D/patches/A.h5", 5)
    return tmp_path / "root/D/patches/A.h5"


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_has_every_encoder_and_fits_the_terminal(cli, tmp_path, columns):
    place = ENCODERS["uni_v1"].place(tmp_path / "weights")
    place.parent.mkdir(parents=True)
    place.touch()
    code, out, err = cli("encoders", "--weights-root", tmp_path / "weights", columns=columns)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= columns
    rows = {line.split()[0]: line for line in out.splitlines() if line.split()}
    for entry in ENCODERS.values():
        for part in (str(entry.width), f" {entry.transform.size} ", entry.licence):
            assert part in rows[entry.name]
    assert "weights root" in rows["uni_v1"]
    assert " - " in rows["uni_v2"]
    assert ("MahmoodLab/UNI2-h" in rows["uni_v2"]) == (columns == 120)
    assert "…" not in out


def test_one_encoder_is_described_in_full(cli, tmp_path):
    run = cli("encoders", "gigapath", "--weights-root", tmp_path)
    assert run.code == 0
    for part in (
        "https://huggingface.co/prov-gigapath/prov-gigapath",
        "224 px (256 bicubic, centre crop), mean 0.485 0.456 0.406",
        "not found",
        f"{tmp_path}/gigapath/pytorch_model.bin",
    ):
        assert part in run.out
    run = cli("encoders", "gigapth")
    assert run.code == 4
    assert run.error.startswith("error: unknown encoder 'gigapth' (did you mean gigapath")


def test_an_adapter_names_its_base(cli):
    code, out, _ = cli("encoders", "seal_univ2")
    assert code == 0
    assert "seal_uni_v2 (also seal_univ2)" in out
    assert "uni_v2, whose weights are needed too" in out


def test_missing_weights_are_one_line_with_the_page_and_the_place(cli, patches, tmp_path):
    (tmp_path / "weights").mkdir()
    for name in ("uni_v1", "phikon", "ciga", "ctranspath"):
        entry = ENCODERS[name]
        step = ["embed", patches, "--out", "e", "--encoder", name, "--weights-root", "weights"]
        run = cli(*step)
        assert run.code == 4
        assert run.error.startswith(f"error: encoder '{name}': no weights")
        for part in (entry.page, f"weights/{name}/{entry.files[0]}", "--weights FILE"):
            assert part in run.error
    assert not (tmp_path / "e").exists()


def test_weights_of_a_root_make_files_with_the_encoders_name(cli, patches, tmp_path):
    model = import_timm().create_model("resnet18", num_classes=0)
    state = {f"model.resnet.{key}": value for key, value in model.state_dict().items()}
    (tmp_path / "weights/ciga").mkdir(parents=True)
    torch.save({"state_dict": state}, tmp_path / "weights/ciga/tenpercent_resnet18.ckpt")
    roots = ["--source-dataroot", "root", "--embed-dataroot", "emb", "--weights-root", "weights"]
    run = cli("embed", *roots, "--encoder", "ciga", "--workers", 1, "--batch-size", 2)
    assert run.code == 0, run.err
    assert "5 patches in " in run.out
    assert "patches/s, ciga on cpu" in run.out
    file = read_embeddings(find_embedding("emb", "D", "ciga", "A"))
    assert (file.attrs["encoder"], file.x.shape) == ("ciga", (5, 512))
    again = cli("embed", *roots, "--encoder", "ciga").out
    assert "is up to date" in again
    assert "patches/s" not in again


def test_an_encoder_of_ones_own_needs_a_file_alone(cli, patches, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def mean():\n"
        "    pool = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())\n"
        "    return pool, lambda x: x.permute(0, 3, 1, 2) / 255, 3\n"
    )
    run = cli("embed", patches, "--out", "e.h5", "--encoder", "mine:mean")
    assert run.code == 0, run.err
    file = read_embeddings(tmp_path / "e.h5")
    assert (file.attrs["encoder"], file.x.shape) == ("mean", (5, 3))
    run = cli("embed", patches, "--out", "f.h5", "--encoder", "mine:median")
    assert (run.code, "mine has mean" in run.error) == (4, True)


def test_stflows_folders_of_embeddings_are_found_under_the_canonical_name(tmp_path):
    path = tmp_path / "D/uni_v1_official/fp32/A.h5"
    path.parent.mkdir(parents=True)
    path.touch()
    for name in ("uni_v1", "uni_v1_official", "uni"):
        assert find_embedding(tmp_path, "D", name, "A") == path
