from __future__ import annotations

import pytest
import torch
from toy import CHANNELS, GENES

from stflow_graph.config import load_config
from stflow_graph.data.genes import write_gene_list
from stflow_graph.errors import BadConfig, BadInput
from stflow_graph.models.build import build_denoiser
from stflow_graph.models.checkpoint import load_checkpoint
from stflow_graph.models.warm_start import WarmStart
from stflow_graph.stages.train import train


def run(cohort, out, **values):
    settings = {**cohort.settings, **{k.replace("__", "."): v for k, v in values.items()}}
    (result,) = train(load_config(None, settings), out)
    return load_checkpoint(result.folder / "checkpoint")


@pytest.fixture
def source(cohort, tmp_path):
    return run(cohort, tmp_path / "source", train__members=2, train__epochs=2)


def started(source, genes, member=0):
    warm = WarmStart(source, genes)
    torch.manual_seed(1)
    network = build_denoiser(source.config, CHANNELS, len(genes))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    warm.load(network, member)
    return before, network.state_dict()


@pytest.mark.parametrize("member", [0, 1, 2])
def test_of_the_same_genes_all_weights_are_the_models_but_what_is_fitted_anew(source, member):
    before, after = started(source, GENES, member)
    prefix = f"members.{member % 2}."
    for name, value in after.items():
        expected = before[name] if "ridge_head" in name else source.weights[prefix + name]
        torch.testing.assert_close(value, expected)


def test_weights_of_genes_are_taken_by_name(source):
    genes = ["new", *GENES[:1:-1]]
    before, after = started(source, genes)
    theirs = {k.removeprefix("members.0."): v for k, v in source.weights.items()}
    places = [GENES.index(gene) for gene in genes[1:]]
    for name in ("encoder.blocks.0.read_out.4.weight", "encoder.blocks.1.read_out.4.bias"):
        torch.testing.assert_close(after[name][1:], theirs[name][places])
        torch.testing.assert_close(after[name][0], before[name][0])
    name = "encoder.blocks.0.conv.score.lin_y.weight"
    torch.testing.assert_close(after[name][:, 1:], theirs[name][:, places])
    torch.testing.assert_close(after["encoder.embed_x.weight"], theirs["encoder.embed_x.weight"])


def test_a_panel_without_common_genes_shares_the_body(source):
    before, after = started(source, ["x", "y"])
    name = "encoder.blocks.0.read_out.4.weight"
    torch.testing.assert_close(after[name], before[name])
    name = "encoder.blocks.0.mlp.1.weight"
    torch.testing.assert_close(after[name], source.weights[f"members.0.{name}"])


@pytest.mark.parametrize("denoiser", ["graph", "transformer"])
def test_training_goes_on_from_the_model(cohort, tmp_path, denoiser):
    source = run(cohort, tmp_path / "a", denoiser__name=denoiser, train__epochs=1)
    write_gene_list(cohort.root / "fewer.json", GENES[::-1][:4])
    common = {"denoiser__name": denoiser, "data__gene_list": "fewer.json", "train__lr": 1e-9}
    warm = run(cohort, tmp_path / "b", train__warm_start=str(tmp_path / "a"), **common)
    assert warm.provenance["warm_start"]["train_slides"] == source.provenance["train_slides"]
    assert "warm_start" in warm.provenance["inputs"]
    assert "trained on before" in (tmp_path / "b/fold0/checkpoint/README.md").read_text()
    # a step of next to nothing: the weights are still the model's
    same = [n for n, v in warm.weights.items() if v.shape == source.weights[n].shape]
    name = max((n for n in same if "ridge" not in n), key=lambda n: warm.weights[n].numel())
    torch.testing.assert_close(warm.weights[name], source.weights[name], atol=1e-4, rtol=1e-3)
    assert (warm.normalisation.x_std == source.normalisation.x_std).all()


def test_a_model_that_has_seen_the_test_slides_is_refused(cohort, tmp_path, source):
    settings = {"train__warm_start": str(tmp_path / "source"), "train__members": 1}
    with pytest.raises(BadInput, match="counts of test slide B among them"):
        run(cohort, tmp_path / "b", train__folds=[1], **settings)
    run(cohort, tmp_path / "c", train__folds=[0], **settings)


def test_another_model_to_start_from_is_another_training(cohort, tmp_path, source):
    run(cohort, tmp_path / "b", train__warm_start=str(tmp_path / "source"), train__members=1)
    with pytest.raises(BadConfig, match="warm_start"):
        run(cohort, tmp_path / "b", train__members=1)


def test_models_of_another_kind_are_refused(source):
    config = source.config
    changed = {
        "data.target": config.model_copy(
            update={"data": config.data.model_copy(update={"target": "log1p_normalised"})}
        ),
        "data.encoder": config.model_copy(
            update={"data": config.data.model_copy(update={"encoder": "other"})}
        ),
        "flow.kind": config.model_copy(
            update={"flow": config.flow.model_copy(update={"kind": "spot"})}
        ),
    }
    for name, other in changed.items():
        with pytest.raises(BadConfig, match=name):
            WarmStart(source, GENES).adapt(other)
    smaller = config.denoiser.model_copy(update={"hidden_channels": 8, "input_dropout": 0.25})
    adapted = WarmStart(source, GENES).adapt(config.model_copy(update={"denoiser": smaller}))
    assert adapted.denoiser.hidden_channels == 16  # the model's
    assert adapted.denoiser.input_dropout == 0.25
