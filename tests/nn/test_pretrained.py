import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from safetensors.torch import save_file
from torch import nn

from stflow_graph import GraphDenoiser, SlideModel, TwoStageDenoiser
from stflow_graph.config import load_config
from stflow_graph.errors import BadConfig, BadModel
from stflow_graph.io.sealed_json import JSON_SEAL, seal_json
from stflow_graph.nn.stflow.denoiser import TransformerDenoiser
from stflow_graph.stages.train import train

SMALL = {"in_channels": 6, "n_genes": 5, "hidden_channels": 8, "n_heads": 2, "n_layers": 1}
NETWORKS = [
    (GraphDenoiser, SMALL),
    (GraphDenoiser, {**SMALL, "conv": "stflow", "global_attention": None}),
    (GraphDenoiser, {**SMALL, "conv_options": {"edge_features": 7}}),
    (TwoStageDenoiser, {**SMALL, "ridge_rank": 2, "context_hops": (1, 2)}),
    (TwoStageDenoiser, {**SMALL, "flow": False}),
    (TransformerDenoiser, {**SMALL, "edge_channels": 4, "n_neighbors": 3}),
]


def equal(a: nn.Module, b: nn.Module) -> bool:
    states = a.state_dict(), b.state_dict()
    assert states[0].keys() == states[1].keys()
    return all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    GraphDenoiser(**SMALL).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(("kind", "options"), NETWORKS)
def test_saving_and_loading_give_the_same_network(kind, options, tmp_path):
    network = kind.make(**options)
    network.save_pretrained(tmp_path / "model")
    again = kind.from_pretrained(tmp_path / "model")
    assert equal(network, again)
    assert not again.training
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in network.arguments.items()}
    assert again.arguments == plain
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.library_name == "stflow_graph"
    assert f"from {kind.__module__} import {kind.__name__}" in card.text


def test_the_mixin_of_the_hub_reads_it(saved):
    class Theirs(PyTorchModelHubMixin, GraphDenoiser):
        pass

    assert equal(Theirs.from_pretrained(str(saved)), GraphDenoiser.from_pretrained(saved))


def test_a_config_without_our_marks_is_read(saved):
    content = json.loads((saved / "config.json").read_text())
    for name in ("format", "network", "sha256", JSON_SEAL):
        del content[name]
    (saved / "config.json").write_text(json.dumps(content))
    assert GraphDenoiser.from_pretrained(saved).n_genes == 5


def checkpoint(cohort, out: Path, **options) -> Path:
    settings = {**cohort.settings, "train.epochs": 1, **options}
    train(load_config(None, settings), out / "run")
    return out / "run" / "fold0" / "checkpoint"


@pytest.mark.parametrize("members", [1, 2])
def test_a_member_of_a_trained_model(cohort, tmp_path, members):
    folder = checkpoint(cohort, tmp_path, **{"train.members": members})
    whole = SlideModel.from_pretrained(folder).network()
    for i, member in enumerate(whole.members if members > 1 else [whole]):
        assert equal(TwoStageDenoiser.from_pretrained(folder, member=i), member)
    with pytest.raises(BadConfig, match=rf"member {members}: expected one of 0 to {members - 1}"):
        TwoStageDenoiser.from_pretrained(folder, member=members)
    with pytest.raises(BadConfig, match=r"found a TwoStageDenoiser, expected a GraphDenoiser"):
        GraphDenoiser.from_pretrained(folder)


def test_a_custom_layer_needs_the_whole_model(cohort, tmp_path):
    folder = checkpoint(cohort, tmp_path, **{"denoiser.conv": "pyg:GENConv"})
    with pytest.raises(BadConfig, match=r"Fix: SlideModel.from_pretrained\('"):
        TwoStageDenoiser.from_pretrained(folder)
    network = SlideModel.from_pretrained(folder).network()
    with pytest.raises(BadConfig, match="conv is a function"):
        network.save_pretrained(tmp_path / "bare")
    assert not (tmp_path / "bare").exists()


def test_a_bare_network_is_not_taken_for_a_trained_model(saved):
    with pytest.raises(BadConfig, match=r"Fix: \w+\.from_pretrained loads a bare network"):
        SlideModel.from_pretrained(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_genes": 7}, "misshapen"),
        ({"colour": "red"}, "unexpected keyword argument 'colour'"),
        ({"n_heads": 3}, "not the arguments of GraphDenoiser"),
        ({"network": "Linear"}, "found a Linear"),
        ({"conv": "os:kill"}, "unknown conv 'os:kill'; one of additive"),
        ({"global_attention": "os:kill"}, "unknown global attention 'os:kill'"),
        (None, "found list"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(saved, changes, message):
    content = json.loads((saved / "config.json").read_text()) | {"sha256": {}}
    del content[JSON_SEAL]
    content = [] if changes is None else seal_json(content | changes)
    (saved / "config.json").write_text(json.dumps(content))
    with pytest.raises(BadConfig, match=message):
        GraphDenoiser.from_pretrained(saved)


def test_damaged_and_missing_weights_are_refused(saved):
    config, weights = saved / "config.json", saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"0000")
    with pytest.raises(BadModel, match="sha256: found another hash"):
        GraphDenoiser.from_pretrained(saved)
    content = {**json.loads(config.read_text()), "sha256": {}}
    del content[JSON_SEAL]
    config.write_text(json.dumps(seal_json(content)))
    save_file({"a": torch.zeros(1)}, weights)
    with pytest.raises(BadConfig, match="missing"):
        GraphDenoiser.from_pretrained(saved)
    weights.unlink()
    with pytest.raises(BadModel, match=r"model.safetensors"):
        GraphDenoiser.from_pretrained(saved)
