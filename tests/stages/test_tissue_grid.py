from __future__ import annotations

import numpy as np
import pytest
from foreign import halved, tissue_on_glass, write_svs
from PIL import Image

from stflow_graph.errors import BadInput
from stflow_graph.images.open import open_image
from stflow_graph.io.patches import open_patches
from stflow_graph.stages.tissue_grid import prepare_grid

SIZES = {"patch_px": 16, "patch_um": 20.0}  # 40 px of the slide


@pytest.fixture
def svs(tmp_path):
    return write_svs(tmp_path / "S1.svs", tissue_on_glass(), "0.5")


def test_patches_lie_on_the_tissue_and_only_there(svs, tmp_path):
    done = prepare_grid(svs, tmp_path / "root", name="S1", **SIZES)
    assert (done.n_rows, done.n_columns, done.um_per_px) == (17, 22, 0.5)
    assert done.tissue == pytest.approx(400 * 400 / (900 * 700), abs=0.02)
    with open_patches(done.patches) as patches, open_image(svs) as image:
        centres = patches.coords
        assert (patches.convention, patches.size_level0) == ("centre", 40)
        inside = (centres >= [200, 100]).all(axis=1) & (centres <= [600, 500]).all(axis=1)
        assert inside.all()
        # 10 x 10 whole patches, and no row or column of those that half lie on glass is missing
        assert len(patches) == done.n_patches == 11 * 10
        for i in (0, 57):
            row, column = map(int, patches.barcodes[i].split("x"))
            np.testing.assert_array_equal(centres[i], [40 * column + 20, 40 * row + 20])
            expected = image.read_patch(*centres[i], 40, 16)
            np.testing.assert_array_equal(patches.images[i], expected)


def test_a_grid_that_would_run_for_ever_is_refused(svs, tmp_path):
    with pytest.raises(BadInput, match=r"pitch: found a grid of [\d,]+ x [\d,]+ patches"):
        prepare_grid(svs, tmp_path / "root", name="S1", **SIZES, pitch_um=0.001)
    assert not (tmp_path / "root").exists()


def test_a_pitch_and_a_share_of_tissue_can_be_asked_for(svs, tmp_path):
    counts = {}
    for pitch in (10.0, 20.0, 40.0):
        for share in (0.0, 0.1, 1.0):
            options = {"pitch_um": pitch, "min_tissue": share, "overwrite": True}
            done = prepare_grid(svs, tmp_path / "root", name="S1", **SIZES, **options)
            counts[pitch, share] = done.n_patches
            if share == 0:
                assert done.n_patches == done.n_rows * done.n_columns
    for pitch in (10.0, 20.0, 40.0):
        assert counts[pitch, 0.0] > counts[pitch, 0.1] >= counts[pitch, 1.0] > 0
    assert counts[10.0, 0.1] > 3 * counts[20.0, 0.1] > 9 * counts[40.0, 0.1]


def test_what_is_there_is_kept_and_another_image_refused(svs, tmp_path):
    first = prepare_grid(svs, tmp_path / "root", name="S1", **SIZES)
    content = first.patches.read_bytes()
    again = prepare_grid(svs, tmp_path / "root", name="S1", **SIZES)
    assert again.up_to_date
    assert (again.n_patches, again.tissue) == (first.n_patches, first.tissue)
    write_svs(svs, tissue_on_glass()[::-1], "0.5")
    with pytest.raises(BadInput, match=r"S1.h5: output: .*image_sha256.*--overwrite"):
        prepare_grid(svs, tmp_path / "root", name="S1", **SIZES)
    assert first.patches.read_bytes() == content
    with pytest.raises(BadInput, match="another image_sha256, pitch_um"):
        prepare_grid(svs, tmp_path / "root", name="S1", **SIZES, pitch_um=40)


def test_the_scale_as_given_wins_and_the_difference_is_said(svs, tmp_path, caplog):
    done = prepare_grid(svs, tmp_path / "root", name="S1", um_per_px=0.8, **SIZES)
    assert done.um_per_px == 0.8
    assert "um_per_px 0.8 as given overrides 0.5 in the files" in caplog.text


def test_a_bad_image_and_a_wrong_scale_are_refused_before_the_image_is_read(
    svs, tmp_path, monkeypatch
):
    monkeypatch.setattr("stflow_graph.stages.tissue_grid.sha256", pytest.fail)
    out = tmp_path / "root"
    with pytest.raises(BadInput, match="found 1 as given, 0.5 in the image's metadata"):
        prepare_grid(svs, out, name="S1", um_per_px=1.0, **SIZES)
    Image.fromarray(tissue_on_glass()).save(tmp_path / "S1.png")
    with pytest.raises(BadInput, match="um_per_px: found none in the file"):
        prepare_grid(tmp_path / "S1.png", out, name="S1", **SIZES)
    Image.fromarray(tissue_on_glass()).convert("L").save(tmp_path / "S1.png")
    with pytest.raises(BadInput, match="colours: found mode L"):
        prepare_grid(tmp_path / "S1.png", out, name="S1", um_per_px=0.5, **SIZES)
    assert not out.exists()


def test_a_slide_at_twice_the_resolution_gives_the_same_grid(tmp_path):
    """µm decide, not pixels."""
    fine = tissue_on_glass(1800, 1400)
    names = {"fine": (fine, 0.25), "coarse": (halved(fine), 0.5)}
    found = {}
    for name, (pixels, um_per_px) in names.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        done = prepare_grid(
            tmp_path / f"{name}.png", tmp_path / "root", name=name, um_per_px=um_per_px, **SIZES
        )
        with open_patches(done.patches) as patches:
            found[name] = (patches.barcodes, patches.images[()].astype(int))
    assert found["fine"][0] == found["coarse"][0]
    assert np.abs(found["fine"][1] - found["coarse"][1]).mean() < 2


def _png(pixels):
    def make(path):
        Image.fromarray(pixels).save(path, "PNG")

    return make


GLASS = np.full((200, 200, 3), 244, np.uint8)
BAD = {
    "glass": (_png(GLASS), {"um_per_px": 0.5}, r"tissue: found 0 of 25 .*lower --min-tissue"),
    "small": (_png(GLASS[:39]), {"um_per_px": 0.5}, r"200 x 39 px.*one patch of 40 px"),
    "no scale": (_png(GLASS), {}, "um_per_px: found none in the file.*micrometres per pixel"),
    "wrong scale": (_png(GLASS), {"um_per_px": 50}, "0.4 px wide"),
    "text": (lambda p: p.write_text("a slide"), {"um_per_px": 0.5}, "no image"),
    "missing": (lambda p: None, {"um_per_px": 0.5}, "No such file"),
    "16 bits": (_png(GLASS[..., 0].astype(np.uint16)), {"um_per_px": 0.5}, "16 bits"),
    "name": (_png(GLASS), {"um_per_px": 0.5, "name": "../up"}, "id: found '../up'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_slides_are_refused_and_nothing_is_left(tmp_path, kind):
    make, options, message = BAD[kind]
    make(tmp_path / "image")
    with pytest.raises(BadInput, match=message) as caught:
        prepare_grid(tmp_path / "image", tmp_path / "root", **{"name": "S", **SIZES, **options})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("root/**/*"))
