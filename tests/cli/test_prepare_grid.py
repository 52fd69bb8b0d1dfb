from __future__ import annotations

import pytest
from foreign import write_svs
from test_cli_prepare import run
from test_tissue_grid import slide

from stflow_graph.io.patches import open_patches

SIZES = ("--patch-px", 16, "--patch-um", 20)


def test_a_slide_without_spots_says_what_was_found_and_what_to_do(tmp_path):
    image = write_svs(tmp_path / "S1.svs", slide(), "0.5")
    arguments = ("--image", image, "--grid", "--out", tmp_path / "root", "--id", "S1", *SIZES)
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


@pytest.mark.parametrize(
    "arguments",
    [
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
