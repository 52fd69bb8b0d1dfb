"""Encoders of edges: their invariances, and the equality of their families of functions."""

import pytest
import torch

from stflow_graph.nn.conv.frame_averaged import FrameEncoder
from stflow_graph.nn.edge_encoder import InvariantEncoder


def edges(n: int, weight: float | None = None) -> torch.Tensor:
    attr = torch.rand(n, 6, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    attr[:, 5] = attr[:, 5].abs() if weight is None else weight
    return attr


@pytest.fixture(params=[FrameEncoder, InvariantEncoder])
def encoder(request):
    torch.manual_seed(0)
    return request.param(8).double()


@pytest.mark.parametrize("signs", [(-1, 1), (1, -1), (-1, -1)])
def test_the_signs_of_a_frame_are_irrelevant(encoder, signs):
    attr = edges(50)
    flipped = attr.clone()
    flipped[:, :2] *= torch.tensor(signs)
    assert torch.allclose(encoder(attr), encoder(flipped), rtol=0, atol=1e-12)
    moved = attr.clone()
    moved[:, 0] += 0.1
    assert (encoder(moved) - encoder(attr)).abs().max() > 1e-4


def test_an_axis_of_no_weight_may_point_anywhere(encoder):
    attr = edges(50, weight=0.0)
    turned = attr.clone()
    turned[:, :2] = edges(100)[50:, :2]
    assert torch.equal(encoder(attr), encoder(turned))


def test_further_columns_are_read_as_they_are():
    torch.manual_seed(0)
    encoder = InvariantEncoder(8, in_features=7).double()
    attr = torch.cat([edges(50), torch.ones(50, 1).double()], dim=1)
    spatial = InvariantEncoder(8).double()
    with torch.no_grad():
        spatial.hidden.weight.copy_(encoder.hidden.weight[:, :6])
        spatial.hidden.bias.copy_(encoder.hidden.bias + encoder.hidden.weight[:, 6])
    spatial.out.load_state_dict(encoder.out.state_dict())
    torch.testing.assert_close(encoder(attr), spatial(edges(50)))


def test_an_average_over_signs_is_learned_by_the_encoder_of_invariants():
    torch.manual_seed(0)
    averaged, invariant = FrameEncoder(1, 8).double(), InvariantEncoder(200).double()
    with torch.no_grad():
        averaged.framed.weight.mul_(3)  # far from linear
        attr = edges(4000, weight=1.0)
        target, features = averaged(attr), invariant(attr)
    last_layer = torch.linalg.lstsq(features[:3000], target[:3000]).solution
    error = (features @ last_layer - target)[3000:].square().mean() / target.var()
    assert error < 0.01
