from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from linear import (
    CHANNELS,
    CPU,
    N_GENES,
    checkpoint_of,
    linear_slide,
    prepared,
)

from stflow_graph.data.slide import Slide
from stflow_graph.errors import BadConfig, BadInput
from stflow_graph.inference.predict import predict
from stflow_graph.inference.predictor import Predictor
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.models.checkpoint import Checkpoint
from stflow_graph.nn.ensemble import DenoiserEnsemble
from stflow_graph.stats.calibration import Calibration
from stflow_graph.version import __version__

SLIDE = linear_slide("S", 25)


def blocks(
    checkpoint: Checkpoint, slide: Slide = SLIDE, **settings: Any
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the mean and the samples of a slide that is one block."""
    (block,) = Predictor(checkpoint, "cpu").blocks(slide, SampleSettings(**settings))
    assert block.rows == slice(0, len(slide))
    return block.mean, block.samples


def calibration_of(*spread: float) -> Calibration:
    return Calibration(np.array(spread), np.full(N_GENES, 0.5), np.full(N_GENES, 0.1))


def changed(checkpoint: Checkpoint, member: int, part: str) -> Checkpoint:
    """Return the checkpoint with noise on the weights of a part of a member."""
    generator, prefix = torch.Generator().manual_seed(0), f"members.{member}.{part}."
    weights = {
        key: value + torch.randn(value.shape, generator=generator) * key.startswith(prefix)
        for key, value in checkpoint.weights.items()
    }
    return dataclasses.replace(checkpoint, weights=weights)


@pytest.mark.parametrize("member", [0, 1, 2])
def test_every_member_contributes_to_samples_in_its_turn(member):
    checkpoint = checkpoint_of(n_members=3)
    mean, samples = blocks(checkpoint, n_samples=7)
    other_mean, other = blocks(changed(checkpoint, member, "flow"), n_samples=7)
    np.testing.assert_array_equal(other_mean, mean)
    moved = np.abs(other - samples).max(axis=(1, 2)) > 1e-3
    assert moved.tolist() == [i % 3 == member for i in range(7)]
    # the encoder of each is a part of the mean, which all flows start from
    other_mean, other = blocks(changed(checkpoint, member, "encoder"), n_samples=7)
    assert (np.abs(other_mean - mean).max(axis=0) > 1e-3).all()
    assert (np.abs(other - samples).max(axis=(1, 2)) > 1e-3).all()


def test_the_mean_is_that_of_the_members():
    checkpoint = checkpoint_of(n_members=3)
    config, scaling = checkpoint.config, checkpoint.normalisation
    inputs = prepared(SLIDE, config, scaling)
    means = [predict(m, inputs, config.flow, scaling).mean for m in checkpoint.build()]
    mean, samples = blocks(checkpoint)
    np.testing.assert_allclose(mean, np.mean(means, axis=0), rtol=1e-5)
    assert samples is None


def test_one_members_samples_are_those_of_predict():
    checkpoint = checkpoint_of(n_members=1)
    config, scaling = checkpoint.config, checkpoint.normalisation
    settings = {"n_samples": 3, "seed": 5}
    (member,) = checkpoint.build()
    expected = predict(member, prepared(SLIDE, config, scaling), config.flow, scaling, **settings)
    mean, samples = blocks(checkpoint, **settings)
    np.testing.assert_allclose(mean, expected.mean, rtol=1e-5)
    np.testing.assert_allclose(samples, expected.samples, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["graph", "transformer"])
@pytest.mark.parametrize("tile_size", [None, 7])
def test_other_networks_are_one_ensemble_whole_or_in_tiles(kind, tile_size):
    checkpoint = checkpoint_of(kind)
    config, scaling = checkpoint.config, checkpoint.normalisation
    inputs = prepared(SLIDE, config, scaling)
    expected = predict(
        DenoiserEnsemble(checkpoint.build()), inputs, config.flow, scaling, n_samples=2, seed=3
    )
    mean, samples = blocks(checkpoint, n_samples=2, seed=3, tile_size=tile_size)
    np.testing.assert_allclose(mean, expected.mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(samples, expected.samples, rtol=1e-4, atol=1e-4)
    assert blocks(checkpoint)[1] is None


def test_samples_are_spread_about_the_mean_as_calibrated_and_not_below_0():
    mean, samples = blocks(checkpoint_of(), n_samples=4)
    spread = calibration_of(0.5, 1, 2, 200)
    found = blocks(checkpoint_of(calibration=spread), n_samples=4)
    np.testing.assert_array_equal(found[0], mean)
    expected = np.maximum(mean + spread.spread * (samples - mean), 0)
    np.testing.assert_allclose(found[1], expected, rtol=1e-5, atol=1e-5)
    assert (found[1] == 0).any()
    unknown = calibration_of(0.5, 1, 2, np.nan)
    np.testing.assert_array_equal(
        blocks(checkpoint_of(calibration=unknown), n_samples=4)[1], samples
    )


def test_settings_go_before_those_of_the_checkpoint():
    checkpoint = checkpoint_of()
    _, samples = blocks(checkpoint, n_samples=2, n_sample_steps=6, sampler="heun")
    flow = {"flow__n_sample_steps": 6, "flow__sampler": "heun"}
    np.testing.assert_array_equal(samples, blocks(checkpoint_of(**flow), n_samples=2)[1])
    assert np.abs(samples - blocks(checkpoint, n_samples=2)[1]).max() > 1e-3
    (block,) = Predictor(checkpoint, "cpu").blocks(SLIDE)
    np.testing.assert_array_equal(block.mean, blocks(checkpoint)[0])
    assert block.samples is None


def test_what_does_not_fit_is_refused():
    predictor, settings = Predictor(checkpoint_of(), "cpu"), SampleSettings(n_samples=2)
    predictor.check(SLIDE, settings)
    predictor.check(dataclasses.replace(SLIDE, encoder=""), settings)  # unknown, so not refused
    other = dataclasses.replace(SLIDE, encoder="uni", file="S.h5")
    expected = (
        r"^S\.h5: embeddings: found encoder 'uni' with 6 channels, expected the checkpoint's "
        r"'toy' with 6\. Fix: embed the patches with --encoder toy$"
    )
    with pytest.raises(BadConfig, match=expected):
        predictor.check(other, settings)
    narrow = dataclasses.replace(SLIDE, x=SLIDE.x[:, :5])
    with pytest.raises(BadConfig, match=r"^S: .* with 5 channels, expected .* with 6"):
        predictor.check(narrow, settings)
    with pytest.raises(BadInput, match="4 spots"):
        predictor.check(SLIDE.take(np.arange(4)), settings)
    predictor.check(SLIDE.take(np.arange(5)), settings)
    regression = Predictor(checkpoint_of("regression"), "cpu")
    regression.check(SLIDE, SampleSettings())
    with pytest.raises(BadConfig, match="no samples"):
        regression.check(SLIDE, settings)
    anything = Predictor(checkpoint_of(data__encoder=""), "cpu")
    anything.check(other, settings)
    with pytest.raises(BadConfig, match=r"with 6$|with 6\.$"):
        anything.check(narrow, settings)
    with pytest.raises(BadConfig, match="device 'abacus'"):
        Predictor(checkpoint_of(), "abacus")


@pytest.mark.parametrize("kind", ["two-stage", "graph"])
def test_embeddings_that_overflow_are_refused(kind):
    x = SLIDE.x.copy()
    x[3] = 3e38
    huge = dataclasses.replace(SLIDE, x=x, file="S.h5")
    with pytest.raises(BadInput, match=r"S\.h5: embeddings: found values .* overflow"):
        blocks(checkpoint_of(kind, data__standardize="none"), huge)


def test_members_are_on_the_device_in_eval_mode():
    predictor = Predictor(checkpoint_of(n_members=3), "cpu")
    assert predictor.device == CPU
    assert len(predictor.members) == 3
    assert not any(module.training for m in predictor.members for module in m.modules())


def test_provenance_states_the_model_and_how_it_was_applied():
    predictor = Predictor(checkpoint_of(), "cpu")
    found = predictor.provenance("S", SampleSettings(n_samples=3, seed=2, sampler="heun"))
    expected = {
        "slide": "S",
        "dataset": "D",
        "target": "log1p",
        "encoder": "toy",
        "denoiser": "graph",
        "flow": "spot",
        "fold": 1,
        "protocol": "p",
        "train_slides": ["A", "B"],
        "source_dataroot": None,
        "embed_dataroot": None,
        "gene_list": "var_50genes.json",
        "missing_genes": "refuse",
        "seed": 2,
        "precision": "float32",
        "n_samples": 3,
        "n_sample_steps": 2,
        "sampler": "heun",
        "prior": "gaussian",
        "version": __version__,
        "torch": torch.__version__,
        "device": "cpu",
        "threads": torch.get_num_threads(),
    }
    assert found == expected
    assert CHANNELS == predictor.checkpoint.in_channels


def with_field(**changes: Any) -> Checkpoint:
    return dataclasses.replace(checkpoint_of("field"), **changes)


def test_samples_of_a_field_are_about_the_mean_and_do_not_change_it():
    checkpoint = with_field()
    mean, samples = blocks(checkpoint, n_samples=200)
    alone, none = blocks(checkpoint)
    assert none is None
    np.testing.assert_allclose(alone, mean, atol=1e-6)
    np.testing.assert_allclose(samples.mean(axis=(0, 1)), mean.mean(axis=0), rtol=0.1)
    assert np.abs(samples - mean).mean() > 0.1


def test_a_slide_is_sampled_by_the_fields_of_slides_like_it():
    checkpoint = with_field()
    assert checkpoint.field is not None
    narrow = copy.deepcopy(checkpoint.field)
    narrow.smooth_variances[1] = 0  # of the slide whose mean embedding is 1
    changed = dataclasses.replace(checkpoint, field=narrow)
    scaling = checkpoint.normalisation
    for place, same in ((1.0, False), (0.0, True), (9.0, True)):
        shift = place * scaling.x_std - SLIDE.x.mean(0)
        slide = dataclasses.replace(SLIDE, x=SLIDE.x + shift)
        before, after = (blocks(c, slide, n_samples=3)[1] for c in (checkpoint, changed))
        assert np.array_equal(before, after) == same


def test_a_checkpoint_without_its_field_has_no_samples():
    checkpoint = with_field(field=None)
    predictor = Predictor(checkpoint, "cpu")
    predictor.check(SLIDE, SampleSettings())
    with pytest.raises(BadConfig, match="no field to draw samples from"):
        predictor.check(SLIDE, SampleSettings(n_samples=2))


@pytest.mark.parametrize("asked", [{"sampler": "heun"}, {"n_sample_steps": 4}])
def test_a_field_has_no_steps(asked):
    with pytest.raises(BadConfig, match="samples of this checkpoint have no steps"):
        Predictor(with_field(), "cpu").check(SLIDE, SampleSettings(**asked))
