from __future__ import annotations

import logging

import numpy as np
import pytest
import scipy.sparse as sp

from stflow_graph.data.load import check_one_patch_size, load_slide
from stflow_graph.errors import BadInput
from stflow_graph.io.embeddings import write_embeddings
from stflow_graph.io.expression import write_expression

N = 6


def write(folder, embedded, expressed, size=None):
    x = np.arange(len(embedded) * 2, dtype=np.float32).reshape(-1, 2)
    attrs = {"um_per_px": 0.5} | ({} if size is None else {"patch_size_level0": size})
    with write_embeddings(folder / "A.h5", embedded, x * 10, 2, attrs) as writer:
        writer.append(x)
    counts = sp.csr_matrix(np.arange(len(expressed) * 2).reshape(-1, 2))
    write_expression(
        folder / "A.h5ad", counts, expressed, ["G", "H"], np.zeros((len(expressed), 2)), um_per_px=1
    )
    return folder / "A.h5", folder / "A.h5ad"


def test_rows_are_matched_by_barcode_not_by_order(tmp_path):
    embedded = [f"b{i}" for i in range(N)]
    slide = load_slide(*write(tmp_path, embedded, embedded[::-1]), ["H"])
    assert slide.barcodes == embedded
    np.testing.assert_allclose(slide.y[:, 0], np.log1p(np.arange(1, 2 * N, 2)[::-1]), rtol=1e-6)
    assert (slide.name, len(slide), slide.um_per_px) == ("A", N, 0.5)
    data = slide.to_data()
    assert data.x.shape == (N, 2)
    assert data.pos.shape == (N, 2)


def test_spots_without_expression_are_left_out_and_said(tmp_path, caplog):
    embedded = [f"b{i}" for i in range(N)]
    with caplog.at_level(logging.WARNING):
        slide = load_slide(*write(tmp_path, embedded, embedded[2:]))
    assert slide.barcodes == embedded[2:]
    np.testing.assert_array_equal(slide.x[0], [4, 5])
    assert "2 of 6 spots" in caplog.text


def test_measured_spots_without_embeddings_are_left_out_and_said(tmp_path, caplog):
    measured = [f"b{i}" for i in range(N)]
    with caplog.at_level(logging.WARNING):
        slide = load_slide(*write(tmp_path, measured[2:], measured))
    assert slide.barcodes == measured[2:]
    assert "2 of 6 measured spots (33%) have no embeddings in" in caplog.text


def test_too_few_measured_spots_with_embeddings_are_refused(tmp_path):
    measured = [f"b{i}" for i in range(N)]
    files = write(tmp_path, measured[4:], measured)
    message = r"A.h5ad: embeddings: found 2 of 6 measured spots in .*, expected at least 50%"
    with pytest.raises(BadInput, match=f"{message}.*--allow-missing-spots"):
        load_slide(*files, min_embedded=0.5)
    assert len(load_slide(*files, min_embedded=1 / 3)) == 2


def test_barcodes_that_do_not_match_are_counted_and_three_shown(tmp_path):
    embedded = [f"b{i}" for i in range(N)]
    files = write(tmp_path, embedded, [f"{b}-1" for b in embedded])
    with pytest.raises(BadInput, match=r"0 of 6 barcodes.*\['b0', 'b1', 'b2'\].*suffixes"):
        load_slide(*files)


def test_without_expression_only_embeddings_are_read(tmp_path):
    slide = load_slide(write(tmp_path, ["a", "b"], ["c", "d"])[0])
    assert slide.y is None
    assert "y" not in slide.to_data()


def test_patches_of_different_physical_sizes_are_refused(tmp_path):
    def slide(name, size):
        (tmp_path / name).mkdir()
        embedded = [f"b{i}" for i in range(N)]
        return load_slide(*write(tmp_path / name, embedded, embedded, size))

    one, alike, unknown = slide("one", 224.0), slide("alike", 240.0), slide("unknown", None)
    assert (one.patch_um, unknown.patch_um) == (112, None)
    check_one_patch_size([unknown, one, alike])
    with pytest.raises(BadInput, match=r"found 256 µm, expected 112 µm.*--allow-patch-size"):
        check_one_patch_size([unknown, one, slide("large", 512.0)])
