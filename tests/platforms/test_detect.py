import re
from pathlib import Path

import pytest
from platform_files import write_hest, write_stimage, write_visium, write_visium_hd, write_xenium

from stflow_graph.errors import BadConfig, BadInput
from stflow_graph.platforms.detect import FORMATS, find_slides
from stflow_graph.platforms.source import NO_OPTIONS, SourceOptions


def _legacy_st(folder):
    (folder / "B4_selection.tsv").write_text("x\ty\tpixel_x\tpixel_y\n1\t1\t2\t2\n")
    (folder / "B4.tsv").write_text("\tA\n1x1\t1\n")


def _kit(folder):
    (folder / "dataset.csv").write_text("id,image,counts,spots,um_per_px\nA,a.png,c.csv,s.csv,1\n")


def _spatialdata(folder):
    (folder / "zarr.json").write_text("{}")
    for part in ("tables", "shapes"):
        (folder / part).mkdir()


WRITERS = {
    "kit": _kit,
    "visium": write_visium,
    "visium-hd": write_visium_hd,
    "xenium": lambda folder: write_xenium(folder / "x", parquet=False),
    "hest": write_hest,
    "stimage": lambda folder: write_stimage(folder, "A"),
    "legacy-st": _legacy_st,
    "spatialdata": _spatialdata,
}


def make(kind, folder):
    WRITERS[kind](folder)
    return folder / "x" if kind == "xenium" else folder


def test_every_format_has_a_writer_here():
    assert {format.name for format in FORMATS} == set(WRITERS)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_folder_is_recognised_by_its_files_as_one_thing_only(tmp_path, kind):
    folder = make(kind, tmp_path)
    assert [f.name for f in FORMATS if f.slides(folder, NO_OPTIONS)] == [kind]
    result, forced = find_slides(folder), find_slides(folder, format=kind)
    assert [slide.name for slide in result] == [slide.name for slide in forced]
    assert result


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_a_format_that_is_forced_on_another_folder_is_refused(tmp_path, format):
    (tmp_path / "notes.txt").write_text("x")
    text = f"source: found 'notes.txt', expected one of: {format.name} ({format.evidence})"
    with pytest.raises(BadInput, match=f"{re.escape(text)}$"):
        find_slides(tmp_path, format=format.name)


@pytest.mark.parametrize("kind", ["hest", "stimage", "legacy-st", "kit"])
def test_a_slide_that_is_not_there_is_refused(tmp_path, kind):
    folder = make(kind, tmp_path)
    with pytest.raises(BadInput, match=f"id: found 'none', expected a slide of this {kind} folder"):
        find_slides(folder, SourceOptions(name="none"))


def test_an_unknown_folder_is_told_what_is_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(
        BadInput, match=r"source: found 'notes\.txt', expected one of: kit"
    ) as error:
        find_slides(tmp_path)
    assert all(format.name in str(error.value) for format in FORMATS)
    assert "\n" not in str(error.value)
    with pytest.raises(BadInput, match="no such folder"):
        find_slides(tmp_path / "none")
    with pytest.raises(BadConfig, match="format 'other': expected kit, visium-hd"):
        find_slides(tmp_path, format="other")


def test_a_prepared_data_set_is_told_so(tmp_path):
    for part in ("adata", "patches"):
        (tmp_path / part).mkdir()
    with pytest.raises(BadInput, match="found a data set that is prepared.*stflow-graph embed"):
        find_slides(tmp_path)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("visium", {"bin_um": 8}),
        ("visium", {"alignment": Path("m.csv")}),
        ("hest", {"gene_names": "ids"}),
        ("kit", {"um_per_px": 1.0}),
        ("kit", {"image": Path("a.png")}),
    ],
)
def test_an_option_that_does_not_apply_is_refused(tmp_path, kind, options):
    folder, name = make(kind, tmp_path), next(iter(options)).replace("_", "-")
    with pytest.raises(BadConfig, match=f"--{name}: does not apply to {kind}"):
        find_slides(folder, SourceOptions(**options))


def test_one_image_is_of_one_slide(tmp_path):
    for name in ("A", "B"):
        write_hest(tmp_path, name)
    with pytest.raises(BadInput, match="id: found A, B, expected one slide for one image"):
        find_slides(tmp_path, SourceOptions(image=tmp_path / "a.tif"))


def test_a_name_that_is_no_file_name_is_refused(tmp_path):
    write_visium(tmp_path)
    with pytest.raises(BadInput, match=r"id: found '\.\./x'"):
        find_slides(tmp_path, SourceOptions(name="../x"))
