from __future__ import annotations

import numpy as np
import pytest
from foreign import tissue_like, tissue_on_glass, write_svs
from PIL import Image
from platform_files import write_image, write_legacy_st, write_visium
from stflow_graph_cli.prepare import FORMATS as FORMATS_IN_HELP

from stflow_graph.io.patches import open_patches
from stflow_graph.platforms.detect import FORMATS

SIZES = ("--patch-px", 16, "--patch-um", 10)
HEADER = "id,image,counts,spots,um_per_px\n"


@pytest.fixture
def kit(tmp_path):
    folder = tmp_path / "kit"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("S0", "S1"):
        pixels = rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
        (folder / f"{name}.csv").write_text("barcode,x,y\na,5,30\nb,30,30\nc,30,50\nd,9,9\n")
        counts = rng.poisson(2, (3, 60)) + 1
        rows = [",".join([b, *map(str, r)]) for b, r in zip("abc", counts, strict=True)]
        head = ",".join(["", *(f"g{i}" for i in range(60))])
        (folder / f"{name}.counts.csv").write_text("\n".join([head, *rows]) + "\n")
    lines = [f"{n},{n}.png,{n}.counts.csv,{n}.csv,0.5\n" for n in ("S0", "S1")]
    (folder / "dataset.csv").write_text(HEADER + "".join(lines))
    return folder


@pytest.fixture
def prepare(cli, tmp_path):
    """Prepare into the folder root at 80 columns."""
    return lambda *more: cli("prepare", "--out", tmp_path / "root", *more, columns=80)


@pytest.fixture
def single(prepare, kit):
    files = ["--image", kit / "S0.png", "--spots", kit / "S0.csv"]
    return lambda *more: prepare(*files, "--counts", kit / "S0.counts.csv", *more)


def test_a_kit_gives_a_table_and_the_next_command(prepare, kit, tmp_path):
    run = prepare(kit, *SIZES)
    assert run.code == 0, run.err
    # slide, spots, not selected, no counts, no position, outside, padded, pitch, files
    assert run.rows == [
        ["S0", "3", "0", "1", "0", "0", "1", "10.0", "written"],
        ["S1", "3", "0", "1", "0", "0", "1", "10.0", "written"],
    ]
    following = f"next: stflow-graph embed --source-dataroot {tmp_path}/root --embed-dataroot"
    assert following in run.out
    again = prepare(kit, *SIZES)
    assert [row[-1] for row in again.rows] == ["up to date"] * 2


def test_a_single_slide(single, tmp_path):
    out = tmp_path / "root"
    run = single("--um-per-px", 0.5, "--id", "X", *SIZES)
    assert run.code == 0, run.err
    assert f"next: stflow-graph embed {out}/patches/X.h5 --out" in run.out
    with open_patches(out / "patches" / "X.h5") as patches:
        assert patches.images.shape == (3, 16, 16, 3)
        assert patches.images.attrs["patch_size_src"] == 20


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["KIT", "--counts", "c.csv"],
        ["KIT", "--gene-names", "other"],
        ["--image", "a.png", "--counts", "c.csv"],
        ["--image", "a.png", "--id", "S0"],
        ["KIT", "--patch-px", "0"],
        ["--grid"],
        ["--grid", "--image", "a.svs"],
        ["--grid", "--image", "a.svs", "--id", "S", "--counts", "c.csv"],
        ["KIT", "--grid", "--image", "a.svs", "--id", "S"],
        ["KIT", "--pitch-um", "50"],
        ["KIT", "--max-outside", "2"],
        ["--image", "a.png", "--counts", "c.csv", "--id", "S", "--array", "2k"],
        ["--grid", "--image", "a.svs", "--id", "S", "--min-tissue", "2"],
    ],
)
def test_an_unclear_request_is_a_usage_error(prepare, tmp_path, arguments):
    assert prepare(*arguments).code == 2
    assert not (tmp_path / "root").exists()


