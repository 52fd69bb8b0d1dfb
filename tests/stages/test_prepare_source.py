"""The prepare stage on folders as platforms write them."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from platform_files import (
    SYMBOLS,
    write_hest,
    write_image,
    write_stimage,
    write_visium,
    write_visium_hd,
    write_xenium,
)

from stflow_graph.errors import BadInput, SomeFailed
from stflow_graph.images.open import open_image
from stflow_graph.io.expression import read_expression
from stflow_graph.io.h5ad import read_h5ad
from stflow_graph.io.patches import open_patches
from stflow_graph.platforms.source import SourceOptions
from stflow_graph.stages.prepare import prepare

SIZES = {"patch_px": 12, "patch_um": 80.0}
WRITERS = {
    "visium": write_visium,
    "visium-hd": write_visium_hd,
    "xenium": write_xenium,
    "hest": write_hest,
    "stimage": lambda folder: write_stimage(folder, "A"),
}


def write(kind, folder):
    if kind in ("visium-hd", "xenium"):
        pytest.importorskip("pyarrow", reason="Parquet is an extra")
    WRITERS[kind](folder)
    return SourceOptions(name=None if kind in ("hest", "stimage") else "S", image=_image(folder))


def _image(folder):
    return write_image(folder.parent / "he.png")


NOTICES = {
    "visium": "S: Visium, Space Ranger 2, 37 spots under tissue, 3.999 µm/px",
    "visium-hd": "S: Visium HD, Space Ranger 3.1.2, 48 bins of 8 µm under tissue, 0.500 µm/px",
    "xenium": "S: Xenium, 2.0.0.6, 40 cells, 0.425 µm/px",
    "hest": "TENX1: HEST-1k, 24 spots, 1.000 µm/px",
    "stimage": "A: STimage-1K4M, 20 spots, 4.997 µm/px",
}


@pytest.mark.parametrize("kind", WRITERS)
def test_patches_show_the_image_around_each_spot_of_the_file(tmp_path, kind):
    options = write(kind, tmp_path / "in")
    sizes = {"patch_px": 12, "patch_um": 20.0 if kind in ("visium-hd", "xenium") else 80.0}
    notices = []
    arguments = (tmp_path / "in", tmp_path / "out", options)
    (done,) = prepare(*arguments, **sizes, notice=notices.append)
    assert notices == [NOTICES[kind]]
    expression = read_expression(done.adata)
    assert expression.um_per_px == done.um_per_px
    edge = sizes["patch_um"] / done.um_per_px
    with open_patches(done.patches) as patches, open_image(options.image) as image:
        assert patches.barcodes == expression.barcodes
        assert len(patches) == done.n_spots > 19
        for i, (x, y) in enumerate(expression.coords):
            np.testing.assert_array_equal(patches.images[i], image.read_patch(x, y, edge, 12))
    (again,) = prepare(*arguments, **sizes, notice=notices.append)
    assert again.up_to_date
    assert len(notices) == 1
    assert {**vars(again), "up_to_date": False} == vars(done)


@pytest.mark.parametrize("names", ["symbols", "ids"])
def test_the_h5ad_keeps_both_names_of_a_gene(tmp_path, names):
    write_visium(tmp_path / "s")
    options = SourceOptions(image=_image(tmp_path / "s"), gene_names=names)
    (done,) = prepare(tmp_path / "s", tmp_path / "out", options, **SIZES)
    assert done.slide == "s"
    var = read_h5ad(done.adata).var
    assert list(var["gene_symbols"]) == SYMBOLS[:5]
    assert list(var["gene_ids"]) == [f"ENSG{i:03d}" for i in range(5)]
    if names == "ids":
        assert list(var.index) == list(var["gene_ids"])
    other = SourceOptions(
        image=options.image, gene_names="ids" if names == "symbols" else "symbols"
    )
    with pytest.raises(BadInput, match="made with another gene_names"):
        prepare(tmp_path / "s", tmp_path / "out", other, **SIZES)


@pytest.mark.parametrize(
    "name",
    [
        "filtered_feature_bc_matrix.h5",
        "spatial/scalefactors_json.json",
        "spatial/tissue_positions.csv",
    ],
)
def test_every_file_that_is_read_is_in_the_record(tmp_path, name):
    write_visium(tmp_path / "s")
    options = SourceOptions(image=_image(tmp_path / "s"))
    prepare(tmp_path / "s", tmp_path / "out", options, **SIZES)
    path = tmp_path / "s/outs" / name
    if name.endswith(".h5"):
        with h5py.File(path, "r+") as file:
            file.attrs["note"] = "another"
    else:
        path.write_text(path.read_text() + "\n")
    role = {"h5": "counts", "json": "scalefactors", "csv": "spots"}[name.split(".")[-1]]
    with pytest.raises(BadInput, match=f"made with another {role}_sha256"):
        prepare(tmp_path / "s", tmp_path / "out", options, **SIZES)
    if role == "scalefactors":
        path.unlink()
        with pytest.raises(BadInput, match=f"made with another {role}_sha256"):
            prepare(tmp_path / "s", tmp_path / "out", options, **SIZES)


def test_space_ranger_without_an_image_asks_for_it(tmp_path):
    write_visium(tmp_path / "s")
    with pytest.raises(BadInput, match="image: found nothing.*give --image"):
        prepare(tmp_path / "s", tmp_path / "out", **SIZES)
    assert not (tmp_path / "out").exists()


def test_a_scale_that_the_user_gives_wins_and_a_strange_one_is_told(tmp_path, caplog):
    write_visium(tmp_path / "s")
    options = SourceOptions(image=_image(tmp_path / "s"), um_per_px=2.0)
    (done,) = prepare(tmp_path / "s", tmp_path / "out", options, **SIZES)
    assert done.um_per_px == 2.0
    assert "um_per_px 2 as given overrides 3.999 in the files" in caplog.text


# HEST-1k's own patches: 20 px that show 20 µm, of every second spot, placed by their corners
HEST_SIZES = {"patch_px": 20, "patch_um": 20.0}


@pytest.mark.parametrize("convention", ["corner", "centre"])
def test_patches_that_are_there_are_taken_as_they_are(tmp_path, convention):
    adata = write_hest(tmp_path / "in")
    source = tmp_path / "in/patches/TENX1.h5"
    if convention == "centre":
        with h5py.File(source, "r+") as file:
            file["coords"][...] += 10
    (tmp_path / "in/wsis/TENX1.tif").write_bytes(b"not opened")
    (done,) = prepare(tmp_path / "in", tmp_path / "out", **HEST_SIZES)
    assert (done.n_spots, done.not_selected) == (12, 12)
    with open_patches(done.patches) as ours, open_patches(source) as theirs:
        assert ours.barcodes == theirs.barcodes == list(adata.obs_names[::2])
        np.testing.assert_array_equal(ours.images[()], theirs.images[()])
        np.testing.assert_array_equal(ours.coords, adata.obsm["spatial"][::2])
        assert ours.convention == "centre"


def test_patches_of_another_size_are_cut_from_the_image_if_it_is_there(tmp_path):
    write_hest(tmp_path / "in")
    (done,) = prepare(tmp_path / "in", tmp_path / "out", patch_px=12, patch_um=20.0)
    assert (done.n_spots, done.not_selected) == (24, 0)
    (tmp_path / "in/wsis/TENX1.tif").unlink()
    with pytest.raises(BadInput, match="20 px that show 20 µm, and no image.*--patch-px 20"):
        prepare(tmp_path / "in", tmp_path / "b", patch_px=12, patch_um=20.0)


def test_patches_of_another_place_are_refused(tmp_path):
    write_hest(tmp_path / "in")
    with h5py.File(tmp_path / "in/patches/TENX1.h5", "r+") as file:
        file["coords"][...] *= 2
    with pytest.raises(BadInput, match="coords: found .* px from the spots"):
        prepare(tmp_path / "in", tmp_path / "out", **HEST_SIZES)
    assert not (tmp_path / "out").exists()


def test_a_bad_sample_does_not_stop_the_others_and_one_can_be_chosen(tmp_path):
    for seed, name in enumerate(("A", "B")):
        write_hest(tmp_path / "in", name, seed)
    (tmp_path / "in/metadata/B.json").write_text("{")
    arguments = (tmp_path / "in", tmp_path / "out")
    with pytest.raises(SomeFailed, match="1 of 2 slides failed: B: "):
        prepare(*arguments, **HEST_SIZES)
    assert not (tmp_path / "out/splits").exists()  # no kit, so patients are unknown
    (done,) = prepare(*arguments, SourceOptions(name="A"), **HEST_SIZES)
    assert done.up_to_date
