import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from artefacts import edit_h5, read_embeddings
from foreign import coords_attrs, features, grid, save_h5, write_clam, write_trident

from stflow_graph.errors import BadInput
from stflow_graph.io.embeddings import open_embeddings

CORNERS = grid()
X = features(len(CORNERS))


def test_trident_features_have_centres_and_barcodes(tmp_path):
    path = write_trident(tmp_path / "S1.h5", CORNERS, X)
    with open_embeddings(path) as result:
        np.testing.assert_array_equal(result.coords, CORNERS + 256)
        np.testing.assert_array_equal(result.read(), X)
        assert result.barcodes[:2] == ["512x0", "1024x0"]
        assert result.encoder == "uni_v1"
        assert result.attrs == {
            "convention": "centre",
            "patch_size_level0": 512,
            "um_per_px": 0.25,
            "um_per_px_estimated": True,
        }


def test_features_with_a_batch_axis_are_the_same(tmp_path):
    path = write_trident(tmp_path / "S1.h5", CORNERS, X[None])
    with open_embeddings(path) as result:
        np.testing.assert_array_equal(result.read(), X)
        blocks = [x for _, x in result.blocks(4)]
    np.testing.assert_array_equal(np.concatenate(blocks), X)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("uni_v2", "uni_v2"),
        ("hoptimus0", "h_optimus_0"),
        ("kaiko-vitb8", "kaiko_b8"),
        ("h0-mini", "h0_mini"),
        ("resnet50_trunc", "resnet50"),
        ("our-own", None),
    ],
)
def test_encoders_have_our_names(tmp_path, name, ours):
    by_attribute = write_trident(tmp_path / "a" / "S1.h5", CORNERS, X, encoder=name)
    by_folder = write_trident(tmp_path / f"features_{name}" / "S1.h5", CORNERS, X, encoder=None)
    for path in (by_attribute, by_folder):
        with open_embeddings(path) as result:
            assert result.encoder == ours


@pytest.mark.parametrize(
    "changes",
    [
        {"patch_size_level0": None},
        {"patch_size_level0": None, "level0_magnification": None, "downsample": (2.0, 2.0)},
        {"patch_size": None, "overlap": None},
        {"patch_size": 512, "patch_size_level0": None, "patch_level": 0, "level0_magnification": 0},
    ],
)
def test_the_size_of_patches_is_taken_from_whatever_tells_it(tmp_path, changes, caplog):
    path = write_trident(tmp_path / "S1.h5", CORNERS, X, attrs=coords_attrs(**changes))
    np.testing.assert_array_equal(read_embeddings(path).coords, CORNERS + 256)
    assert not caplog.records


def test_the_magnification_gives_an_estimate_or_nothing(tmp_path):
    for magnification, expected in ((20, 0.5), (80, 0.125), (None, None), (-1, None)):
        attrs = coords_attrs(level0_magnification=magnification)
        path = write_trident(tmp_path / "S1.h5", CORNERS, X, attrs=attrs)
        assert read_embeddings(path).attrs.get("um_per_px") == expected


def test_clam_features_take_their_size_from_the_file_of_places(tmp_path, caplog):
    tensor = write_clam(tmp_path, "S1", CORNERS, X)
    for path in (tensor, tmp_path / "h5_files" / "S1.h5"):
        result = read_embeddings(path)
        np.testing.assert_array_equal(result.coords, CORNERS + 256)
        np.testing.assert_array_equal(result.x, X)
        assert "um_per_px" not in result.attrs
    assert not caplog.records


def test_trident_tensors_find_their_places(tmp_path):
    save_h5(tmp_path / "patches/S1_patches.h5", {"coords": CORNERS}, {"coords": coords_attrs()})
    (tmp_path / "features_uni_v1").mkdir()
    torch.save(torch.from_numpy(X).half(), tmp_path / "features_uni_v1/S1.pt")
    with open_embeddings(tmp_path / "features_uni_v1/S1.pt") as result:
        assert (result.encoder, result.attrs["um_per_px"]) == ("uni_v1", 0.25)
        np.testing.assert_array_equal(result.coords, CORNERS + 256)
        np.testing.assert_allclose(result.read(), X, atol=2e-3)


