"""Encoders of edges: what they may not see, and that one family of functions is the other."""

from __future__ import annotations

import pytest
import torch

from stflow_graph.nn.edge_encoder import FrameEncoder, InvariantEncoder


def edges(n: int, weight: float | None = None) -> torch.Tensor:
    attr = torch.rand(n, 6, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    attr[:, 5] = attr[:, 5].abs() if weight is None else weight
    return attr


@pytest.fixture(params=[FrameEncoder, InvariantEncoder])
def encoder(request):
    torch.manual_seed(0)
    return request.param(8).double()


@pytest.mark.parametrize("signs", [(-1, 1), (1, -1), (-1, -1)])
def test_the_signs_of_a_frame_do_not_matter(encoder, signs):
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


def test_an_average_over_signs_is_learned_by_the_encoder_of_invariants():
    torch.manual_seed(0)
    averaged, invariant = FrameEncoder(1, 8), InvariantEncoder(1, 64)
    with torch.no_grad():
        averaged.framed.weight.mul_(3)  # far from linear
    attr = edges(4000, weight=1.0).float()
    wanted = averaged(attr).detach()
    optimizer = torch.optim.Adam(invariant.parameters(), lr=1e-2)
    for _ in range(400):
        loss = (invariant(attr[:3000]) - wanted[:3000]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    left = (invariant(attr[3000:]) - wanted[3000:]).square().mean() / wanted.var()
    assert left < 0.01
