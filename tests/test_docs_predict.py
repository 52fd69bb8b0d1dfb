"""The commands of docs/predict.md work as shown, with a small encoder and little training."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import anndata
import numpy as np
import pytest
from command_line import cli
from imaged import PATCH_PX, write_imaged
from toy import toy_encoder

__all__ = ["cli"]
TEXT = (Path(__file__).resolve().parents[1] / "docs/predict.md").read_text(encoding="utf-8")
LITTLE = "--encoder toy --epochs 1 --members 2 --n-neighbors 4 --set denoiser.hidden_channels=16"


def commands() -> list[list[str]]:
    """Return the words of all commands in blocks of bash."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL))
    lines = [shlex.split(line, comments=True) for line in blocks.replace("\\\n", "").splitlines()]
    return [words[1:] for words in lines if words[:1] == ["stflow-graph"]]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_imaged(tmp_path)
    for name, place in (("imaged", "ROOT"), ("embeddings", "EMB")):
        (tmp_path / name).rename(tmp_path / place)
    (tmp_path / "EMB/imaged").rename(tmp_path / "EMB/ROOT")
    (tmp_path / "ROOT2").symlink_to(tmp_path / "ROOT")
    (tmp_path / "EMB/ROOT2").symlink_to(tmp_path / "EMB/ROOT")
    (tmp_path / "images/S3.svs").rename(tmp_path / "HE.svs")
    monkeypatch.chdir(tmp_path)

    def create(name, weights=None, weights_root=None):
        return toy_encoder(name)

    monkeypatch.setattr("stflow_graph.encoders.create_encoder", create, raising=False)
    return tmp_path


def test_every_command_works_in_this_order(folder, cli):
    shown = commands()
    assert [words[0] for words in shown] == [
        "prepare",
        "genes",
        "embed",
        *["train"],
        "predict",
        "train",
    ]
    for words in shown:
        if words[0] in ("prepare", "embed"):  # their own tests run these
            continue
        more = {"train": LITTLE.split(), "genes": ["--n-genes", "5"]}.get(words[0], [])
        if words[0] == "predict":
            more = []
        run = cli(*words, *more)
        assert (run.code, run.err) == (0, ""), (words, run)
    adata = anndata.read_h5ad("OUT/HE.h5ad")
    for kind, name in re.findall(r"`(layers|obs|var|varm|uns)\[\"(\w+)\"\]`", TEXT):
        if not name.startswith("gene_"):  # these slides have no Ensembl IDs
            assert name in getattr(adata, kind), (kind, name)
    assert {"std", "epistemic", "aleatoric"} <= set(adata.layers)
    assert np.isfinite(adata.varm["training_quantiles"]).all()
    for file in re.findall(r"`OUT/([^`]+)`", TEXT):
        assert (folder / "OUT" / file.replace("<slide>", "HE")).exists(), file
    assert PATCH_PX == 16


def test_its_options_exist(cli):
    from stflow_graph_cli.main import app
    from typer.main import get_command

    known = {
        option
        for command in get_command(app).commands.values()
        for parameter in command.params
        for option in parameter.opts
    }
    assert set(re.findall(r"--[a-z][a-z-]+", TEXT)) <= known


def test_its_links_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (Path(__file__).resolve().parents[1] / "docs" / link).exists(), link
