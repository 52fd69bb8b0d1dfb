import shutil

import numpy as np
import pytest
from platform_files import LEGACY_HEADER, only_slide, write_legacy_st
from real import KIT, needs_real_slides

from stflow_graph.errors import BadConfig, BadInput
from stflow_graph.platforms.detect import find_slides
from stflow_graph.platforms.kit import read_manifest


def test_a_bare_pair_is_a_slide_whose_array_tells_its_scale(tmp_path):
    write_legacy_st(tmp_path)
    source = only_slide(tmp_path, "legacy-st", image=tmp_path / "he.jpg")
    assert (source.name, set(source.inputs)) == ("B4", {"counts", "spots", "image"})
    data = source.read()
    assert data.um_per_px == pytest.approx(4.0)  # 200 µm are 50 px
    assert data.spots.barcodes == data.expression.barcodes
    np.testing.assert_array_equal(data.spots.coords[0], [30, 40])


def write_2k(folder, name="B4", parity=1):
    """Write an array of which every second position has a spot, 100 µm = 25 px a step."""
    folder.mkdir(exist_ok=True)
    places = [(x, y) for y in range(1, 60, 6) for x in range(1, 62) if (x + y) % 2 == parity]
    rows = [f"{x}\t{y}\t{x}\t{y}\t{30 + 25 * x}\t{40 + 25 * y}\t1\n" for x, y in places]
    (folder / f"{name}_selection.tsv").write_text(LEGACY_HEADER + "".join(rows))
    counts = [f"{x}x{y}\t{x}\t{y}\n" for x, y in places]
    (folder / f"{name}.tsv").write_text("\tA\tB\n" + "".join(counts))


@pytest.mark.parametrize("parity", [0, 1])
def test_an_array_of_every_second_position_has_half_the_step(tmp_path, parity):
    write_2k(tmp_path, parity=parity)
    source = only_slide(tmp_path, "legacy-st")
    assert source.platform == "legacy ST (2k array)"
    assert source.read().um_per_px == pytest.approx(4.0)
    source = only_slide(tmp_path, "legacy-st", array="1k")
    assert (source.platform, source.settings) == ("legacy ST (1k array)", {"array": "1k"})
    assert source.read().um_per_px == pytest.approx(8.0)
    with pytest.raises(BadConfig, match="--array '3k': expected 1k or 2k"):
        only_slide(tmp_path, "legacy-st", array="3k")


def test_an_array_that_is_neither_is_refused(tmp_path):
    write_2k(tmp_path)
    extra = "2\t1\t2\t1\t80\t65\t1\n" + "1\t1\t1\t1\t55\t65\t1\n"
    table = tmp_path / "B4_selection.tsv"
    table.write_text(table.read_text().replace("2\t1\t2\t1\t80\t65\t1\n", "") + extra)
    source = only_slide(tmp_path, "legacy-st")
    with pytest.raises(BadInput, match=r"array: found 60 positions along an axis.*--um-per-px"):
        source.read()
    assert only_slide(tmp_path, "legacy-st", um_per_px=0.5).read().um_per_px is None


def test_the_folders_of_her2st_are_recognised(tmp_path):
    for folder in (tmp_path / "a/data", tmp_path / "b"):
        folder.mkdir(parents=True)
        write_legacy_st(folder / "ST-spotfiles", "A1")
        (folder / "ST-cnts").mkdir()
        (folder / "ST-spotfiles/A1.tsv").rename(folder / "ST-cnts/A1.tsv")
        (folder / "ST-imgs/A/A1").mkdir(parents=True)
        (folder / "ST-imgs/A/A1/HE_BT23209_C1.jpg").write_bytes(b"")
        source = only_slide(tmp_path / folder.relative_to(tmp_path).parts[0], "legacy-st")
        assert source.name == "A1"
        assert source.inputs["image"].name == "HE_BT23209_C1.jpg"
        assert source.read().um_per_px == pytest.approx(4.0)


def test_slides_are_told_apart_and_images_beside_them_are_found(tmp_path):
    for name in ("B4", "C2"):
        write_legacy_st(tmp_path, name)
        (tmp_path / f"{name}.jpg").write_bytes(b"")
    sources = find_slides(tmp_path)
    assert [(s.name, s.inputs["image"].name) for s in sources] == [
        ("B4", "B4.jpg"),
        ("C2", "C2.jpg"),
    ]
    assert only_slide(tmp_path, "legacy-st", name="C2").name == "C2"


def test_a_selection_without_counts_is_refused(tmp_path):
    write_legacy_st(tmp_path)
    (tmp_path / "B4.tsv").unlink()
    with pytest.raises(BadInput, match=r"counts of B4: found 'B4_.*, expected B4\.tsv\.gz or B4"):
        find_slides(tmp_path)


@needs_real_slides
@pytest.mark.parametrize(
    "name",
    ["B4", *(pytest.param(name, marks=pytest.mark.slow) for name in ("C2", "C3", "C4", "C5"))],
)
def test_the_scale_of_a_real_slide_is_the_measured_one(tmp_path, name):
    (slide,) = (slide for slide in read_manifest(KIT / "dataset.csv") if slide.name == name)
    shutil.copy(slide.inputs["spots"], tmp_path / f"{name}_selection.tsv")
    shutil.copy(slide.inputs["counts"], tmp_path / f"{name}.tsv.gz")
    source = only_slide(tmp_path, "legacy-st", name=name)
    assert source.read().um_per_px == pytest.approx(slide.um_per_px, rel=0.01)
