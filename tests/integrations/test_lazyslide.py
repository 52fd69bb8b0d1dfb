"""A model in LazySlide predicts what it predicts here, with the real package."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from imaged import PATCH_PX, write_imaged
from toy import GENES, toy_encoder

from stflow_graph.data.slide import Slide
from stflow_graph.errors import BadConfig, BadInput
from stflow_graph.images.open import open_image
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.inference.slide_model import SlideModel

pytestmark = pytest.mark.filterwarnings("ignore")  # of LazySlide's packages
for name in ("lazyslide", "lazyslide_models"):
    if importlib.util.find_spec(name) is None:
        pytest.skip("needs pip install .[lazyslide]", allow_module_level=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ours = importlib.import_module("stflow_graph.integrations.lazyslide")  # first, see there
    lazyslide, wsidata = (importlib.import_module(name) for name in ("lazyslide", "wsidata"))


@pytest.fixture(scope="module")
def imaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imaged")
    write_imaged(folder)
    return folder


@pytest.fixture(scope="module")
def wsi(imaged):
    """A slide with tiles as in training and the features of the model's encoder."""
    slide = wsidata.open_wsi(imaged / "images/S3.svs", store=None)
    tiles = ours.SlideExpression(imaged / "run").tiles(PATCH_PX)
    assert tiles == {"tile_px": PATCH_PX, "stride_px": PATCH_PX, "mpp": 20 / PATCH_PX}
    lazyslide.pp.find_tissues(slide)
    lazyslide.pp.tile_tissues(slide, **tiles)
    lazyslide.tl.feature_extraction(
        slide, toy_encoder(), transform=torch.as_tensor, model_name="toy", device="cpu", pbar=False
    )
    return slide


def expected(imaged, wsi, shift: float = 0.0) -> pd.DataFrame:
    """Return the prediction of the same features at the tiles' centres."""
    bounds = wsi.shapes["tiles"].bounds
    centres = np.column_stack([(bounds.minx + bounds.maxx) / 2, (bounds.miny + bounds.maxy) / 2])
    adata = AnnData(obs=pd.DataFrame(index=[str(i) for i in range(len(centres))]))
    adata.obsm["spatial"] = centres
    features = np.asarray(wsi.tables["toy_tiles"].X)
    slide = Slide.from_anndata(adata, name="S3", embeddings=features, encoder="toy")
    prediction = SlideModel.from_pretrained(imaged / "run/all").predict(
        slide, SampleSettings(device="cpu")
    )
    return prediction.to_df()


def test_a_slide_is_predicted_as_sample_does(imaged, wsi):
    model = ours.SlideExpression(imaged / "run")
    lazyslide.tl.feature_prediction(wsi, model, "toy", device="cpu", pbar=False)
    table = wsi.tables["stflow-graph_tiles"]
    assert list(table.var_names) == GENES
    assert len(table) == len(wsi.shapes["tiles"]) > 50
    np.testing.assert_allclose(table.X, expected(imaged, wsi)[GENES], atol=1e-5)
    assert model.in_range is not None


def test_batches_and_amp_of_lazyslide_change_nothing(imaged, wsi):
    model = ours.SlideExpression(imaged / "run", genes=["G2", "G0"])
    lazyslide.tl.feature_prediction(
        wsi,
        model,
        "toy",
        batch_size=7,
        amp=True,
        compile=True,
        key_added="few",
        pbar=False,
        device="cpu",
    )
    table = wsi.tables["few"]
    assert list(table.var_names) == ["G2", "G0"]
    np.testing.assert_allclose(table.X, expected(imaged, wsi)[["G2", "G0"]], atol=1e-5)


def test_a_model_has_a_key_of_its_own(imaged, wsi):
    ours.register_model("my-tumour", imaged / "run")
    registry = ours.MODEL_REGISTRY
    assert {"my-tumour", ours.KEY} <= set(registry)
    assert "my-tumour" in registry.to_dataframe()["key"].tolist()
    lazyslide.tl.feature_prediction(wsi, "my-tumour", "toy", device="cpu", pbar=False)
    np.testing.assert_allclose(
        wsi.tables["my-tumour_tiles"].X, expected(imaged, wsi)[GENES], atol=1e-5
    )


def test_features_at_the_slides_own_scale_are_those_of_embed(imaged):
    path = imaged / "images/S2.svs"
    slide = wsidata.open_wsi(path, store=None)
    lazyslide.pp.find_tissues(slide)
    lazyslide.pp.tile_tissues(slide, tile_px=40, mpp=0.5)
    encoder = toy_encoder()
    lazyslide.tl.feature_extraction(
        slide, encoder, transform=torch.as_tensor, model_name="toy", device="cpu", pbar=False
    )
    bounds = slide.shapes["tiles"].bounds.to_numpy()
    with open_image(path) as image:
        patches = [image.read_patch(x + 20, y + 20, 40, 40) for x, y in bounds[:, :2]]
    ours_of_them = encoder(torch.from_numpy(np.stack(patches))).numpy()
    np.testing.assert_allclose(slide.tables["toy_tiles"].X, ours_of_them, atol=1e-5)


def test_the_lines_of_the_documentation_run(imaged, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").symlink_to(imaged / "run")
    (tmp_path / "HE.svs").symlink_to(imaged / "images/S3.svs")
    monkeypatch.setattr("stflow_graph.encoders.create_encoder", toy_encoder)
    text = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
    found = re.search(r"^## In LazySlide\n.*?```python\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    names: dict[str, AnnData] = {}
    exec(compile(found[1].replace("tiles()", f"tiles({PATCH_PX})"), "data.md", "exec"), names)
    assert list(names["expression"].var_names) == GENES


def test_features_of_lazyslides_own_encoders_are_known_by_name():
    assert ours._lazyslide_key("uni_v1") == "uni"
    assert ours._lazyslide_key("gigapath") == "gigapath"
    assert ours._lazyslide_key("toy") is None
    assert ours._lazyslide_key("") is None


def test_a_slide_out_of_range_is_a_warning(imaged, caplog):
    model = ours.SlideExpression(imaged / "run")
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(range(6), range(6)), axis=-1).reshape(-1, 2) * 40.0
    with caplog.at_level(logging.WARNING):
        model.predict(1e4 + 1e3 * rng.normal(size=(36, 6)), grid)
    assert model.in_range is not None
    assert not model.in_range.slide
    assert "out of range of the model" in caplog.text


def test_what_cannot_be_predicted_is_refused(imaged):
    with pytest.raises(BadConfig, match="no model"):
        ours.SlideExpression()
    with pytest.raises(BadConfig, match="does not have"):
        ours.SlideExpression(imaged / "run", genes=["ERBB2"])
    with pytest.raises(BadInput, match="absent"):
        ours.SlideExpression(imaged / "absent")
    model = ours.SlideExpression(imaged / "run")
    with pytest.raises(BadConfig, match="coordinates"):
        model.predict(np.zeros((36, 6)))
    with pytest.raises(BadConfig, match="7 channels"):
        model.predict(np.zeros((36, 7)), np.random.default_rng(0).normal(size=(36, 2)))
    with pytest.raises(BadInput, match="neighbours|spots"):
        model.predict(np.zeros((2, 6)), np.eye(2))