def test_a_platforms_folder_is_named_before_it_is_cut(prepare, tmp_path):
    write_visium(tmp_path / "sample")
    image = write_image(tmp_path / "he.png")
    step = (tmp_path / "sample", "--image", image, "--patch-um", 40, "--patch-px", 16)
    run = prepare(*step, "--gene-names", "ids", "--format", "visium")
    assert run.code == 0, run.err
    first, *_ = run.out.splitlines()
    assert first == "sample: Visium, Space Ranger 2, 37 spots under tissue, 3.999 µm/px"
    assert run.rows[0][:2] == ["sample", "37"]
    assert f"next: stflow-graph embed --source-dataroot {tmp_path}/root" in run.out


def test_the_kind_of_a_legacy_array_can_be_given(prepare, tmp_path):
    write_legacy_st(tmp_path / "in")
    Image.fromarray(tissue_like(300, 300)).save(tmp_path / "he.png")
    step = (tmp_path / "in", "--image", tmp_path / "he.png", "--patch-px", 16)
    for array, scale in (("1k", "4.000"), ("2k", "2.000")):
        run = prepare(*step, "--array", array, "--overwrite")
        assert f"B4: legacy ST ({array} array), 12 spots under tissue, {scale} µm/px" in run.out
    run = prepare(*step, "--array", "3k")
    assert (run.code, "--array '3k': expected 1k or 2k" in run.error) == (4, True)
    write_visium(tmp_path / "sample")
    run = prepare(tmp_path / "sample", *step[1:], "--array", "1k")
    assert (run.code, "--array: does not apply to visium" in run.error) == (4, True)


def test_the_share_of_spots_outside_the_image_is_an_option(prepare, tmp_path):
    write_legacy_st(tmp_path / "in")
    Image.fromarray(tissue_like(300, 120)).save(tmp_path / "he.png")  # spots to y = 140
    step = (tmp_path / "in", "--image", tmp_path / "he.png", "--patch-px", 16)
    run = prepare(*step)
    assert (run.code, "4 of 12 spots outside" in run.error) == (3, True)
    assert "with --max-outside" in run.error
    run = prepare(*step, "--max-outside", 0.4)
    assert (run.code, run.rows[0][1], run.rows[0][5]) == (0, "8", "4"), run


def test_bad_input_is_one_line_without_a_table(single):
    run = single("--id", "X")
    assert (run.code, run.out) == (3, "")
    assert "um_per_px: found none in the file" in run.error


def test_slides_that_worked_are_printed_though_others_failed(prepare, kit):
    (kit / "S1.png").unlink()
    run = prepare(kit, "--patch-um", 10)
    assert run.code == 5
    assert "1 of 2 slides failed" in run.error
    assert [row[0] for row in run.rows] == ["S0"]
    assert "next:" not in run.out


def test_the_help_names_every_format():
    assert set(FORMATS_IN_HELP.split(", ")) == {format.name for format in FORMATS}


def test_a_slide_without_spots_is_cut_on_a_grid(prepare, tmp_path):
    image = write_svs(tmp_path / "S1.svs", tissue_on_glass(), "0.5")
    step = ("--image", image, "--grid", "--id", "S1", "--patch-px", 16, "--patch-um", 20)
    run = prepare(*step)
    assert run.code == 0, run.err
    scale, cut, following, last = run.out.splitlines()
    assert scale == "S1: 0.5 µm/px (metadata), tissue on 25% of the slide"
    assert cut.startswith("S1: 110 patches of a grid of 17 x 22: ")
    assert cut.endswith("S1.h5 written")
    patches, embeddings = tmp_path / "root/patches/S1.h5", tmp_path / "embeddings/S1.h5"
    assert following == f"next: stflow-graph embed {patches} --out {embeddings}"
    assert last.startswith(f"next: stflow-graph sample RUN {embeddings} --out")
    assert "is up to date" in prepare(*step).out
    wider = prepare(*step, "--pitch-um", 40, "--min-tissue", 0.9, "--overwrite")
    with open_patches(patches) as file:
        assert len(file) < 30
    assert f"{len(file)} patches" in wider.out
