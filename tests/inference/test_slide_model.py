from __future__ import annotations

import dataclasses
import re

import huggingface_hub
import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from toy import GENES, write_cohort

from stflow_graph import Slide, SlideModel
from stflow_graph.config import load_config
from stflow_graph.errors import BadInput
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.models.checkpoint import load_checkpoint
from stflow_graph.stages.sample import sample
from stflow_graph.stages.train import train


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def run(cohort, tmp_path_factory):
    settings = {**cohort.settings, "train.members": 2, "train.epochs": 1, "train.folds": [0, 1]}
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(load_config(None, settings), folder)
    return folder


@pytest.fixture
def slide(cohort):
    return Slide.from_hest(cohort.root, "A", embed_dataroot=cohort.embeddings, encoder="toy")


def test_saved_and_loaded_it_predicts_the_same(run, slide, cohort, tmp_path):
    model = SlideModel.from_pretrained(run / "fold0")
    assert model.genes == GENES
    assert "6 genes, log1p, encoder 'toy', 2 members" in repr(model)
    model.save_pretrained(tmp_path / "saved")
    again = SlideModel.from_pretrained(str(tmp_path / "saved"))
    settings = SampleSettings(n_samples=2, seed=3)
    a, b = (each.predict(slide, settings) for each in (model, again))
    np.testing.assert_array_equal(a.layers["sample_1"], b.layers["sample_1"])
    np.testing.assert_array_equal(a.var["expected_pearson"], b.var["expected_pearson"])
    (done,) = sample(tmp_path / "saved", [cohort.embedding("A")], tmp_path / "out")
    assert done.fold == 0


def test_pictures_of_the_slide_go_with_its_prediction(run, slide):
    assert "spatial" not in SlideModel.from_pretrained(run / "fold0").predict(slide).uns
    adata = slide.to_anndata()
    adata.uns["spatial"] = {"A": {"images": {"hires": np.zeros((4, 4, 3), np.uint8)}}}
    seen = dataclasses.replace(slide, adata=adata)
    found = SlideModel.from_pretrained(run / "fold0").predict(seen)
    assert found.uns["spatial"]["A"]["images"]["hires"].shape == (4, 4, 3)


def test_a_run_of_several_folds_needs_one(run, tmp_path):
    with pytest.raises(BadInput, match="2 folds.*fold0"):
        SlideModel.from_pretrained(run)
    with pytest.raises(BadInput, match="run or checkpoint folder"):
        SlideModel.from_pretrained(run / "fold0" / "tensorboard")


def test_the_card_says_what_the_hub_and_a_reader_ask(run, tmp_path):
    model = SlideModel.from_pretrained(run / "fold0")
    model.save_pretrained(tmp_path / "saved", licence="cc-by-nc-4.0")
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    assert card.data.license == "cc-by-nc-4.0"
    assert card.data.library_name == "stflow_graph"
    assert {"spatial-transcriptomics", "encoder:toy"} <= set(card.data.tags)
    for heading in ("How to use", "Intended use and limits", "Expected accuracy", "Licences"):
        assert f"## {heading}" in card.text
    assert "| trained on | B, C, D |" in card.text
    assert "| never seen in training | A |" in card.text
    assert "encoder toy, which is not part" in card.text
    unnamed = (run / "fold0" / "checkpoint" / "README.md").read_text()
    assert "license" not in yaml.safe_load(unnamed.split("---")[1])
    assert "to be stated" in unnamed


def test_the_card_of_hostile_names_is_still_a_card(run, tmp_path):
    model = SlideModel.from_pretrained(run / "fold0")
    name = 'x: [1]\n---\n| <script>"'
    checkpoint = model.checkpoint
    data = checkpoint.config.data.model_copy(update={"encoder": name, "gene_list": name})
    config = checkpoint.config.model_copy(update={"data": data})
    hostile = {**checkpoint.provenance, "dataset": name, "train_slides": [name]}
    changed = dataclasses.replace(checkpoint, config=config, provenance=hostile)
    SlideModel(changed).save_pretrained(tmp_path / "saved")
    text = (tmp_path / "saved" / "README.md").read_text()
    assert yaml.safe_load(text.split("\n---\n")[0])["tags"][-1] == f"encoder:{name}"
    body = re.sub(r"```.*?```", "", text.split("\n---\n", 1)[1], flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<script>", body)
    assert load_checkpoint(tmp_path / "saved").config.data.encoder == name


def test_the_lines_of_the_card_run(run, slide, cohort, tmp_path):
    text = (run / "fold0" / "checkpoint" / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 6
    for shown, real in [
        ("OWNER/NAME", run / "fold0"),
        ('"ROOT"', f'"{cohort.root}"'),
        ("SLIDE", "A"),
        ("EMB", cohort.embeddings),
    ]:
        code = code.replace(shown, str(real))
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["prediction"].shape == (36, len(GENES))


def test_pushing_sends_a_checkpoint_that_loads(run, slide, tmp_path, monkeypatch):
    sent = tmp_path / "sent"

    class Api:
        def __init__(self, token):
            pass

        def create_repo(self, repo_id, **options):
            pass

        def upload_folder(self, *, folder_path, **options):
            folder_path.rename(sent)
            return type("Commit", (), {"commit_url": "https://hub/me/model"})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    model = SlideModel.from_pretrained(run / "fold1")
    assert model.push_to_hub("me/model", licence="mit") == "https://hub/me/model"
    again = SlideModel.from_pretrained(sent)
    np.testing.assert_array_equal(again.predict(slide).X, model.predict(slide).X)
    assert {file.suffix for file in sent.iterdir()} == {".json", ".safetensors", ".csv", ".md"}
