from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from stflow_graph_cli.main import app
from torch_geometric.data import Batch, Data
from toy import CHANNELS, write_slide
from typer.testing import CliRunner

from stflow_graph.errors import BadConfig, BadInput
from stflow_graph.graph import SpatialGraph, STFlowGraph
from stflow_graph.graph.stflow import stflow_edge_geometry
from stflow_graph.io.predictions import read_prediction
from stflow_graph.models.checkpoint import load_checkpoint
from stflow_graph.models.stflow_weights import (
    Sizes,
    convert_stflow,
    graph_name,
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


def slide(n: int, seed: int, kind: str = "random") -> Data:
    generator = torch.Generator().manual_seed(seed)
    pos = torch.rand(n, 2, generator=generator).double() * 200 * n**0.5
    if kind == "lattice":
        side = int(n**0.5)
        grid = torch.meshgrid(*[torch.arange(float(side))] * 2, indexing="ij")
        pos = torch.stack([g.flatten() for g in grid], 1).double() * 100
    return Data(x=torch.randn(len(pos), F, generator=generator), pos=pos)


def both(state, data, dtype):
    data = data.clone().apply(lambda v: v.to(dtype) if v.is_floating_point() else v, "x")
    # published frames of whichever graph, computed from the positions as the transformer does
    data.edge_attr = stflow_edge_geometry(data.pos, data.edge_index).to(dtype)
    data.edge_weight = None
    n, n_slides = data.num_nodes, data.num_graphs if isinstance(data, Batch) else 1
    generator = torch.Generator().manual_seed(n)
    y = torch.randn(n, G, generator=generator).to(dtype)
    t = torch.rand(n_slides, generator=generator).to(dtype)
    models = [load_stflow(state, kind).to(dtype) for kind in ("transformer", "graph")]
    return models, [model(y, t, data) for model in models]


SLIDES = {
    "50": [slide(50, 0)],
    "500": [slide(500, 1)],
    "5000": [slide(5000, 2)],
    "lattice": [slide(400, 3, "lattice")],
    "batch": [slide(50, 4), slide(9, 5), slide(300, 6)],
}


@pytest.mark.parametrize("graph", [STFlowGraph(8), SpatialGraph(8)], ids=["published", "ours"])
@pytest.mark.parametrize("slides", SLIDES)
def test_the_two_denoisers_are_one_function(slides, graph):
    data = Batch.from_data_list([graph(one.clone()) for one in SLIDES[slides]])
    with torch.inference_mode():
        _, (expected, actual) = both(public_state(), data, torch.float32)
    assert (actual - expected).norm() <= 1e-5 * expected.norm()
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("slides", ["50", "500", "batch"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.double, 1e-11), (torch.float, 1e-5)])
def test_their_gradients_are_equal(slides, dtype, tolerance):
    data = Batch.from_data_list([STFlowGraph(8)(one.clone()) for one in SLIDES[slides]])
    models, outputs = both(public_state(), data, dtype)
    probe = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    for out in outputs:
        (out * probe).sum().backward()
    wanted = {graph_name(key): p.grad for key, p in models[0].named_parameters()}
    found = {key: p.grad for key, p in models[1].named_parameters()}
    assert wanted.keys() == found.keys()
    for block in {key.split(".conv.")[0] for key in wanted}:
        names = [key for key in wanted if key.startswith(block)]
        scale = max(wanted[name].norm() for name in names)
        for name in names:
            assert (found[name] - wanted[name]).norm() <= tolerance * scale, name


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
    data = STFlowGraph(5)(slide(40, 8))
    y, t = torch.randn(40, G), torch.tensor([0.4])
    expected = load_stflow(source, kind)(y, t, data)
    (member,) = checkpoint.build()
    assert torch.equal(member(y, t, data), expected)


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
