import pytest

from stflow_graph.errors import BadInput
from stflow_graph.platforms.kit import read_manifest


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"none\.csv: file: found 'No such file"):
        read_manifest(tmp_path / "none.csv")


MANIFEST = (
    "id,patient,image,counts,spots,um_per_px,note\n"
    "B4,B,images/B4.jpg,counts/B4.tsv,spots/B4.tsv,0.6878,\n"
    "C2,C,images/C2.jpg,counts/C2.h5ad,,0.6881\n"
)


def test_a_manifest_may_have_empty_or_absent_last_cells(tmp_path):
    first, second = read_manifest(write(tmp_path / "dataset.csv", MANIFEST))
    assert (first.name, first.patient, first.um_per_px) == ("B4", "B", 0.6878)
    assert first.inputs == {
        "image": tmp_path / "images/B4.jpg",
        "counts": tmp_path / "counts/B4.tsv",
        "spots": tmp_path / "spots/B4.tsv",
    }
    assert second.name == "C2"
    assert "spots" not in second.inputs


def test_a_manifest_may_know_no_patients(tmp_path):
    text = MANIFEST.replace(",patient", ",other")
    assert [s.patient for s in read_manifest(write(tmp_path / "d.csv", text))] == ["", ""]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("um_per_px", "mpp", "columns: found .*expected also um_per_px"),
        (MANIFEST.split("\n", 1)[1], "", "0 slides"),
        ("C2,C", "B4,C", "id: found 1 duplicate"),
        ("C2,C", "b4,C", "id: found 1 duplicate"),
        ("C2,C", "../C2,C", "id: found '../C2'"),
        ("C2,C", "C2,", r"patient: found none for \['C2'\]"),
        ("0.6878", "0", "um_per_px of B4: found '0', expected a positive number"),
        ("0.6878", "-1", "um_per_px of B4"),
        ("0.6878", "nan", "um_per_px of B4"),
        ("0.6878", "", "um_per_px of B4"),
        ("images/B4.jpg", "../B4.jpg", "image of B4: found '../B4.jpg', expected a path inside"),
        ("images/B4.jpg", "/etc/passwd", "image of B4"),
        ("images/B4.jpg", "a\0b", "image of B4"),
        ("counts/B4.tsv", "images/../../x.tsv", "counts of B4"),
        ("spots/B4.tsv", "", "spots of B4: found ''"),
        ("images/B4.jpg", "", "image of B4: found ''"),
        ("0.6878,", "0.6878,,,", "9 cells in the row of 'B4', expected 7"),
    ],
)
def test_bad_manifests_are_refused(tmp_path, old, new, message):
    assert old in MANIFEST
    with pytest.raises(BadInput, match=message):
        read_manifest(write(tmp_path / "dataset.csv", MANIFEST.replace(old, new)))


def test_a_link_that_leaves_the_kit_is_refused(tmp_path):
    kit = tmp_path / "kit"
    (kit / "images").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    (kit / "images" / "B4.jpg").symlink_to(tmp_path / "secret")
    with pytest.raises(BadInput, match="image of B4"):
        read_manifest(write(kit / "dataset.csv", MANIFEST))
