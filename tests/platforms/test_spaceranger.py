import numpy as np
import pandas as pd
import pytest
from platform_files import (
    UM_PER_PX,
    corrupt,
    only_slide,
    write_tenx_folder,
    write_visium,
    write_visium_hd,
)

from stflow_graph.errors import BadInput

MATRIX = "filtered_feature_bc_matrix.h5"
POSITIONS, SCALES = "spatial/tissue_positions.csv", "spatial/scalefactors_json.json"


@pytest.mark.parametrize("release", [1, 2])
def test_visium_rows_are_y_and_only_tissue_is_selected(tmp_path, release):
    inside = write_visium(tmp_path / "sample", release)
    source = only_slide(tmp_path / "sample", "visium")
    assert (source.name, source.platform) == ("sample", f"Visium, Space Ranger {release}")
    assert set(source.inputs) == {"counts", "spots", "scalefactors"}
    data = source.read()
    chosen = np.flatnonzero(data.spots.selected)
    assert [data.spots.barcodes[i] for i in chosen] == list(inside.barcode)
    expected = inside[["pxl_col_in_fullres", "pxl_row_in_fullres"]]
    np.testing.assert_array_equal(data.spots.coords[chosen], expected)
    assert data.um_per_px == pytest.approx(UM_PER_PX, rel=0.01)
    assert sorted(data.expression.barcodes) == sorted(inside.barcode)


def test_without_scale_factors_the_arrays_geometry_is_enough(tmp_path):
    write_visium(tmp_path)
    (tmp_path / "outs/spatial/scalefactors_json.json").unlink()
    assert only_slide(tmp_path, "visium").read().um_per_px == pytest.approx(UM_PER_PX, rel=0.01)


def test_without_a_second_row_the_scale_factors_are_enough(tmp_path):
    write_visium(tmp_path)
    corrupt(tmp_path / "outs" / POSITIONS, lambda table: table.assign(array_row=0))
    assert only_slide(tmp_path, "visium").read().um_per_px == pytest.approx(UM_PER_PX)


def test_outs_itself_a_folder_of_mtx_and_a_prefix_are_the_same_slide(tmp_path):
    write_visium(tmp_path / "s")
    outs = tmp_path / "s/outs"
    first = only_slide(outs, "visium").read()
    matrix = outs / "filtered_feature_bc_matrix.h5"
    prefixed = matrix.rename(outs / "V1_Breast_filtered_feature_bc_matrix.h5")
    source = only_slide(outs, "visium", name="other")
    assert source.name == "other"
    assert (source.read().expression.counts != first.expression.counts).nnz == 0
    prefixed.unlink()
    full = np.zeros((len(first.expression.barcodes), 6), dtype=int)
    full[:, :5] = first.expression.counts.toarray()
    write_tenx_folder(outs / "filtered_feature_bc_matrix", full, first.expression.barcodes)
    source = only_slide(outs, "visium")
    assert set(source.inputs) == {"counts", "features", "barcodes", "spots", "scalefactors"}
    assert (source.read().expression.counts != first.expression.counts).nnz == 0


@pytest.mark.parametrize("asked", [None, 8, 16])
def test_visium_hd_bins_are_chosen_by_size(tmp_path, asked):
    inside = write_visium_hd(tmp_path / "hd")
    source = only_slide(tmp_path / "hd", "visium-hd", bin_um=asked)
    size = asked or 8
    assert (source.name, source.platform) == ("hd", "Visium HD, Space Ranger 3.1.2")
    assert source.unit == f"bins of {size} µm under tissue"
    data = source.read()
    assert data.um_per_px == 0.5 * size / 8
    chosen = np.flatnonzero(data.spots.selected)
    expected = inside[["pxl_col_in_fullres", "pxl_row_in_fullres"]]
    np.testing.assert_array_equal(data.spots.coords[chosen], expected)
    assert data.expression.barcodes[0].startswith(f"s_{size:03d}um")


@pytest.mark.parametrize(
    "part", ["outs", "outs/binned_outputs", "outs/binned_outputs/square_008um"]
)
def test_visium_hd_may_be_given_at_any_depth(tmp_path, part):
    write_visium_hd(tmp_path / "hd", sizes=(8,))
    assert only_slide(tmp_path / "hd" / part, "visium-hd").read().um_per_px == 0.5


def test_bins_that_are_not_there_are_refused(tmp_path):
    write_visium_hd(tmp_path)
    with pytest.raises(
        BadInput, match="found bins of 8 µm, 16 µm, expected bins of 2 µm.*--bin-um"
    ):
        only_slide(tmp_path, "visium-hd", bin_um=2)


def _hires(table):
    return table.assign(**{c: 0.17 * table[c] for c in table if c.startswith("pxl")})


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (MATRIX, None, f"counts: found 'spatial', expected {MATRIX} or"),
        (MATRIX, "x", "expected an HDF5 file"),
        (POSITIONS, None, "positions: found 'scale.*, expected tissue_positions.parquet or"),
        (POSITIONS, lambda t: t.drop(columns="pxl_row_in_fullres"), "columns: found .*'pxl_col_in"),
        (POSITIONS, lambda t: t[:0], "found 0 spots"),
        (POSITIONS, lambda t: pd.concat([t, t[:1]]), "1 duplicate"),
        (POSITIONS, lambda t: t.replace({"pxl_row_in_fullres": 20}, np.nan), "could not convert"),
        (POSITIONS, _hires, "coordinates: found 23.* µm/px.*expected 4 µm/px as in scalefactors"),
        (POSITIONS, lambda t: t.assign(in_tissue=2), "in_tissue: found"),
        (POSITIONS, lambda t: t.assign(array_row=0.5), "array_row: found"),
        (SCALES, "{", "expected JSON"),
        (SCALES, "[]", "a JSON object"),
        (SCALES, {"spot_diameter_fullres": 0}, "spot_diameter_fullres: found 0"),
        (SCALES, {"spot_diameter_fullres": "1"}, "spot_diameter_fullres: found '1'"),
    ],
)
def test_bad_visium_folders_are_refused(tmp_path, file, change, message):
    write_visium(tmp_path)
    corrupt(tmp_path / "outs" / file, change)
    with pytest.raises(BadInput, match=message):
        only_slide(tmp_path, "visium").read()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bin_size_um": 16.0}, "bin_size_um: found 16.0, expected 8"),
        ({"microns_per_pixel": 5.0}, "coordinates: found 0.5 µm/px"),
        ({"microns_per_pixel": float("inf")}, "microns_per_pixel: found inf"),
    ],
)
def test_bad_scales_of_bins_are_refused(tmp_path, values, message):
    write_visium_hd(tmp_path)
    corrupt(tmp_path / "outs/binned_outputs/square_008um" / SCALES, values)
    with pytest.raises(BadInput, match=message):
        only_slide(tmp_path, "visium-hd").read()
