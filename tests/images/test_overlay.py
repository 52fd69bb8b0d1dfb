from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from stflow_graph.evaluation.charts import MapFrame
from stflow_graph.images.open import open_image
from stflow_graph.images.overlay import Overview, draw_overlay
from stflow_graph.io.coords import length_text, scale_bar_um

CAPTION = 30
WIDTH, HEIGHT = 3000, 2000
# tissue with texture, left, top, right and bottom
TISSUE = (1800, 900, 2600, 1500)
GRID = np.stack(np.meshgrid(np.arange(1850, 2600, 100), np.arange(950, 1500, 100)), -1)
SPOTS = GRID.reshape(-1, 2).astype(float)


@pytest.fixture
def slide(tmp_path):
    rng = np.random.default_rng(0)
    pixels = np.full((HEIGHT, WIDTH, 3), 244, np.uint8)
    left, top, right, bottom = TISSUE
    pink = np.array([200, 90, 160]) + rng.integers(-30, 30, (bottom - top, right - left, 1))
    pixels[top:bottom, left:right] = pink
    Image.fromarray(pixels).save(tmp_path / "S.png")
    return tmp_path / "S.png"


def drawn(slide, coords, **options):
    with open_image(slide) as image:
        png = draw_overlay(image, Overview.of(image), coords, 1.0, name="S", **options)
    return np.asarray(Image.open(io.BytesIO(png)))


def test_the_overlay_is_cut_to_the_tissue_and_its_spots(slide):
    picture = drawn(slide, SPOTS)
    height, width = picture.shape[0] - CAPTION, picture.shape[1]
    assert width == pytest.approx(800 * 1.07, rel=0.02)
    assert height == pytest.approx(600 + 60, rel=0.05)
    stained = np.ptp(picture[:height].astype(int), axis=2) > 30
    assert stained.mean() > 0.8
    # spots beside the tissue are seen, and so is the tissue beside the spots
    beside = drawn(slide, SPOTS - [1500, 500])
    assert beside.shape[1] > picture.shape[1]
    unused = drawn(slide, SPOTS, unused=np.array([[100.0, 100.0]]))
    assert unused.shape[0] > picture.shape[0]


def test_an_image_without_tissue_shows_its_spots(tmp_path):
    Image.new("RGB", (900, 700), (244, 244, 244)).save(tmp_path / "S.png")
    spots = np.array([[10.0, 10.0], [860.0, 650.0]])
    assert drawn(tmp_path / "S.png", spots).shape == (675 + CAPTION, 885, 3)
    assert drawn(tmp_path / "S.png", np.empty((0, 2))).shape[0] == 700 + CAPTION


@pytest.mark.parametrize("um_per_px", [0.01, 0.25, 0.7, 3.0, 20.0])
def test_all_pictures_of_a_slide_have_the_same_scale_bar(slide, um_per_px, monkeypatch):
    bars = []
    monkeypatch.setattr(
        "stflow_graph.images.overlay._draw_bar", lambda _, __, um, length: bars.append(um)
    )
    with open_image(slide) as image:
        draw_overlay(image, Overview.of(image), SPOTS, um_per_px, name="S")
    width = np.ptp(SPOTS[:, 0]) * um_per_px
    assert bars == [MapFrame.of(SPOTS, um_per_px).bar_um] == [scale_bar_um(SPOTS, um_per_px)]
    assert 0.1 * width <= bars[0] <= 0.25 * width or bars[0] == 10_000


def test_lengths_have_their_unit():
    assert [length_text(um) for um in (5, 500, 1000, 2000)] == ["5 µm", "500 µm", "1 mm", "2 mm"]
    assert scale_bar_um(np.zeros((1, 2)), 1.0) is None
