import h5py
import numpy as np
import pytest
from artefacts import edit_h5, make_foreign, read_embeddings

from stflow_graph.errors import BadInput
from stflow_graph.io.embeddings import read_attrs, write_embeddings


def write(path, n=5, width=3, **attrs):
    x = np.random.default_rng(0).normal(size=(n, width)).astype(np.float32)
    coords = np.arange(2 * n).reshape(n, 2)
    barcodes = [f"spot-{10**i}" for i in range(n)]
    with write_embeddings(path, barcodes, coords, width, attrs) as writer:
        writer.append(x[:2])
        writer.append(x[2:])
    return x, coords, barcodes


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "a.h5"
    x, coords, barcodes = write(path, encoder="e", um_per_px=0.5)
    result = read_embeddings(path)
    np.testing.assert_array_equal(result.x, x)
    np.testing.assert_array_equal(result.coords, coords)
    assert result.barcodes == barcodes
    assert read_attrs(path)["encoder"] == result.attrs["encoder"] == "e"


def test_the_same_data_give_the_same_bytes(tmp_path):
    for name in ("a.h5", "b.h5"):
        write(tmp_path / name)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.mark.parametrize("key", ["barcodes", "barcode"])
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
@pytest.mark.parametrize("kind", ["S16", object])
def test_other_tools_spellings_are_accepted(tmp_path, key, shape, kind):
    path = tmp_path / "a.h5"
    x, _, barcodes = write(path)
    edit_h5(path, "barcodes", None)
    edit_h5(path, key, np.array(barcodes, dtype=kind).reshape(shape))
    edit_h5(path, "features", x.astype(">f2"))
    edit_h5(path, "embeddings", None)
    result = read_embeddings(path)
    assert result.barcodes == barcodes
    assert result.x.dtype == np.float32


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("embeddings", None, "'embeddings' or 'features'.*|keys"),
        ("barcodes", None, "keys 'coords', 'embeddings'"),
        ("barcodes", np.array([b"a", b"b"]), "5 rows"),
        ("barcodes", np.array([b"a", b"a", b"b", b"c", b"d"]), "duplicate"),
        ("barcodes", np.arange(5), "int64.*text"),
        ("embeddings", np.array([b"x"] * 5).reshape(5, 1), r"\|S1.*real numbers"),
        ("embeddings", np.zeros((5, 2, 2)), r"\(5, 2, 2\)"),
        ("embeddings", np.full((5, 3), np.nan), "5 of 5 rows not finite"),
        ("coords", np.zeros((2, 5)), r"\(2, 5\)"),
        ("coords", np.zeros((4, 2)), "4 rows.*5 rows"),
        ("coords", np.array([[0, 0]] * 4 + [[np.nan, 0]]), r"1 of 5.*\[4\]"),
        ("x", h5py.ExternalLink("/etc/passwd", "/"), "ExternalLink"),
        ("x", h5py.SoftLink("/nowhere"), "SoftLink"),
    ],
)
def test_bad_content_is_refused_with_its_field(tmp_path, key, value, message):
    path = tmp_path / "a.h5"
    write(path)
    edit_h5(path, key, value)
    with pytest.raises(BadInput, match=message) as caught:
        read_embeddings(path)
    assert "a.h5" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_thousands_of_spots_at_one_place_are_refused(tmp_path):
    """All of them would be neighbours."""
    places = np.random.default_rng(0).integers(0, 10_000, (1500, 2))
    for n, message in ((1000, None), (1001, r"coords: found 1,00\d of 1,500 spots at \(5, 7\)")):
        places[:n] = (5, 7)
        names = [f"s{i}" for i in range(len(places))]
        with write_embeddings(tmp_path / "a.h5", names, places, 2, {"encoder": "toy"}) as writer:
            writer.append(np.zeros((len(places), 2), np.float32))
        if message is None:
            assert len(read_embeddings(tmp_path / "a.h5").barcodes) == len(places)
            continue
        with pytest.raises(BadInput, match=message):
            read_embeddings(tmp_path / "a.h5")


def test_a_file_without_the_mark_of_completion_is_refused(tmp_path):
    write(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file.attrs["complete"]
    with pytest.raises(BadInput, match="completed write"):
        read_embeddings(tmp_path / "a.h5")


@pytest.mark.parametrize("mark", ["format", "complete", "sha256"])
def test_one_mark_makes_a_file_ours_if_its_value_is(tmp_path, mark):
    path = tmp_path / "a.h5"
    write(path)
    with h5py.File(path, "r+") as file:
        value = file.attrs[mark]
    make_foreign(path)
    read_embeddings(path)
    for text, refused in ((value, True), ("of others", False)):
        with h5py.File(path, "r+") as file:
            file.attrs[mark] = text
        if refused:
            with pytest.raises(BadInput, match="found no (mark|checksum)"):
                read_embeddings(path)
        else:
            read_embeddings(path)


def test_zero_spots_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["embeddings"], file["coords"] = np.zeros((0, 3)), np.zeros((0, 2))
        file["barcodes"] = np.array([], dtype="S1")
    with pytest.raises(BadInput, match="0 spots"):
        read_embeddings(tmp_path / "a.h5")


def test_truncation_at_any_byte_is_refused(tmp_path):
    path, cut = tmp_path / "a.h5", tmp_path / "cut.h5"
    write(path, n=60, width=40)
    content = path.read_bytes()
    for end in np.linspace(0, len(content) - 1, 60).astype(int):
        cut.write_bytes(content[:end])
        with pytest.raises(BadInput):
            read_embeddings(cut)


def test_a_flipped_bit_of_the_embeddings_does_not_pass(tmp_path):
    path, bad = tmp_path / "a.h5", tmp_path / "bad.h5"
    x, _, _ = write(path, n=60, width=40)
    content = path.read_bytes()
    start = content.find(x[0].tobytes())
    assert start > 0
    for offset in range(start, start + x.nbytes, 997):
        flipped = bytearray(content)
        flipped[offset] ^= 4
        bad.write_bytes(flipped)
        with pytest.raises(BadInput, match="checksum"):
            read_embeddings(bad)


def test_a_small_file_that_declares_terabytes_is_refused(tmp_path):
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("embeddings", (2**30, 1000), np.float32, chunks=(1, 1000))
        file["coords"], file["barcodes"] = np.zeros((1, 2)), np.array([b"a"])
    with pytest.raises(BadInput, match="bytes declared"):
        read_embeddings(tmp_path / "bomb.h5")


@pytest.mark.parametrize(
    ("content", "message"), [(b"<html>", "signature"), (b"", "signature"), (None, "errno 2")]
)
def test_files_that_are_no_hdf5_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_embeddings(tmp_path / "a.h5")


def test_a_writer_that_stops_early_leaves_nothing(tmp_path):
    with (
        pytest.raises(RuntimeError, match="1 of 3"),
        write_embeddings(tmp_path / "a.h5", ["a", "b", "c"], np.zeros((3, 2)), 2, {}) as writer,
    ):
        writer.append(np.zeros((1, 2)))
    assert list(tmp_path.iterdir()) == []
