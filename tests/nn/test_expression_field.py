from __future__ import annotations

import numpy as np
import pytest
import torch

from stflow_graph.flow.field import SlideNoise
from stflow_graph.flow.noise import spot_keys
from stflow_graph.nn.expression_field import RANK, ExpressionField

CHANNELS, N, GENES = 4, 30, 40


def field_of(n_genes: int = GENES, n_fields: int = 3) -> ExpressionField:
    """Noise alone, of another deviation in each field."""
    field = ExpressionField(n_genes, CHANNELS, n_fields)
    field.places.copy_(torch.arange(n_fields - 1.0)[:, None].expand(-1, CHANNELS))
    field.noise_own.copy_((10.0 ** -torch.arange(n_fields))[:, None].expand(-1, n_genes))
    field.ratios.copy_(1 + torch.linspace(-0.5, 0.5, field.ratios.size(2)).expand_as(field.ratios))
    return field


def noise_of(seed: int = 0) -> SlideNoise:
    keys = spot_keys("S", [str(i) for i in range(N)])
    return SlideNoise(keys, "S", lambda z: z, seed)


@pytest.mark.parametrize("place", [0.0, 0.1, 1.0])
def test_a_slide_is_like_those_whose_embeddings_are_near(place):
    weights = field_of().likeness(torch.full((CHANNELS,), place))
    assert weights.sum() == pytest.approx(1)
    assert weights.argmax() == round(place)
    assert weights.max() > 0.7
    # another patient may look the same
    assert weights[-1] == pytest.approx(0.25, abs=0.05)


def test_a_slide_like_none_is_of_an_unknown_patient():
    field = field_of()
    assert field.likeness(torch.full((CHANNELS,), 0.5))[-1] > 0.95
    assert field.likeness(torch.full((CHANNELS,), 1000.0))[-1] == pytest.approx(1)


def test_slides_equally_near_share_the_draws():
    field = field_of()
    field.places.zero_()
    draws = field.draw(noise_of(), torch.zeros(CHANNELS), 40)
    assert abs(draws.numbers.count(0) - draws.numbers.count(1)) <= 2
    assert {0, 1} <= set(draws.numbers[:3])  # in turn, so that few samples hold both


def test_draws_are_about_the_mean_by_the_fields_chosen():
    field = field_of()
    mean = torch.full((N, GENES), 2.0)
    spread = {}
    for place in (0.0, 1.0, 50.0):
        draws = field.draw(noise_of(), torch.full((CHANNELS,), place), 8)
        samples = torch.stack(list(draws.expression(mean, slice(0, N))))
        assert samples.shape == (8, N, GENES)
        spread[place] = samples.std().item()
    assert spread[0.0] > 2 * spread[1.0] > 4 * spread[50.0]


def test_an_error_of_the_expectation_is_in_the_scale_of_each_gene():
    field = field_of()
    field.noise_own.zero_()
    field.ratios.fill_(1)
    field.smooth_variances[..., -1] = 1  # levels
    field.scale.copy_(torch.linspace(0, 0.1, GENES))
    mean = torch.full((N, GENES), 2.0)
    draws = field.draw(noise_of(), torch.zeros(CHANNELS), 64)
    samples = torch.stack(list(draws.expression(mean, slice(0, N))))
    assert (samples[..., 0] == 2).all()
    off = (samples - 2)[:, 0]
    shared = field.smooth_loadings.square().sum(1).sqrt()
    torch.testing.assert_close(off.std(0), field.scale * shared, rtol=0.3, atol=1e-6)
    # no expectation is negative
    assert torch.stack(list(draws.expression(0 * mean, slice(0, N)))).min() >= 0


def test_rows_are_those_of_the_whole():
    field = field_of()
    field.smooth_variances.fill_(0.5)
    mean = torch.rand(N, GENES) + 1
    draws = field.draw(noise_of(), torch.zeros(CHANNELS), 3)
    whole = torch.stack(list(draws.expression(mean, slice(0, N))))
    part = torch.stack(list(draws.expression(mean[7:19], slice(7, 19))))
    torch.testing.assert_close(part, whole[:, 7:19])


def test_a_field_is_made_anew_from_its_weights():
    field = field_of()
    assert field.smooth_loadings.size(1) == RANK
    again = ExpressionField.from_weights(field.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(field.buffers(), again.buffers(), strict=True))
    assert not again.training


@pytest.mark.parametrize("name", ["noise_own", "places", "knots"])
def test_weights_that_do_not_fit_are_refused(name):
    weights = dict(field_of().state_dict())
    with pytest.raises((RuntimeError, KeyError)):
        ExpressionField.from_weights({k: v for k, v in weights.items() if k != name})
    weights["smooth_loadings"] = torch.zeros(2, 2)
    with pytest.raises(RuntimeError):
        ExpressionField.from_weights(weights)


def test_a_new_field_has_no_spread():
    field = ExpressionField(5, CHANNELS, 2)
    mean = torch.rand(N, 5) + 0.5
    draws = field.draw(noise_of(), torch.zeros(CHANNELS), 2)
    for sample in draws.expression(mean, slice(0, N)):
        np.testing.assert_allclose(sample, mean, rtol=1e-6)
