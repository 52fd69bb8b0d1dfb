import shutil

import numpy as np
import pandas as pd
import pytest
from platform_files import SYMBOLS, UM_PER_PX, corrupt, counts_of, only_slide, write_stimage

from stflow_graph.errors import BadInput
from stflow_graph.platforms.detect import find_slides

COORDS, COUNTS, IMAGE = "coord/A1_coord.csv", "gene_exp/A1_count.csv", "image/A1.png"
# one whose affine fit and one whose neighbours' distance tell the scale
SCALES = {"ST": 5.0, "Visium": UM_PER_PX}


@pytest.mark.parametrize("platform", SCALES)
def test_a_slides_scale_follows_from_how_wide_and_far_apart_its_spots_are(tmp_path, platform):
    coords = write_stimage(tmp_path, "Human_A1", platform)
    source = only_slide(tmp_path, "stimage")
    assert source.name == "Human_A1"
    data = source.read()
    assert data.um_per_px == pytest.approx(SCALES[platform], rel=0.03)
    np.testing.assert_allclose(data.spots.coords, coords[["xaxis", "yaxis"]])
    assert data.spots.barcodes == list(coords.index)
    np.testing.assert_array_equal(data.expression.counts.toarray(), counts_of(len(coords)))
    assert data.expression.genes == [*SYMBOLS[:3], "GAPDH-1", *SYMBOLS[4:]]


def test_a_legacy_array_of_every_second_position_has_half_the_step(tmp_path):
    """100 µm are 25 px, and a spot is 100 µm wide."""
    write_stimage(tmp_path, "A1")
    places = [(x, y) for y in range(1, 9) for x in range(1, 9) if (x + y) % 2]
    names = [f"A1_{x}x{y}" for x, y in places]
    xy = 25.0 * np.array(places)
    table = pd.DataFrame({"yaxis": xy[:, 1], "xaxis": xy[:, 0], "r": 12.5}, index=names)
    table.to_csv(tmp_path / COORDS)
    counts = pd.DataFrame(counts_of(len(names)), index=names, columns=SYMBOLS)
    counts.to_csv(tmp_path / COUNTS)
    assert only_slide(tmp_path, "stimage").read().um_per_px == pytest.approx(4.0)
    with pytest.raises(BadInput, match=r"a radius of 12.5 px, unlike legacy ST spots"):
        only_slide(tmp_path, "stimage", array="1k").read()


def test_published_folders_and_flat_ones_are_the_same(tmp_path):
    for name in ("A1", "B1"):
        write_stimage(tmp_path / "deep", name)
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (tmp_path / "deep").rglob("*.*"):
        shutil.copy(path, flat)
    for folder in (flat, tmp_path / "deep"):
        assert [source.name for source in find_slides(folder)] == ["A1", "B1"]
    assert only_slide(flat, "stimage", name="B1").name == "B1"


def test_a_given_scale_needs_no_radius(tmp_path):
    write_stimage(tmp_path, "A1")
    corrupt(tmp_path / COORDS, lambda t: t.drop(columns="r"))
    source = only_slide(tmp_path, "stimage", um_per_px=0.7)
    assert source.um_per_px == 0.7
    assert source.read().um_per_px is None


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (COUNTS, None, "counts of A1: found .*, expected gene_exp/A1_count"),
        (IMAGE, None, r"image of A1: .*image/A1\.png or A1\.png"),
        (COORDS, lambda t: t.drop(columns="xaxis"), r"columns: found \['', 'yaxis', 'r'\]"),
        (COORDS, lambda t: t.drop(columns="r"), "expected also r"),
        (COORDS, lambda t: t[:0], "0 spots"),
        (COORDS, lambda t: t.assign(r=3.0), "r: found a radius of 3 px.*--um-per-px"),
        (COORDS, lambda t: t.assign(r=0), "r: found a radius of 0 px"),
        (COORDS, lambda t: t.assign(xaxis="nan"), "20 of 20 rows not finite"),
        (COORDS, lambda t: pd.concat([t, t[:1]]), "barcodes: found 1 duplicate"),
        (COUNTS, lambda t: t - 1, "expected a raw count"),
        (COUNTS, lambda t: t / 2, "expected a raw count"),
        (COUNTS, lambda t: t[:0], "0 spots, 6 genes in this table"),
    ],
)
def test_bad_slides_are_refused(tmp_path, file, change, message):
    write_stimage(tmp_path, "A1")
    corrupt(tmp_path / file, change)
    with pytest.raises(BadInput, match=message):
        only_slide(tmp_path, "stimage").read()
