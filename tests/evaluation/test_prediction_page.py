from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from stflow_graph.errors import BadInput
from stflow_graph.evaluation.prediction_page import read_predicted_slide, render_predictions
from stflow_graph.io.predictions import Block, Late, write_prediction_blocks

LEVELS = np.array([0, 0.1, 0.5, 0.9, 1])


def write(path, n=60, genes=("A<b>", "B", "C"), in_range=True, samples=True, known=True):
    rng, g = np.random.default_rng(0), len(genes)
    mean = rng.gamma(2, 1, (n, g)).astype(np.float32)
    drawn = (mean + rng.normal(size=(4, n, g))).astype(np.float32) if samples else None
    side = int(np.ceil(n**0.5))
    coords = 100.0 * np.stack(np.unravel_index(np.arange(n), (side, side)), 1)
    info = {"expected_pearson": np.linspace(0.1, 0.5, g)} if known else {}
    if known:
        info["quantiles"] = (np.quantile(mean, LEVELS, axis=0).T, LEVELS)
    record = {"slide": in_range, "share": 0.97, "embeddings": in_range, "stain": None}
    info["late"] = lambda: Late({"in_range": record} if known else {}, {})
    write_prediction_blocks(
        path,
        [Block(slice(0, n), mean, drawn)],
        [f"b{i}" for i in range(n)],
        list(genes),
        coords,
        n_samples=4 if samples else 0,
        provenance={"slide": path.stem, "target": "log1p", "um_per_px": 0.5, "train_slides": ["T"]},
        **info,
    )
    return mean


def images(page):
    found = re.findall(r"data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)", page)
    return [(kind, Image.open(io.BytesIO(base64.b64decode(data)))) for kind, data in found]


def test_the_page_shows_maps_tables_and_where_the_spots_lie(tmp_path):
    mean = write(tmp_path / "S.h5ad")
    Image.new("RGB", (900, 600), "pink").save(tmp_path / "S.png")
    slide = read_predicted_slide(tmp_path / "S.h5ad", tmp_path / "S.png")
    assert [gene.name for gene in slide.genes] == ["C", "B", "A<b>"]  # the most reliable first
    first = slide.genes[0]
    assert first.mean == pytest.approx(mean[:, 2].mean(), rel=1e-5)
    assert first.high == pytest.approx(0.1, abs=0.02)
    assert 0.5 < first.percentile < 0.8
    page = render_predictions([slide])
    kinds = [kind for kind, _ in images(page)]
    assert kinds == ["jpeg", *6 * ["png"]]  # overlay, mean and deviation of each gene
    assert "A&lt;b&gt;" in page
    assert "<b>" not in re.sub(r"<b( class=\"out\")?>[^<]*</b>", "", page)
    assert "in range (97% of spots)" in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert page == render_predictions([slide])


def test_slides_out_of_range_come_first(tmp_path):
    for name, in_range in (("S", True), ("T", False)):
        write(tmp_path / f"{name}.h5ad", in_range=in_range, samples=False)
    slides = [read_predicted_slide(tmp_path / f"{name}.h5ad") for name in "ST"]
    page = render_predictions(slides)
    assert page.index("T is unlike the slides") < page.index("<h2>Slides")
    assert "S is unlike" not in page
    assert len(images(page)) == 6  # without samples and overlays, a map a gene


def test_predictions_without_what_newer_models_know(tmp_path):
    write(tmp_path / "S.h5ad", n=1, genes=("A",), samples=False, known=False)
    page = render_predictions([read_predicted_slide(tmp_path / "S.h5ad")])
    assert "unknown" in page
    assert "1 spot" in page


def test_many_spots_are_averaged_and_many_slides_have_no_maps(tmp_path):
    write(tmp_path / "S.h5ad", n=40_000, genes=("A",), samples=False)
    slide = read_predicted_slide(tmp_path / "S.h5ad")
    page = render_predictions([slide])
    assert "Neighbouring spots are averaged" in page
    assert len(page) < 1e6
    page = render_predictions([slide] * 9)
    assert len(images(page)) == 8
    assert "first 8 slides" in page


def test_other_files_are_refused(tmp_path):
    (tmp_path / "S.h5ad").write_text("none")
    with pytest.raises(BadInput):
        read_predicted_slide(tmp_path / "S.h5ad")
