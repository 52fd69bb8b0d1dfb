"""Slides of different gene panels in one fold."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from linear import (
    CHANNELS,
    GENES,
    KINDS,
    LEVEL,
    configured,
    fit_fold,
    linear_slide,
    new_network,
    prepared,
    same_weights,
    scaling_of,
)

from stflow_graph.data.slide import Slide
from stflow_graph.inference.predictor import Predictor
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.models.checkpoint import Checkpoint
from stflow_graph.stats.metrics import pearson_per_gene
from stflow_graph.training import loop
from stflow_graph.training.loop import validation_score
from stflow_graph.training.spot_flow import fit_spot_flow


def lacking(slide: Slide, *genes: int) -> Slide:
    y = slide.truth.copy()
    y[:, list(genes)] = np.nan
    return dataclasses.replace(slide, y=y)


def slides_of(n: int = 24) -> list[Slide]:
    """Gene 3 is measured by two of five slides, gene 0 by four."""
    a, b, c, d, e = (linear_slide(name, n) for name in "ABCDE")
    return [lacking(a, 3), lacking(b, 3), lacking(c, 0), d, lacking(e, 3)]


def checkpoint(kind: str, folder: Path, slides: list[Slide], **changes: object) -> Checkpoint:
    config = configured(kind, **{"train__members": 2, **changes})
    return fit_fold(slides, config, folder, fold=0).checkpoint(GENES, CHANNELS, {})


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_from_panels_and_predicts_all_genes(kind, tmp_path):
    trained = checkpoint(kind, tmp_path, slides_of())
    for name, weights in trained.weights.items():
        assert torch.isfinite(weights).all(), name
    if trained.field is not None:
        assert all(torch.isfinite(buffer).all() for buffer in trained.field.buffers())
    assert np.isfinite(trained.calibration.pearson).all()
    np.testing.assert_allclose(trained.normalisation.y_mean, LEVEL, atol=0.6)
    predictor = Predictor(trained, "cpu")
    settings = SampleSettings(1 if kind == "regression" else 3, 0)
    for slide in (linear_slide("P"), slides_of()[0]):
        for block in predictor.blocks(slide, settings):  # which refuses what is not finite
            assert block.mean.shape == (len(slide), 4)


def test_a_gene_of_few_slides_is_learnt_from_them(tmp_path):
    slides = [lacking(linear_slide(name, 60), 3) for name in "ABC"]
    slides += [linear_slide(name, 60) for name in "DE"]
    trained = checkpoint("regression", tmp_path, slides, train__epochs=20)
    test = linear_slide("P", 60)
    mean = np.concatenate([b.mean for b in Predictor(trained, "cpu").blocks(test)])
    assert pearson_per_gene(mean, test.truth)[3] > 0.5


@pytest.mark.parametrize("kind", ["regression", "two-stage", "graph"])
def test_what_stands_for_a_missing_gene_has_no_influence(kind, tmp_path, monkeypatch):
    first = checkpoint(kind, tmp_path / "a", slides_of())
    # NaN of other bits, and other arrays: nothing is read from where a gene is missing
    changed = [dataclasses.replace(s, y=np.where(np.isnan(s.y), -np.nan, s.y)) for s in slides_of()]
    assert same_weights(first.weights, checkpoint(kind, tmp_path / "b", changed).weights)
    if kind == "graph":  # in the input of a flow it is a constant, which differences do not show
        monkeypatch.setattr(
            loop, "without_missing", lambda y_t, y_1: torch.where(y_1.isnan(), 7.0, y_t)
        )
        other = checkpoint(kind, tmp_path / "c", slides_of())
        for name, weights in first.weights.items():
            torch.testing.assert_close(weights, other.weights[name], atol=1e-3, rtol=1e-3)


def test_validation_scores_measured_genes():
    config = configured("regression")
    whole = linear_slide("A")
    scaling = scaling_of([whole], config)
    network = new_network(config).eval()
    of_all = validation_score(network, [prepared(whole, config, scaling)], config, scaling, 0)
    three = prepared(lacking(whole, 1), config, scaling)
    mse, pearson = validation_score(network, [three], config, scaling, 0)
    assert np.isfinite([mse, pearson]).all()
    assert pearson != of_all[1]
    predicted = loop.predict(network, three, config.flow, scaling).mean
    kept = [0, 2, 3]
    assert mse == pytest.approx(np.mean((predicted - whole.truth)[:, kept] ** 2), rel=1e-5)
    expected = pearson_per_gene(predicted, whole.truth)[kept].mean()
    assert pearson == pytest.approx(expected, abs=1e-6)


def test_the_flow_of_single_spots_masks_what_is_missing():
    config = configured("two-stage")
    slides = slides_of()
    scaling = scaling_of(slides, config)
    parts = [prepared(slide, config, scaling) for slide in slides]
    network = new_network(config)
    loss = fit_spot_flow(network, parts, parts[3:4], config, stream=0)
    assert np.isfinite(loss)
    assert all(torch.isfinite(p).all() for p in network.parameters())
