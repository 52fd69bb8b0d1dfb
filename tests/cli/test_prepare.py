from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import typer
from foreign import tissue_on_glass, write_svs
from PIL import Image
from platform_files import write_image, write_visium
from stflow_graph_cli import prepare as command
from typer.testing import CliRunner

from stflow_graph.errors import BadInput, SomeFailed
from stflow_graph.io.patches import open_patches
from stflow_graph.platforms.detect import FORMATS

GRID_SIZES = ("--patch-px", 16, "--patch-um", 20)
HEADER = "id,image,counts,spots,um_per_px\n"


def run(*arguments):
    app = typer.Typer()
    app.command()(command.prepare)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "80"})


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


def single(kit, out, *more):
    files = "--image", kit / "S0.png", "--spots", kit / "S0.csv"
    return run(*files, "--counts", kit / "S0.counts.csv", "--out", out, *more)


def cells(output):
    rows = [line.strip("│ ").split("│") for line in output.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row] for row in rows]


def test_a_kit_gives_a_table_and_the_next_command(kit, tmp_path):
    out = tmp_path / "root"
    result = run(kit, "--out", out, "--patch-px", 16, "--patch-um", 10)
    assert result.exit_code == 0, result.exception
    # slide, spots, not selected, no counts, no place, padded, pitch, files
    assert cells(result.stdout) == [
        ["S0", "3", "0", "1", "0", "1", "10.0", "written"],
        ["S1", "3", "0", "1", "0", "1", "10.0", "written"],
    ]
    following = f"next: stflow-graph embed --source-dataroot {out} --embed-dataroot"
    assert following in result.stdout
    again = run(kit, "--out", out, "--patch-px", 16, "--patch-um", 10)
    assert all("there" in row[-1] for row in cells(again.stdout)[::2])
    assert "written" not in again.stdout


def test_a_single_slide(kit, tmp_path):
    out = tmp_path / "root"
    result = single(kit, out, "--um-per-px", 0.5, "--id", "X", "--patch-px", 16, "--patch-um", 10)
    assert result.exit_code == 0, result.exception
    assert f"next: stflow-graph embed {out}/patches/X.h5 --out" in result.stdout
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
        ["--grid", "--image", "a.svs", "--id", "S", "--min-tissue", "2"],
    ],
)
def test_an_unclear_request_is_a_usage_error(tmp_path, arguments):
    assert run(*arguments, "--out", tmp_path / "root").exit_code == 2
    assert not (tmp_path / "root").exists()


def test_a_platforms_folder_is_named_before_it_is_cut(tmp_path):
    write_visium(tmp_path / "sample")
    image = write_image(tmp_path / "he.png")
    command = (tmp_path / "sample", "--image", image, "--out", tmp_path / "root", "--patch-um", 40)
    result = run(*command, "--patch-px", 16, "--gene-names", "ids", "--format", "visium")
    assert result.exit_code == 0, result.exception
    first, *_ = result.stdout.splitlines()
    assert first == "sample: Visium, Space Ranger 2, 37 spots under tissue, 3.999 µm/px"
    assert cells(result.stdout)[0][:2] == ["sample", "37"]
    assert f"next: stflow-graph embed --source-dataroot {tmp_path}/root" in result.stdout


def test_bad_input_reaches_the_caller_and_prints_no_table(kit, tmp_path):
    result = single(kit, tmp_path / "root", "--id", "X")
    assert isinstance(result.exception, BadInput)
    assert "um_per_px: found None" in str(result.exception)
    assert result.stdout.strip() == ""


def test_slides_that_worked_are_shown_though_others_failed(kit, tmp_path):
    (kit / "S1.png").unlink()
    result = run(kit, "--out", tmp_path / "root", "--patch-um", 10)
    assert isinstance(result.exception, SomeFailed)
    assert [row[0] for row in cells(result.stdout)] == ["S0"]
    assert "next:" not in result.stdout


def test_the_help_names_every_format():
    assert set(command.FORMATS.split(", ")) == {known.name for known in FORMATS}


def test_the_help_needs_no_heavy_package():
    code = (
        "import sys, stflow_graph_cli.prepare\n"
        "heavy = {'torch', 'pandas', 'anndata', 'PIL', 'tifffile', 'zarr', 'numpy', 'h5py'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_slide_without_spots_says_what_was_found_and_what_to_do(tmp_path):
    image = write_svs(tmp_path / "S1.svs", tissue_on_glass(), "0.5")
    arguments = ("--image", image, "--grid", "--out", tmp_path / "root", "--id", "S1", *GRID_SIZES)
    result = run(*arguments)
    assert result.exit_code == 0, result.exception
    lines = result.stdout.splitlines()
    assert lines[0] == "S1: 0.5 µm/px (metadata), tissue on 25% of the slide"
    assert lines[1].startswith("S1: 110 patches of a grid of 17 x 22: ")
    assert lines[1].endswith("S1.h5 written")
    embeddings = tmp_path / "embeddings" / "S1.h5"
    assert lines[2] == (
        f"next: stflow-graph embed {tmp_path}/root/patches/S1.h5 --out {embeddings}"
    )
    assert lines[3].startswith(f"then: stflow-graph sample RUN {embeddings} --out")
    assert "is there already" in run(*arguments).stdout
    wider = run(*arguments, "--pitch-um", 40, "--min-tissue", 0.9, "--overwrite")
    with open_patches(tmp_path / "root" / "patches" / "S1.h5") as patches:
        assert len(patches) < 30
    assert f"{len(patches)} patches" in wider.stdout
