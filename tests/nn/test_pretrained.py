from __future__ import annotations

import json

import pytest
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from safetensors.torch import save_file

from stflow_graph import GraphDenoiser, SlideModel
from stflow_graph.config import load_config
from stflow_graph.errors import BadConfig, BadInput
from stflow_graph.nn.stflow.denoiser import TransformerDenoiser
from stflow_graph.stages.train import train

SMALL = {"hidden_channels": 8, "edge_channels": 4, "n_heads": 2, "n_layers": 1}
NETWORKS = [
    (GraphDenoiser, SMALL),
    (GraphDenoiser, {**SMALL, "graph_once": True, "ridge_rank": 2, "context_hops": (1, 2)}),
    (GraphDenoiser, {**SMALL, "attention": "stflow", "global_attention": None}),
    (TransformerDenoiser, {**SMALL, "n_neighbors": 3}),
]


def equal(a, b):
    states = a.state_dict(), b.state_dict()
    assert states[0].keys() == states[1].keys()
    return all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.fixture
def saved(tmp_path):
    GraphDenoiser(6, 5, **SMALL).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(("kind", "options"), NETWORKS)
def test_saved_and_loaded_it_is_the_same_network(kind, options, tmp_path):
    network = kind(6, 5, **options)
    network.save_pretrained(tmp_path / "model")
    again = kind.from_pretrained(tmp_path / "model")
    assert equal(network, again)
    assert not again.training
    for name, value in network.arguments.items():
        assert again.arguments[name] == (list(value) if isinstance(value, tuple) else value)
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.library_name == "stflow_graph"
    assert kind.__name__ in card.text


def test_the_hubs_own_mixin_reads_it(saved):
    class Theirs(PyTorchModelHubMixin, GraphDenoiser):
        pass

    assert equal(Theirs.from_pretrained(str(saved)), GraphDenoiser.from_pretrained(saved))


def test_a_config_without_our_marks_is_read(saved):
    content = json.loads((saved / "config.json").read_text())
    for name in ("format", "network", "sha256"):
        del content[name]
    (saved / "config.json").write_text(json.dumps(content))
    assert GraphDenoiser.from_pretrained(saved).n_genes == 5


@pytest.mark.parametrize("members", [1, 2])
def test_a_member_of_a_trained_model(cohort, tmp_path, members):
    train(load_config(None, {**cohort.settings, "train.members": members}), tmp_path / "run")
    folder = tmp_path / "run" / "fold0" / "checkpoint"
    whole = SlideModel.from_pretrained(folder).network()
    for i in range(members):
        member = whole.members[i] if members > 1 else whole
        assert equal(GraphDenoiser.from_pretrained(folder, member=i), member)
    with pytest.raises(BadConfig, match=rf"member {members}: expected one of 0 to {members - 1}"):
        GraphDenoiser.from_pretrained(folder, member=members)
    with pytest.raises(BadConfig, match="found a GraphDenoiser, expected a TransformerDenoiser"):
        TransformerDenoiser.from_pretrained(folder)


def test_a_layer_of_ones_own_is_said_to_need_the_whole_model(cohort, tmp_path):
    conv = {"denoiser.conv": "torch_geometric.nn:GENConv", "train.epochs": 1}
    train(load_config(None, {**cohort.settings, **conv}), tmp_path / "run")
    folder = tmp_path / "run" / "fold0" / "checkpoint"
    with pytest.raises(BadConfig, match=r"Fix: SlideModel.from_pretrained\('"):
        GraphDenoiser.from_pretrained(folder)
    network = SlideModel.from_pretrained(folder).network()
    with pytest.raises(BadConfig, match="conv is a function"):
        network.save_pretrained(tmp_path / "bare")
    assert not (tmp_path / "bare").exists()


def test_the_wrong_class_for_a_bare_network_says_which_is_right(saved):
    with pytest.raises(BadConfig, match=r"Fix: GraphDenoiser.from_pretrained"):
        SlideModel.from_pretrained(saved)


def test_damaged_folders_are_refused(saved):
    config, weights = saved / "config.json", saved / "model.safetensors"
    whole, text = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[:-4] + b"0000")
    with pytest.raises(BadInput, match="sha256: found another hash"):
        GraphDenoiser.from_pretrained(saved)
    content = {**json.loads(text), "sha256": {}}
    for change, message in [
        ({"n_genes": 7}, "misshapen"),
        ({"colour": "red"}, "unexpected keyword argument 'colour'"),
        ({"n_heads": 3}, "not the arguments of GraphDenoiser"),
        ({"network": "Linear"}, "found a Linear"),
    ]:
        config.write_text(json.dumps({**content, **change}))
        with pytest.raises(BadConfig, match=message):
            GraphDenoiser.from_pretrained(saved)
    config.write_text("[]")
    with pytest.raises(BadConfig, match="found list"):
        GraphDenoiser.from_pretrained(saved)
    config.write_text(json.dumps(content))
    save_file({"a": torch.zeros(1)}, weights)
    with pytest.raises(BadConfig, match="missing"):
        GraphDenoiser.from_pretrained(saved)
    weights.unlink()
    with pytest.raises(BadInput, match=r"model.safetensors"):
        GraphDenoiser.from_pretrained(saved)
