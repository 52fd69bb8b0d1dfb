from __future__ import annotations

import dataclasses
import json

import pytest
from command_line import refused
from imaged import PATCH_PX, PITCH_UM, write_imaged
from toy import toy_encoder

from stflow_graph.io.embeddings import open_embeddings
from stflow_graph.models.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def imaged(tmp_path, monkeypatch):
    write_imaged(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stflow_graph.encoders.registry.create_encoder", _create)
    monkeypatch.setattr("stflow_graph.encoders.create_encoder", _create, raising=False)
    return tmp_path


PAGE = "report"


def _create(name, weights=None, weights_root=None):
    return toy_encoder(name)


def test_from_images_to_predictions(imaged, cli):
    dry = cli("predict", "images/S3.svs", "--model", "run", "--out", "out", "--dry-run")
    assert (dry.code, dry.err) == (0, "")
    assert "S3: " in dry.out
    assert not (imaged / "out").exists()
    run = cli("predict", "images", "--model", "run", "--out", "out", "--genes", "G1,G0")
    assert (run.code, run.err) == (0, "")
    lines = run.out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["S0", "S1", "S2", "S3", PAGE, "next"]
    assert "out/S3.h5ad written; overlay: out/overlays/S3.png" in lines[3]
    again = cli("predict", "images/S3.svs", "--model", "run", "--out", "out", "--genes", "G1,G0")
    assert "is up to date" in again.out
    other = cli("predict", "images/S3.svs", "--model", "run", "--out", "out", "--genes", "G1")
    assert "out/S3.h5ad written, replaced a prediction with other settings; overlay" in other.out
    cli("predict", "images/S3.svs", "--model", "run", "--out", "out", "--genes", "G1,G0")
    following = lines[-1].removeprefix("next: stflow-graph ").split()
    assert cli(*following).code == 0
    assert (imaged / "out/summary/slides.csv").is_file()
    words = ["predict", "images/S3.svs", "--model", "run", "--out", "out", "--genes"]
    for genes in (["g1", "g0"], ["G1,g0,"], ["G1", "--genes", "G0"]):
        assert "is up to date" in cli(*words, *genes).out
    for genes in (["g1", "G0"], ["G1,G0"]):
        export = ["export", "out/S3.h5ad", "--to", "out/x.csv", "--overwrite", "--genes", *genes]
        assert cli(*export).code == 0
        assert (imaged / "out/x.csv").read_text().startswith("barcode,x,y,G1,G0")
    (imaged / "out/x.csv").unlink()
    following = again.out.splitlines()[-1].removeprefix("next: stflow-graph ").split()
    assert cli(*following).code == 0
    assert (imaged / "out/S3.csv").read_text().startswith("barcode,x,y,G1,G0")


def test_an_image_is_embedded_alone(imaged, cli):
    sizes = ["--patch-px", PATCH_PX, "--patch-um", 20, "--pitch-um", PITCH_UM]
    run = cli("embed", "--image", "images/S3.svs", "--encoder", "toy", "--out", "S3.h5", *sizes)
    assert (run.code, run.err) == (0, "")
    with open_embeddings("S3.h5") as source:
        assert (source.path.stem, source.encoder) == ("S3", "toy")
        assert len(source) > 100
    assert (imaged / "overlays/S3.png").is_file()
    assert cli("sample", "run", "S3.h5", "--out", "out").code == 0


BAD = {
    "model": (["images", "--model", "absent", "--out", "out"], 3, "checkpoint"),
    "genes": (
        ["images/S3.svs", "--model", "run", "--out", "out", "--genes", "ERBB2"],
        4,
        "does not have",
    ),
    "slide": (["nowhere.svs", "--model", "run", "--out", "out"], 3, "No such file"),
    "id": (["images", "--model", "run", "--out", "out", "--id", "S"], 2, "--id is of one slide"),
    "pitch": (["images", "--model", "run", "--out", "out", "--pitch-um", "0"], 2, "pitch-um"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_done_is_one_line(imaged, cli, kind):
    arguments, code, text = BAD[kind]
    run = cli("predict", *arguments)
    if code == 2:  # usage, of three lines
        assert (run.code, text in run.err) == (2, True)
    else:
        refused(run, code, text)


@pytest.mark.parametrize(
    "arguments",
    [["--image", "images/S3.svs"], ["--image", "images/S3.svs", "--out", "folder"], ["a.h5"]],
)
def test_ways_to_embed_are_not_mixed(imaged, cli, arguments):
    run = cli("embed", *arguments)
    assert run.code == 2
    assert "--image with --out FILE.h5" in run.err


def test_of_a_run_with_folds_the_model_of_all_slides_is_taken_and_said(imaged, cli):
    words = ["predict", "images/S3.svs", "--model", "run", "--out", "out"]
    assert not cli(*words).out.startswith("model:")
    checkpoint = load_checkpoint(imaged / "run/all/checkpoint")
    provenance = {**checkpoint.provenance, "fold": 0, "test_slides": ["S3"]}
    fold = dataclasses.replace(checkpoint, provenance=provenance)
    save_checkpoint(imaged / "run/fold0/checkpoint", fold)
    lines = cli(*words).out.splitlines()
    assert lines[0] == "model: that of all slides; 1 model of folds left out (--fold takes one)"
    assert "is up to date" in lines[1]
    lines = cli(*words, "--fold", 0).out.splitlines()
    assert lines[0].startswith("S3: ")
    assert ", fold 0" in lines[0]


def test_warnings_are_repeated_with_what_is_up_to_date(imaged, cli):
    table = ["barcode,pixel_x,pixel_y", *(f"b{i},{10 + 40 * (i % 8)},{690 - i}" for i in range(40))]
    (imaged / "spots.csv").write_text("\n".join(table) + "\n")
    words = ["predict", "images/S3.svs", "--model", "run", "--out", "out", "--spots", "spots.csv"]
    assert "of the spots lie on tissue" not in cli(*words).out  # it is in the log
    again = cli(*words)
    assert "\nS3: only " in again.out
    assert again.out.count("of the spots lie on tissue") == 1
    (slide,) = json.loads(cli(*words, "--json").out)["results"]
    assert slide["warnings"][0].startswith("only ")
    assert slide["report"] == "out/report.html"
