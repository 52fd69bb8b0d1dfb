from __future__ import annotations

import logging
import re

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from artefacts import resealed

from stflow_graph.data.coordinates import patch_centres, to_centres
from stflow_graph.data.load import load_slide
from stflow_graph.io.embeddings import write_embeddings
from stflow_graph.io.expression import read_positions, write_expression
from stflow_graph.io.patches import open_patches

RNG = np.random.default_rng(0)
CENTRES = RNG.integers(500, 5000, (30, 2)).astype(float)
BARCODES = [f"b{i}" for i in range(30)]
SIZE = 225  # odd: half a patch is rounded down by HEST


@pytest.fixture(autouse=True)
def _warnings(caplog):
    caplog.set_level(logging.WARNING)


def judged(coords, **options):
    return to_centres(coords, CENTRES, file="a.h5", other="a.h5ad", **options)


@pytest.mark.parametrize("size", [SIZE, None])
@pytest.mark.parametrize("shift", [0, 0.4, SIZE // 2, SIZE / 2])
def test_centres_and_corners_are_told_apart(size, shift, caplog):
    found = judged(CENTRES - shift, size=size)
    np.testing.assert_allclose(found.coords, CENTRES, atol=0.5)
    assert found.convention == "centre"
    assert not caplog.records


@pytest.mark.parametrize(
    ("coords", "size", "message"),
    [
        (CENTRES - [50, 50], SIZE, r"lie \+50, \+50 px away"),
        (CENTRES + SIZE / 2, SIZE, r"lie -112, -112 px"),
        (CENTRES + SIZE / 2, None, r"lie -112, -112 px"),
        (CENTRES - [112, 0], SIZE, r"\+112, \+0 px"),
        (CENTRES - [112, 30], None, r"\+112, \+30 px"),
        (CENTRES * 0.25, SIZE, "up to"),
        (CENTRES[:, ::-1], SIZE, "up to"),
    ],
)
def test_any_other_difference_is_said_with_its_size(coords, size, message, caplog):
    found = judged(coords, size=size)
    np.testing.assert_array_equal(found.coords, coords)
    assert found.convention is None
    (record,) = caplog.records
    assert "a.h5: coords: the spots' centres in a.h5ad" in record.getMessage()
    assert re.search(message, record.getMessage())


def test_what_is_measured_wins_over_what_is_stated(caplog):
    found = judged(CENTRES - 112, size=224, stated="centre")
    np.testing.assert_array_equal(found.coords, CENTRES)
    assert "stated as centre, but" in caplog.text
    assert "+112, +112 px away, so they are taken as top-left" in caplog.text


@pytest.mark.parametrize("shift", [112, 333, -50])
def test_an_equal_shift_of_stated_centres_is_told_and_not_taken_for_corners(caplog, shift):
    found = judged(CENTRES - shift, stated="centre")
    np.testing.assert_array_equal(found.coords, CENTRES - shift)
    assert f"lie {shift:+d}, {shift:+d} px away" in caplog.text
    assert "top-left" not in caplog.text


def write_hest(folder, coords, **attrs):
    """A patch file with the keys and attributes of HEST's."""
    (folder / "patches").mkdir()
    path = folder / "patches" / "A.h5"
    with h5py.File(path, "w") as file:
        file["img"] = np.zeros((30, 8, 8, 3), np.uint8)
        file["coords"] = coords.astype(np.int64)
        file["barcode"] = np.array(BARCODES, dtype=object).reshape(-1, 1)
        file["img"].attrs.update({"patch_size_src": SIZE, "pixel_size": 0.5, **attrs})
    return path


def write_adata(folder, barcodes=BARCODES, coords=CENTRES):
    counts = sp.csr_matrix(np.ones((len(barcodes), 1)))
    write_expression(folder / "adata" / "A.h5ad", counts, barcodes, ["G"], coords, um_per_px=0.5)
    return folder / "adata" / "A.h5ad"


def test_the_expression_beside_the_patches_tells(tmp_path, caplog):
    path = write_hest(tmp_path, CENTRES - SIZE // 2)
    order = RNG.permutation(30)[:20]  # some spots have no expression
    write_adata(tmp_path, [BARCODES[i] for i in order], CENTRES[order])
    with open_patches(path) as patches:
        placed = patch_centres(patches)
    np.testing.assert_array_equal(placed.coords, CENTRES)
    assert placed.convention == "centre"
    assert not caplog.records


@pytest.mark.parametrize(
    ("convention", "shift", "said"), [("top-left", SIZE / 2, 0), ("centre", 0, 0), (None, 0, 1)]
)
def test_without_expression_the_file_tells_or_a_warning_says(
    tmp_path, caplog, convention, shift, said
):
    path = write_hest(tmp_path, CENTRES)
    if convention:
        with h5py.File(path, "r+") as file:
            file["coords"].attrs["convention"] = convention
    with open_patches(path) as patches:
        placed = patch_centres(patches)
    np.testing.assert_array_equal(placed.coords, CENTRES + shift)
    assert placed.convention == (None if said else "centre")
    assert len(caplog.records) == said


def test_places_are_read_without_the_counts(tmp_path):
    path = write_adata(tmp_path)
    barcodes, coords = read_positions(path)
    assert barcodes == BARCODES
    np.testing.assert_array_equal(coords, CENTRES)
    with resealed(path) as file:
        del file["obsm/spatial"]
    assert read_positions(path) is None


def test_a_slide_of_corners_and_its_expression_has_centres(tmp_path):
    path = tmp_path / "A.h5"
    with write_embeddings(path, BARCODES, CENTRES - 112, 1, {"patch_size_level0": 224}) as writer:
        writer.append(np.ones((30, 1)))
    np.testing.assert_array_equal(load_slide(path, write_adata(tmp_path)).coords, CENTRES)
    np.testing.assert_array_equal(load_slide(path).coords, CENTRES - 112)
