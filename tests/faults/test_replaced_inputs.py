"""An input that is replaced while a command reads it: one line, and nothing is written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from foreign import tissue_on_glass, write_svs
from PIL import Image
from predicted import predicted
from toy import Cohort, toy_encoder, write_images, write_slide

from stflow_graph.config import load_config
from stflow_graph.data import load
from stflow_graph.errors import BadInput
from stflow_graph.inference.predictor import Predictor
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.io import h5ad
from stflow_graph.platforms.source import SlideSource, tables_source
from stflow_graph.preparation.embedding import embed_file
from stflow_graph.preparation.engine import EmbedSettings
from stflow_graph.stages import train as train_stage
from stflow_graph.stages.evaluate import evaluate
from stflow_graph.stages.prepare import prepare
from stflow_graph.stages.sample import sample
from stflow_graph.stages.tissue_grid import prepare_grid
from stflow_graph.stages.train import train

CHANGED = "file: found another one than at first, expected one that stays while it is read"


def exchange(file: Path, other: Path) -> None:
    os.replace(other, file)


@pytest.mark.parametrize("n", [7, 5], ids=["same length", "shorter"])
@pytest.mark.parametrize("workers", [0, 1])
def test_patches(tmp_path, workers, n):
    source, other = tmp_path / "A.h5", tmp_path / "other.h5"
    write_images(source)
    write_images(other, n=n, seed=1)

    def progress(slide: str, done: int, total: int) -> None:
        if other.exists():
            exchange(source, other)

    settings = EmbedSettings(batch_size=1, workers=workers)
    with pytest.raises(BadInput, match=f"A.h5: {CHANGED}"):
        embed_file(source, tmp_path / "out/A.h5", toy_encoder(), settings, progress=progress)
    assert not list((tmp_path / "out").iterdir())


def write_tables(folder: Path) -> SlideSource:
    """Write a raw slide of four spots."""
    image, spots, counts = (folder / name for name in ("A.png", "A_spots.csv", "A_counts.csv"))
    Image.fromarray(np.full((100, 100, 3), 200, np.uint8)).save(image)
    places = {"s1": "30,30", "s2": "30,70", "s3": "70,30", "s4": "70,70"}
    spots.write_text("barcode,x,y\n" + "".join(f"{k},{v}\n" for k, v in places.items()))
    counts.write_text(",g1,g2\n" + "".join(f"{k},3,5\n" for k in places))
    return tables_source("A", image, spots, counts, um_per_px=1.0)


def settings_of(cohort: Cohort) -> dict[str, object]:
    tiny = {"denoiser.hidden_channels": 8, "train.regions_per_slide": 1, "train.epochs": 1}
    return {**cohort.settings, **tiny, "train.members": 1}


def test_embeddings_and_checkpoint_of_sample(cohort: Cohort, tmp_path, monkeypatch):
    train(load_config(None, settings_of(cohort)), tmp_path / "run")
    file, other, blocks = cohort.embedding("A"), tmp_path / "other.h5", Predictor.blocks
    write_slide(other, None, 36, seed=9)

    def replacing(self, *arguments):
        for block in blocks(self, *arguments):
            yield block
            if other.exists():
                exchange(file, other)

    monkeypatch.setattr(Predictor, "blocks", replacing)
    with pytest.raises(BadInput, match=f"A.h5: {CHANGED}"):
        sample(tmp_path / "run", [file], tmp_path / "out", SampleSettings())
    assert not list((tmp_path / "out").iterdir())
    sample(tmp_path / "run", [file], tmp_path / "out", SampleSettings())
    assert (tmp_path / "out/A.h5ad").exists()


@pytest.mark.parametrize("kind", ["embeddings", "expression"])
def test_slides_of_train(cohort: Cohort, tmp_path, monkeypatch, kind):
    other, load_sample = tmp_path / "other", load.load_sample
    write_slide(*((other, None) if kind == "embeddings" else (tmp_path / "e", other)), 36, seed=9)
    file = cohort.embedding("B") if kind == "embeddings" else cohort.expression("B")

    def replacing(*arguments):  # after its hash was taken
        if other.exists():
            exchange(file, other)
        return load_sample(*arguments)

    monkeypatch.setattr(train_stage, "load_sample", replacing)
    with pytest.raises(BadInput, match=rf"B.h5(ad)?: {CHANGED}"):
        train(load_config(None, settings_of(cohort)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("role", ["image", "counts", "spots"])
def test_raw_files_of_prepare(tmp_path, role):
    source, out = write_tables(tmp_path), tmp_path / "out"
    file, other = source.inputs[role], tmp_path / "other"
    other.write_bytes(file.read_bytes())

    def progress(slide: str, done: int, total: int) -> None:
        exchange(file, other)

    with pytest.raises(BadInput, match=f"{file.name}: {CHANGED}"):
        prepare(source, out, patch_px=16, patch_um=16.0, progress=progress)
    assert not [path for path in out.rglob("*") if path.is_file()]
    prepare(source, out, patch_px=16, patch_um=16.0)


def test_the_image_of_a_grid(tmp_path):
    image = write_svs(tmp_path / "S1.svs", tissue_on_glass(), "0.5")
    other, sizes = tmp_path / "other", {"patch_px": 16, "patch_um": 20.0}
    other.write_bytes(image.read_bytes())

    def progress(slide: str, done: int, total: int) -> None:
        exchange(image, other)

    with pytest.raises(BadInput, match=f"S1.svs: {CHANGED}"):
        prepare_grid(image, tmp_path / "out", name="S1", **sizes, progress=progress)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize("kind", ["truth", "prediction"])
def test_files_of_eval(cohort: Cohort, tmp_path, monkeypatch, kind):
    made = tmp_path / "predictions/A.h5ad"
    predicted(cohort, "A").write(made)
    file = made if kind == "prediction" else cohort.expression("A")
    other, read = tmp_path / "other", h5ad._read_h5ad
    other.write_bytes(file.read_bytes())

    def replacing(path):
        adata = read(path)
        if Path(path) == file and other.exists():
            exchange(file, other)
        return adata

    monkeypatch.setattr(h5ad, "_read_h5ad", replacing)
    with pytest.raises(BadInput, match=f"A.h5ad: {CHANGED}"):
        evaluate([tmp_path / "predictions"], cohort.root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_states_and_results_that_were_changed(cohort: Cohort, tmp_path):
    config, fold = load_config(None, settings_of(cohort)), tmp_path / "run/fold0"
    train(config, tmp_path / "run")
    fixes = {
        "result.json": "remove it to finish this fold again",
        "provenance.json": "remove this fold's folder to train it anew",
    }
    for name, fix in fixes.items():
        text = (fold / name).read_text()
        content = json.loads(text)
        content["protocol"] += "x"
        (fold / name).write_text(json.dumps(content))
        with pytest.raises(BadInput, match=rf"fold0/{name}: content_sha256: found .*Fix: {fix}"):
            train(config, tmp_path / "run")
        (fold / name).write_text(text)
    run = json.loads((tmp_path / "run/run.json").read_text())
    run["config"]["train"]["lr"] = 1
    (tmp_path / "run/run.json").write_text(json.dumps(run))
    with pytest.raises(BadInput, match=r"run.json: content_sha256: .*--overwrite to replace"):
        train(config, tmp_path / "run")
    train(config, tmp_path / "run", overwrite=True)


def test_a_result_is_made_again_from_the_state(cohort: Cohort, tmp_path):
    config = load_config(None, settings_of(cohort))
    (first,) = train(config, tmp_path / "run")
    (tmp_path / "run/fold0/result.json").unlink()
    (again,) = train(config, tmp_path / "run")
    assert not again.up_to_date
    assert (first.pearson == again.pearson).all()
