import numpy as np
import pytest
import tifffile
from foreign import halved, opened_without, tissue_like, write_svs, write_trestle
from PIL import Image

from stflow_graph.errors import BadInput
from stflow_graph.images.open import open_image
from stflow_graph.images.whole_slide import WholeSlide, needs_openslide, open_whole_slide

openslide = pytest.importorskip("openslide", reason="needs openslide-python and openslide-bin")
PIXELS = tissue_like(1100, 900)


def test_a_scanners_own_format_is_read_by_openslide(tmp_path):
    path = write_trestle(tmp_path / "a.tif", PIXELS)
    with open_image(path) as image:
        assert isinstance(image, WholeSlide)
        assert image.size == (1100, 900)
        assert image.um_per_px == pytest.approx(0.5)
        assert image.downsamples == [(1, 1), (2, 2), (4, 4)]
        np.testing.assert_array_equal(image.read_window(0, 0, 1100, 900), PIXELS)
        result = image.read_window(3, 5, 200, 100, level=1)
        np.testing.assert_array_equal(result, halved(PIXELS)[5:105, 3:203])
        outside = image.read_window(1050, 880, 100, 60)
    assert (outside[20:] == 255).all()
    assert (outside[:, 50:] == 255).all()


def test_both_readers_give_the_same_of_an_svs(tmp_path):
    path = write_svs(tmp_path / "a.svs", PIXELS)
    assert not needs_openslide(path)
    rng = np.random.default_rng(0)
    with open_image(path) as ours, open_whole_slide(path) as other:
        assert ours.sizes == other.sizes
        assert ours.um_per_px == other.um_per_px == pytest.approx(0.499)
        for _ in range(6):
            x, y = rng.uniform(0, 900, 2)
            edge = rng.uniform(40, 700)
            patches = [reader.read_patch(x, y, edge, 32) for reader in (ours, other)]
            # OpenSlide sets the smallest level a part of a pixel aside
            np.testing.assert_allclose(*(patch.astype(int) for patch in patches), atol=2)


def test_tiles_without_a_scan_are_white(tmp_path):
    path = tmp_path / "a.svs"
    write_svs(path, np.zeros((720, 720, 3), np.uint8), steps=0)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        page = tiff.pages[0]
        counts = list(page.databytecounts)
        counts[4] = 0
        page.tags["TileByteCounts"].overwrite(counts)
    with open_image(path) as image:
        window = image.read_window(0, 0, 720, 720)
    assert (window[240:480, 240:480] == 255).all()
    assert (window[:240] == 0).all()


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("write", [write_svs, write_trestle])
def test_a_truncated_slide_is_refused(tmp_path, write, keep):
    whole = write(tmp_path / "whole.tif", PIXELS).read_bytes()
    path = tmp_path / "a.tif"
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(BadInput, match=r"a\.tif: ") as caught, open_image(path) as image:
        image.read_overview(1)
    assert "\n" not in str(caught.value)


def test_a_damaged_region_is_refused_with_its_place(tmp_path):
    path = write_trestle(tmp_path / "a.tif", PIXELS)
    with tifffile.TiffFile(path) as tiff:
        start, length = tiff.pages[0].dataoffsets[7], tiff.pages[0].databytecounts[7]
    content = bytearray(path.read_bytes())
    content[start : start + length] = bytes(length)
    path.write_bytes(content)
    with (
        pytest.raises(BadInput, match=r"region at \(.*: found damaged or other data"),
        open_image(path) as image,
    ):
        image.read_overview(1)


def test_a_format_that_needs_openslide_says_what_to_install(tmp_path):
    (tmp_path / "a.mrxs").write_bytes(b"")
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    assert "(1100, 900)" in opened_without("openslide", tmp_path / "a.png")
    assert "pip install 'stflow-graph[wsi]'" in opened_without("openslide", tmp_path / "a.mrxs")


@pytest.mark.parametrize("name", ["a.mrxs", "a.ndpi", "a.vms", "a.dcm"])
def test_a_name_alone_makes_no_slide(tmp_path, name):
    (tmp_path / name).write_text("not a slide")
    with pytest.raises(BadInput, match=name), open_image(tmp_path / name):
        pass