def test_a_size_that_is_stated_nowhere_is_the_step_and_said(tmp_path, caplog):
    path = save_h5(tmp_path / "S1.h5", {"features": X, "coords": CORNERS})
    np.testing.assert_array_equal(read_embeddings(path).coords, CORNERS + 256)
    assert "S1.h5: without the size of its patches" in caplog.text
    assert "512 px" in caplog.text


class _Touch:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


NAN = np.where(np.arange(len(X))[:, None] == 3, np.nan, X).astype(np.float32)
LINK = h5py.ExternalLink("/etc/passwd", "/")


def _check_refused(path, message, monkeypatch):
    monkeypatch.chdir(path.parent)
    with pytest.raises(BadInput, match=message) as caught:
        read_embeddings(path)
    assert "S1" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("features", None, "'embeddings' or 'features'"),
        ("coords", None, "keys 'features', expected 'coords'"),
        ("features", X[:-1], "40 rows, expected 41, one per place"),
        ("features", X[0], r"\(10,\), expected \(N, channels\)"),
        ("features", np.stack([X, X]), r"\(2, 41, 10\)"),
        ("features", X[:, :0], r"\(41, 0\)"),
        ("features", X.astype(complex), "complex128.*real numbers"),
        ("features", NAN, r"features: found 1 of 41 rows not finite, .*\[3\]"),
        ("coords", CORNERS[:0], "places: found 0 spots"),
        ("coords", np.zeros((41, 3)), r"\(41, 3\)"),
        ("coords", 3, "0 spots"),
        ("coords", np.where(CORNERS == 512, np.nan, CORNERS), "not finite"),
        ("coords", np.vstack([CORNERS[:-1], CORNERS[:1]]), "1 duplicate"),
        ("coords", CORNERS * 10, "of 41 corners beyond 20000 x 16000"),
        ("coords", CORNERS // 4, "128 px apart, though 512 px wide"),
        ("coords", CORNERS // 2, "256 px apart, .*overlapping by 0%.*multiply the places by 2"),
        ("coords", CORNERS * 0.25, "level-0 pixels"),
        ("x", LINK, "ExternalLink"),
    ],
)
def test_bad_feature_files_are_refused_in_one_line(tmp_path, key, value, message, monkeypatch):
    path = write_trident(tmp_path / "S1.h5", CORNERS, X)
    edit_h5(path, key, value)
    _check_refused(path, message, monkeypatch)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.from_numpy(X[:-1]), "40 rows, expected 41"),
        (torch.zeros(41), r"\(41,\)"),
        (torch.full((41, 3), float("inf")), "41 of 41 rows not finite"),
        ({"features": torch.zeros(41, 3)}, "dict, expected one tensor"),
        (pickle.dumps(_Touch()), "content"),
        (b"a", "one tensor"),
        (None, "No such file"),
    ],
)
def test_bad_tensors_are_refused_in_one_line(tmp_path, value, message, monkeypatch):
    path = write_clam(tmp_path, "S1", CORNERS, X)
    path.unlink()
    if isinstance(value, bytes):
        path.write_bytes(value)
    elif value is not None:
        torch.save(value, path)
    _check_refused(path, message, monkeypatch)


def test_a_tensor_without_places_is_refused(tmp_path, monkeypatch):
    torch.save(torch.from_numpy(X), tmp_path / "S1.pt")
    _check_refused(tmp_path / "S1.pt", r"coords: found none.*h5_files", monkeypatch)


def test_overlapping_patches_may_stand_close(tmp_path):
    attrs = coords_attrs(overlap=192)
    path = write_trident(tmp_path / "S1.h5", CORNERS // 4, X, attrs=attrs)
    np.testing.assert_array_equal(read_embeddings(path).coords, CORNERS // 4 + 256)


def test_places_at_half_the_resolution_are_suspected_where_no_overlap_is_stated(tmp_path, caplog):
    path = write_trident(tmp_path / "S1.h5", CORNERS // 2, X, attrs=coords_attrs(overlap=None))
    read_embeddings(path)
    assert "coords: patches 256 px apart, though 512 px wide: either they overlap" in caplog.text


def test_a_lone_patch_has_no_neighbours(tmp_path):
    path = write_trident(tmp_path / "S1.h5", CORNERS[:1], X[:1])
    np.testing.assert_array_equal(read_embeddings(path).coords, CORNERS[:1] + 256)
