"""The examples run at the command line."""

import runpy
import sys
from pathlib import Path

import pytest
from stflow_graph_cli.main import app
from toy import CHANNELS
from typer.testing import CliRunner

from stflow_graph.config import load_config
from stflow_graph.errors import BadConfig
from stflow_graph.models.build import build_denoiser, build_prior, build_sampler
from stflow_graph.models.checkpoint import load_checkpoint

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def train(cohort, tmp_path, monkeypatch):
    """Train one epoch from the folder of the examples; the first block's local layer."""
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*options: str):
        command = ["train", "--source-dataroot", str(cohort.root), "--out", str(tmp_path / "run")]
        command += ["--embed-dataroot", str(cohort.embeddings), "--encoder", "toy"]
        command += ["--folds", "0", "--members", "1", "--set", "train.epochs=1", *options]
        done = CliRunner().invoke(app, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert ("--allow-code" in done.output) == ("custom_layer" in str(options))
        (member,) = load_checkpoint(tmp_path / "run/fold0/checkpoint", allow_code=True).build()
        return member.encoder.blocks[0].conv

    return run


def test_a_custom_layer_in_under_forty_lines(train, cohort, tmp_path):
    layer = train("--set", "denoiser.conv=custom_layer:MyConv")
    assert type(layer).__name__ == "MyConv"
    sample = ["sample", str(tmp_path / "run"), str(cohort.embedding("A"))]
    sample += ["--out", str(tmp_path / "predictions")]
    refused = CliRunner().invoke(app, sample)
    assert isinstance(refused.exception, BadConfig)
    assert f"'custom_layer:MyConv', code in '{EXAMPLES / 'custom_layer.py'}'" in str(
        refused.exception
    )
    assert not (tmp_path / "predictions").exists()
    allowed = CliRunner().invoke(app, [*sample, "--allow-code"], catch_exceptions=False)
    assert (allowed.exit_code, (tmp_path / "predictions/A.h5ad").is_file()) == (0, True)
    assert len((EXAMPLES / "custom_layer.py").read_text().splitlines()) < 40


@pytest.mark.parametrize(
    ("file", "name"),
    [("gatv2.toml", "GATv2Conv"), ("transformer_conv.toml", "TransformerConv")],
)
def test_layers_of_pyg_through_the_configuration(train, file, name):
    layer = train("--config", file)
    assert type(layer.layer).__name__ == name
    assert layer.layer.heads == 4


@pytest.mark.slow
def test_the_stages_in_memory(capsys):
    runpy.run_path(str(EXAMPLES / "notebook_api.py"))
    out = capsys.readouterr().out
    assert "AnnData object with n_obs × n_vars = 36 × 50" in out
    assert "noise ceiling" in out


def test_a_denoiser_put_together_by_hand(cohort, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["denoiser_by_hand.py", str(cohort.embedding("A"))])
    names = runpy.run_path(str(EXAMPLES / "denoiser_by_hand.py"))
    assert "36 spots, 50 genes" in capsys.readouterr().out
    # it is the denoiser that train makes, with its prior and number of steps
    paths = {"data.source_dataroot": "", "data.embed_dataroot": ""}
    config = load_config(None, {**paths, "denoiser.input_dropout": 0.0, "flow.kind": "spot"})
    assert repr(names["model"]) == repr(build_denoiser(config, CHANNELS, 50).eval())
    assert isinstance(build_prior(config.flow), names["GaussianPrior"])
    assert build_sampler(config.flow) is names["euler"]
