from __future__ import annotations

import linear
import numpy as np
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
    assert (after[name][:, 0] == 0).all()
    torch.testing.assert_close(after["encoder.embed_x.weight"], theirs["encoder.embed_x.weight"])


def test_a_panel_without_common_genes_shares_the_body(source):
    before, after = started(source, ["x", "y"])
    name = "encoder.blocks.0.read_out.4.weight"
    torch.testing.assert_close(after[name], before[name])
    name = "encoder.blocks.0.mlp.1.weight"
    torch.testing.assert_close(after[name], source.weights[f"members.0.{name}"])


def extended(kind="regression", genes=("new", *linear.GENES)):
    """Return a model, a network that starts from it with more genes, and a slide."""
    source = linear.checkpoint_of(kind, denoiser__n_layers=2, denoiser__dropout=0.0)
    warm = WarmStart(source, list(genes))
    torch.manual_seed(2)
    network = build_denoiser(warm.adapt(source.config), linear.CHANNELS, len(genes)).eval()
    warm.load(network, 0)
    slide = linear.prepared(linear.linear_slide("S"), source.config, source.normalisation)
    return warm, network, slide


def mean_of(network, slide):
    with torch.no_grad():
        return network.encoder(slide.data, slide.graph).mean.numpy()


def test_known_genes_are_predicted_as_by_the_model():
    warm, network, slide = extended()
    (model, _) = warm.source.build()
    model.encoder.ridge_head.reset_parameters()
    expected = mean_of(model, slide)
    np.testing.assert_allclose(mean_of(network, slide)[:, 1:], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_a_new_gene_starts_as_the_combination_of_known_genes_that_fits_it(masked):
    warm, network, slide = extended()
    before = mean_of(network, slide)
    y = np.concatenate([before @ [[0], [2], [0], [-1], [0]] + 3, before[:, 1:]], axis=1)
    means, ys = [before[:20], before[20:]], [y[:20], y[20:]]
    if masked:  # a slide that does not measure the gene tells nothing of it
        means.append(before[:7])
        ys.append(np.full((7, 5), np.nan))
    warm.start_new_genes(network, means, ys)
    after = mean_of(network, slide)
    np.testing.assert_allclose(after[:, 1:], before[:, 1:])
    assert (
        np.corrcoef(after[:, 0], y[:, 0])[0, 1]
        > 0.99
        > abs(np.corrcoef(before[:, 0], y[:, 0])[0, 1])
    )
    # the slides' level was taken off before the fit
    assert after[:, 0].mean() == pytest.approx(y[:, 0].mean(), abs=0.05)


def test_without_known_genes_new_ones_start_from_nothing():
    warm, network, slide = extended(genes=("a", "b"))
    before = mean_of(network, slide)
    warm.start_new_genes(network, [before], [np.ones_like(before)])
    np.testing.assert_array_equal(mean_of(network, slide), before)
    assert np.isnan(warm.ridge(0)).all()


def test_the_ridge_of_known_genes_is_the_models():
    warm, _, _ = extended(genes=[*linear.GENES[::-1], "new"])
    model = warm.source.build()[1].encoder.ridge_head
    weights = warm.ridge(3)
    np.testing.assert_allclose(
        weights[:, :4], (model.up.weight @ model.down.weight).detach().numpy()[::-1].T, rtol=1e-5
    )
    assert np.isnan(weights[:, 4]).all()
    assert WarmStart(linear.checkpoint_of(denoiser__ridge_rank=0), linear.GENES).ridge(0) is None


def test_the_ridge_head_has_room_for_new_genes():
    source = linear.checkpoint_of(denoiser__ridge_rank=2)
    config = linear.configured(denoiser__ridge_rank=3, denoiser__input_dropout="auto")
    ranks = [
        WarmStart(source, genes).adapt(config).denoiser.ridge_rank
        for genes in (linear.GENES, [*linear.GENES, "x", "y"], ["x", "y"])
    ]
    assert ranks == [2, 5, 2]
    assert WarmStart(source, linear.GENES).adapt(config).denoiser.input_dropout == 0.2


def test_a_trained_model_has_the_ridge_it_started_from(cohort, tmp_path):
    source = run(cohort, tmp_path / "a")
    write_gene_list(cohort.root / "more.json", GENES[::-1])
    write_gene_list(cohort.root / "fewer.json", GENES[:3])
    first = run(cohort, tmp_path / "f", data__gene_list="fewer.json")
    for model, path, genes in ((source, "a", 6), (first, "f", 3)):
        start = {"train__warm_start": str(tmp_path / path), "data__gene_list": "more.json"}
        warm = run(cohort, tmp_path / f"b{path}", **start)
        ours, theirs = (
            m.weights["encoder.ridge_head.up.weight"] @ m.weights["encoder.ridge_head.down.weight"]
            for m in (warm, model)
        )
        torch.testing.assert_close(ours.flip(0)[:genes], theirs, atol=1e-4, rtol=1e-3)
        history = (tmp_path / f"b{path}/fold0/history.csv").read_text().splitlines()
        assert [row.split(",")[1] for row in history[1:]] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("denoiser", "flow"), [("graph", "spot"), ("graph", "graph"), ("transformer", "graph")]
)
def test_every_network_learns_new_genes(cohort, tmp_path, denoiser, flow):
    common = {"denoiser__name": denoiser, "flow__kind": flow, "train__epochs": 1}
    write_gene_list(cohort.root / "fewer.json", GENES[:4])
    source = run(cohort, tmp_path / "a", data__gene_list="fewer.json", **common)
    warm = run(cohort, tmp_path / "b", train__warm_start=str(tmp_path / "a"), **common)
    assert (source.genes, warm.genes) == (GENES[:4], GENES)
    assert np.isfinite(warm.calibration.pearson).all()


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
