import warnings

import numpy as np
import pytest
from artefacts import write_prediction
from PIL import Image

from stflow_graph.errors import BadInput
from stflow_graph.images.pictures import read_picture

COORDS = np.array([[60.0, 30.0], [160, 30], [60, 130], [160, 130], [260, 130]])


@pytest.fixture
def image(tmp_path):
    """An image whose red and green are the place, so that a shift would show."""
    y, x = np.mgrid[:203, :401]
    pixels = np.stack([x * 255 // 400, y * 255 // 202, np.full_like(x, 90)], axis=2)
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "A.png")
    return tmp_path / "A.png"


@pytest.mark.parametrize("edge", [400, 401, 150, 7])
def test_it_is_small_and_a_pixel_stands_for_a_square(image, edge):
    picture = read_picture(image, edge)
    factor = picture.factor
    assert max(picture.pixels.shape[:2]) <= edge
    assert factor == -(-401 // edge)
    assert picture.size == (401, 203)
    whole = np.asarray(Image.open(image)).astype(float)
    for row, column in [(0, 0), (203 // factor // 2, 401 // factor // 2)]:
        square = whole[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
        np.testing.assert_allclose(picture.pixels[row, column], square.mean((0, 1)), atol=2)


def test_an_image_of_another_scale_is_refused(image):
    wide = COORDS.copy()
    wide[-1, 0] += 200
    with pytest.raises(BadInput, match=r"401 x 203 px, 1 of 5 spots outside.*x 60 to 460"):
        read_picture(image).library(wide)


def test_spots_have_the_size_of_their_array(image):
    scales = read_picture(image, 100).library(COORDS)["scalefactors"]
    assert scales == {"tissue_hires_scalef": 1 / 5, "spot_diameter_fullres": pytest.approx(55)}
    assert read_picture(image).library(COORDS[:1])["scalefactors"]["spot_diameter_fullres"] > 1


def test_scanpy_and_squidpy_draw_a_prediction_on_its_image(image, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both warn when they are imported
        sc = pytest.importorskip("scanpy", reason="needs pip install .[scanpy]")
        sq = pytest.importorskip("squidpy", reason="needs pip install .[scanpy]")
    import matplotlib.pyplot as plt

    values = np.arange(10, dtype=np.float32).reshape(5, 2)
    file = tmp_path / "pred" / "A.h5ad"
    write_prediction(
        file,
        values,
        list("abcde"),
        ["G0", "G1"],
        COORDS,
        provenance={"slide": "A", "target": "log1p"},
        picture=read_picture(image, 100),
    )
    adata = sc.read_h5ad(file)
    plt.switch_backend("agg")
    with warnings.catch_warnings():
        # what the two call of matplotlib, and what scanpy says of its function, is their affair
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        warnings.filterwarnings("ignore", "Use `squidpy.pl.spatial_scatter`")
        drawn = sq.pl.spatial_scatter(adata, color="G1", return_ax=True)
        _check_drawn(drawn[0] if isinstance(drawn, list) else drawn, adata)
        (axes,) = sc.pl.spatial(adata, color="G1", show=False)
        _check_drawn(axes, adata)
    plt.close("all")


def _check_drawn(axes, adata):
    (shown,) = axes.images
    np.testing.assert_allclose(
        np.asarray(shown.get_array())[..., 2],
        adata.uns["spatial"]["A"]["images"]["hires"][..., 2],
        atol=1,
    )
    (spots,) = axes.collections
    np.testing.assert_array_equal(np.asarray(spots.get_array()), adata[:, "G1"].X.ravel())
    centres = np.array([path.vertices.mean(0) for path in spots.get_paths()])
    if len(centres) == len(COORDS):
        np.testing.assert_allclose(centres, COORDS / 5, atol=2)
