from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from slides import scattered, slide
from stflow_graph_cli.main import app
from toy import CHANNELS, write_slide
from typer.testing import CliRunner

from stflow_graph.errors import BadConfig, BadInput
from stflow_graph.graph import STFlowGraph
from stflow_graph.io.predictions import read_prediction
from stflow_graph.models.checkpoint import load_checkpoint
from stflow_graph.models.stflow_weights import (
    Sizes,
    convert_stflow,
    infer_sizes,
    load_stflow,
)
from stflow_graph.nn.stflow.denoiser import TransformerDenoiser

F, G = 24, 10


def public_state(seed: int = 0, **sizes: int) -> dict[str, torch.Tensor]:
    """Return weights as the public code saves them; norms and biases are not trivial."""
    torch.manual_seed(seed)
    model = TransformerDenoiser(**{"in_channels": F, "n_genes": G, **sizes})
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    for block in model.backbone.blks:  # pixels are large: make frames and distances matter
        block.attn.edge_trans.fc1.weight.data *= 1e-2
    return model.state_dict()


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(F, G, 32, 16, 4, 3),
        Sizes(7, 3, 16, 32, 2, 1),
        Sizes(5, 200, 24, 24, 8, 2),
        Sizes(6, 1, 8, 8, 1, 1),
    ],
)
def test_sizes_are_told_by_the_weights(sizes):
    state = public_state(
        in_channels=sizes.in_channels,
        n_genes=sizes.n_genes,
        hidden_channels=sizes.hidden_channels,
        edge_channels=sizes.edge_channels,
        n_heads=sizes.n_heads,
        n_layers=sizes.n_layers,
    )
    assert infer_sizes(state) == sizes
    for kind in ("transformer", "graph"):
        model = load_stflow(state, kind, n_heads=sizes.n_heads)
        assert not model.training
    with pytest.raises(BadConfig, match=f"of {sizes.n_heads} heads, not 3"):
        load_stflow(state, n_heads=3)


@pytest.mark.parametrize("width", [G + 24, G + 12, G + 16 * 9])
def test_heads_that_do_not_divide_the_channels_are_refused(width):
    state = public_state(hidden_channels=32, edge_channels=8)  # 72 numbers of all heads
    state["backbone.blks.0.attn.mlp_attn.fc1.weight"] = torch.zeros(32, width)
    for kind in ("transformer", "graph"):
        with pytest.raises(BadConfig, match="which no number of heads explains"):
            load_stflow(state, kind)


@pytest.mark.parametrize("kind", ["transformer", "graph"])
@pytest.mark.parametrize("key", list(public_state(n_layers=1)))
def test_a_missing_or_misshapen_key_names_itself(kind, key):
    state = public_state(n_layers=1)
    changed = {**state, key: torch.zeros(3, 3, 3)}
    del state[key]
    for broken in (state, changed):
        with pytest.raises(BadConfig, match=key.replace(".", r"\.")):
            load_stflow(broken, kind)


def test_an_unknown_key_names_itself_and_so_does_an_unknown_kind():
    state = {**public_state(), "backbone.blks.0.attn.extra.weight": torch.zeros(1)}
    with pytest.raises(BadConfig, match=r"unexpected .*attn\.extra\.weight"):
        load_stflow(state)
    with pytest.raises(ValueError, match="transformer, graph"):
        load_stflow(public_state(), "mamba")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_files_and_data_parallel_names_load(tmp_path, prefix):
    state = {prefix + key: value for key, value in public_state().items()}
    torch.save(state, tmp_path / "model.pth")
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "wrapped.pt")
    for name in ("model.pth", "wrapped.pt"):
        found = load_stflow(tmp_path / name, "transformer").state_dict()
        assert all(torch.equal(found[key.removeprefix(prefix)], v) for key, v in state.items())


@pytest.mark.parametrize("kind", ["transformer", "graph"])
def test_convert_gives_a_checkpoint_that_samples_the_same(tmp_path, kind):
    torch.save(public_state(), tmp_path / "model.pth")
    (tmp_path / "genes.json").write_text(json.dumps({"genes": [f"g{i}" for i in range(G)]}))
    source, out = tmp_path / "model.pth", tmp_path / "checkpoint"
    convert_stflow(source, out, kind=kind, gene_list=tmp_path / "genes.json", n_neighbors=5)
    checkpoint = load_checkpoint(out)
    assert checkpoint.genes == [f"g{i}" for i in range(G)]
    assert checkpoint.config.graph.n_neighbors == 5
    data = STFlowGraph(5)(slide(scattered(40) * 1000, F))
    y, t = torch.randn(40, G), torch.tensor([0.4])
    expected = load_stflow(source, kind)(y, t, data)
    (model,) = checkpoint.build()
    assert torch.equal(model(y, t, data), expected)


def test_convert_then_sample_at_the_command_line(tmp_path):
    torch.save(public_state(in_channels=CHANNELS), tmp_path / "model.pth")
    write_slide(tmp_path / "S.h5", tmp_path / "S.h5ad", 36, seed=0)
    found = {}
    for kind in ("graph", "transformer"):
        command = ["convert", str(tmp_path / "model.pth"), str(tmp_path / kind), "--denoiser", kind]
        done = CliRunner().invoke(app, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert "10 genes" in done.output
        assert "--gene-list" in done.output
        command = ["sample", str(tmp_path / kind), str(tmp_path / "S.h5"), "--out"]
        done = CliRunner().invoke(app, [*command, str(tmp_path / f"{kind}-out")])
        assert done.exit_code == 0, done.output
        found[kind] = read_prediction(tmp_path / f"{kind}-out" / "S.h5ad").mean
    np.testing.assert_allclose(found["graph"], found["transformer"], rtol=1e-4, atol=1e-4)


def test_convert_refuses_other_genes_and_leaves_nothing(tmp_path):
    torch.save(public_state(), tmp_path / "model.pth")
    (tmp_path / "genes.json").write_text(json.dumps({"genes": ["a", "b"]}))
    with pytest.raises(BadInput, match="2 genes"):
        convert_stflow(tmp_path / "model.pth", tmp_path / "out", gene_list=tmp_path / "genes.json")
    assert not (tmp_path / "out").exists()
