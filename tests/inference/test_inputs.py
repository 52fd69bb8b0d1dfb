from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from linear import CPU, configured, linear_slide, scaling_of

from stflow_graph.errors import BadInput
from stflow_graph.graph import TiledGraph, WholeGraph
from stflow_graph.inference.inputs import (
    check_enough_spots,
    normalisation_of,
    slide_data,
    slide_inputs,
)

SLIDE = linear_slide("S", 25)


@pytest.mark.parametrize("standardize", ["center", "slide", "train", "none"])
@pytest.mark.parametrize("center_targets", [True, False])
def test_a_slide_is_scaled_as_configured_and_has_its_graph(standardize, center_targets):
    settings = {"data__standardize": standardize, "data__center_targets": center_targets}
    config = configured(**settings)
    scaling = normalisation_of([SLIDE, linear_slide("B")], config.data)
    assert (scaling.standardize, scaling.center_targets) == (standardize, center_targets)
    raw = (SLIDE.x.copy(), SLIDE.truth.copy(), SLIDE.coords.copy())
    data = slide_data(SLIDE, config, scaling)
    np.testing.assert_array_equal(data.x, scaling.embeddings(SLIDE.x))
    np.testing.assert_array_equal(data.y, scaling.targets(SLIDE.truth))
    np.testing.assert_array_equal(data.pos, SLIDE.coords)
    assert all(map(np.array_equal, raw, (SLIDE.x, SLIDE.truth, SLIDE.coords)))
    degrees = torch.bincount(data.edge_index[1], minlength=25)
    assert (degrees >= 4).all()
    assert "context" not in data


def test_scaling_is_fitted_on_all_slides_given():
    config, slides = configured(), [SLIDE, linear_slide("B", 9)]
    found, expected = normalisation_of(slides, config.data), scaling_of(slides, config)
    level = np.mean([slide.truth.mean(axis=0) for slide in slides], axis=0)
    np.testing.assert_allclose(found.y_mean, level, rtol=1e-6)
    np.testing.assert_array_equal(found.x_mean, expected.x_mean)
    x = np.concatenate([slide.x for slide in slides])
    np.testing.assert_allclose(found.x_std, x.std(axis=0), rtol=1e-5)


def test_a_slide_without_expression_has_no_y():
    config = configured()
    bare = dataclasses.replace(SLIDE, y=None)
    assert "y" not in slide_data(bare, config, scaling_of([SLIDE], config))


def test_the_published_model_makes_its_own_graph():
    config = configured("transformer")
    data = slide_data(SLIDE, config, scaling_of([SLIDE], config))
    assert "edge_index" not in data
    assert slide_inputs(SLIDE, data, CPU).graph is None


@pytest.mark.parametrize(
    ("options", "n_tiles"),
    [
        ({}, 1),
        ({"tile_size": 7}, 4),
        ({"tile_size": 7, "above": 24}, 4),
        ({"tile_size": 7, "above": 25}, None),
        ({"above": 25}, None),
    ],
)
def test_slides_above_a_size_are_seen_in_tiles(options, n_tiles):
    config = configured()
    data = slide_data(SLIDE, config, scaling_of([SLIDE], config))
    inputs = slide_inputs(SLIDE, data, CPU, **options)
    assert inputs.slide is SLIDE
    if n_tiles is None:
        assert isinstance(inputs.graph, WholeGraph)
    else:
        assert isinstance(inputs.graph, TiledGraph)
        assert len(inputs.graph.tiles) == n_tiles
    assert inputs.data is not data
    assert inputs.data.keys() == data.keys()


def test_a_slide_needs_more_spots_than_each_has_neighbours():
    check_enough_spots(9, 8, "S.h5")
    expected = r"S\.h5: spots: found 8 spots, expected more than the 8 neighbours .* --n-neighbors"
    with pytest.raises(BadInput, match=expected):
        check_enough_spots(8, 8, "S.h5")
