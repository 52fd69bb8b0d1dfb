"""Every command that writes refuses a place where nothing can be written: exit code 3, one line."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOTS = ["--source-dataroot", "{root}", "--embed-dataroot", "{emb}"]
COMMANDS = {
    "download": ["download", "--datasets", "IDC", "--out"],
    "simulate": ["simulate"],
    "prepare": ["prepare", "{root}", "--out"],
    "prepare --grid": ["prepare", "--image", "i.png", "--id", "A", "--grid", "--out"],
    "genes": ["genes", "{root}", "--out"],
    "embed": ["embed", "{patches}", "{patches}", "--out"],
    "embed --embed-dataroot": ["embed", "--source-dataroot", "{root}", "--embed-dataroot"],
    "probe": ["probe", *ROOTS, "--encoders", "uni", "--out"],
    "train": ["train", *ROOTS, "--out"],
    "sample": ["sample", "{root}", "{emb}", "--out"],
    "eval": ["eval", "p.h5ad", "--truth", "{root}", "--out"],
    "summarise": ["summarise", "p.h5ad", "--out"],
    "export": ["export", "p.h5ad", "--to"],
    "convert": ["convert", "w.pth"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_impossible_output_is_bad_input(cli, cohort, tmp_path, command):
    file, patches = tmp_path / "file", tmp_path / "p.h5"
    file.touch()
    names = {"root": cohort.root, "emb": cohort.embeddings, "patches": patches}
    words = [word.format_map(names) for word in COMMANDS[command]]
    ending = ".csv" if command == "export" else ""
    before = sorted(tmp_path.rglob("*"))
    places: list[Path] = [file / "a", tmp_path / ("x" * 300), Path("/proc/results")]
    for place in places + ([] if ending else [file]):
        run = cli(*words, f"{place}{ending}")
        assert run.code == 3, (place, run)
        assert f"{place}"[:100] in run.error
        assert "output: found" in run.error
    assert sorted(tmp_path.rglob("*")) == before
