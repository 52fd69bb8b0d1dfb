import numpy as np
import pytest

from stflow_graph.images.tissue_mask import otsu, tissue_mask, tissue_share

RNG = np.random.default_rng(0)
GLASS, PALE, PINK, PURPLE, BLACK = (
    np.array(colour)
    for colour in [(244, 241, 238), (238, 205, 226), (225, 160, 200), (95, 50, 130), (12, 10, 11)]
)


def paint(colour, shape=(120, 160), spread=3):
    return np.clip(colour + RNG.normal(0, spread, (*shape, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("stain", [PALE, PINK, PURPLE])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_stain_on_glass_is_found_whatever_its_share(stain, share):
    image, wide = paint(GLASS), max(4, int(share * 160))
    image[:, :wide] = paint(stain, (120, wide), spread=8)
    truth = np.zeros((120, 160), bool)
    truth[:, :wide] = True
    assert (tissue_mask(image) == truth).mean() > 0.98


@pytest.mark.parametrize("colour", [GLASS, BLACK, np.array([128] * 3), np.array([255] * 3)])
def test_what_has_no_colour_is_no_tissue(colour):
    assert tissue_mask(paint(colour)).mean() < 0.01


def test_glass_that_eosin_has_tinted_is_left_out():
    image = paint(
        (233, 218, 232), (200, 200), spread=1
    )  # as measured on a slide of her2st, as below
    image[100:, 50:] = paint((231, 205, 228), (100, 150), spread=1)
    image[20:100, 20:100] = paint((140, 126, 170), (80, 80), spread=20)
    mask = tissue_mask(image)
    assert mask[22:98, 22:98].mean() > 0.8
    mask[19:101, 19:101] = False
    assert mask.mean() < 0.01


@pytest.mark.parametrize("cast", [(243, 235, 212), (215, 228, 240), (238, 240, 214)])
@pytest.mark.parametrize("stain", [None, PALE, PINK, PURPLE])
def test_glass_under_a_coloured_light_is_no_tissue(cast, stain):
    """Its colour alone is above the limit for glass."""
    image, truth = paint(np.array(cast)), np.zeros((120, 160), bool)
    if stain is not None:
        image[:, :60] = paint(stain, (120, 60), spread=8)
        truth[:, :60] = stain is not PALE  # too close to the cast to be told
    agree = tissue_mask(image) == truth
    assert agree[:, 62:].mean() > 0.98
    if stain is not PALE:
        assert agree.mean() > 0.98


def test_a_frame_and_a_pen_in_black_are_left_out():
    image = paint(GLASS)
    image[:20] = image[:, 100:106] = BLACK
    image[60:100, 20:80] = paint(PINK, (40, 60))
    mask = tissue_mask(image)
    assert mask[62:98, 22:78].all()
    mask[59:101, 19:81] = False
    assert not mask.any()


def test_a_slide_full_of_tissue_has_no_hole():
    image = paint(PALE, spread=5)
    image[:, 80:] = paint(PURPLE, (120, 80), spread=5)
    assert tissue_mask(image).mean() > 0.97


def test_dust_is_left_out():
    image = paint(GLASS, spread=1)
    image[3::7, 3::9] = (255, 0, 0)
    assert not tissue_mask(image).any()


def test_specks_are_left_out_and_fragments_that_are_larger_stay():
    image, truth = paint(GLASS, spread=1), np.zeros((120, 160), bool)
    image[20:100, 60:140] = paint(PINK, (80, 80))
    truth[20:100, 60:140] = True
    for top, left, height, width in (
        (4, 4, 7, 7),  # a speck
        (60, 4, 2, 25),  # a thread
        (30, 10, 10, 10),  # fragments
        (108, 20, 6, 30),
    ):
        image[top : top + height, left : left + width] = paint(PURPLE, (height, width))
        truth[top : top + height, left : left + width] = height * width >= 60
    mask = tissue_mask(image)
    assert not mask[:15, :15].any()
    assert not mask[58:64, :35].any()
    assert mask[31:39, 11:19].all()
    assert mask[109:113, 22:48].all()
    assert (mask == truth).mean() > 0.995


def test_what_is_a_speck_depends_on_the_size_of_a_patch():
    image = paint(GLASS, spread=1)
    image[50:57, 50:57] = paint(PURPLE, (7, 7))
    assert not tissue_mask(image).any()
    assert not tissue_mask(image, 14.0).any()
    assert tissue_mask(image, 8.0)[51:56, 51:56].all()  # nearly a whole patch


def test_a_diagonal_line_of_cells_is_one_fragment():
    image = paint(GLASS, spread=1)
    for i in range(0, 100, 5):
        image[10 + i : 15 + i, 20 + i : 25 + i] = paint(PURPLE, (5, 5))
    assert tissue_mask(image).sum() > 200


def test_otsu_parts_the_classes_with_the_most_variance_between_them():
    for _ in range(20):
        histogram = RNG.integers(0, 50, 40)
        values = np.repeat(np.arange(40), histogram)
        between = [
            values[values <= t].size
            * values[values > t].size
            * (values[values <= t].mean() - values[values > t].mean()) ** 2
            for t in range(values.min(), values.max())
        ]
        assert otsu(histogram) == values.min() + int(np.argmax(between))
    assert otsu(np.eye(256, dtype=int)[40]) == 0


def test_the_share_of_squares_is_that_of_their_pixels():
    mask = RNG.random((50, 70)) < 0.4
    centres = RNG.integers(4, 46, (30, 2)).astype(float)
    expected = [mask[int(y) - 4 : int(y) + 4, int(x) - 4 : int(x) + 4].mean() for x, y in centres]
    np.testing.assert_allclose(tissue_share(mask, centres, 8), expected)
    assert tissue_share(np.ones((5, 5), bool), np.array([[0.0, 5.0]]), 4) == 1
