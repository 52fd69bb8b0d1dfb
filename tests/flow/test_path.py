from __future__ import annotations

import pytest
import torch

from stflow_graph.flow import linear_path


@pytest.fixture
def ends():
    generator = torch.Generator().manual_seed(0)
    y_0, y_1 = (torch.randn(7, 3, generator=generator).double() for _ in range(2))
    return y_0, y_1, torch.tensor([0, 0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize(("t", "end"), [(0.0, 0), (1.0, 1)])
def test_the_path_runs_from_the_prior_to_the_data(ends, t, end):
    path = linear_path(ends[0], ends[1], torch.tensor([t]))
    assert torch.equal(path.y_t, ends[end])
    assert path.y_0 is ends[0]
    assert path.y_1 is ends[1]


def test_velocity_is_the_difference_of_the_ends(ends):
    y_0, y_1, _ = ends
    t = torch.tensor([0.3], dtype=torch.double)
    _, velocity = torch.func.jvp(
        lambda t: linear_path(y_0, y_1, t).y_t, (t,), (torch.ones_like(t),)
    )
    assert torch.allclose(velocity, y_1 - y_0)


def test_every_slide_has_its_own_time(ends):
    y_0, y_1, batch = ends
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.double)
    y_t = linear_path(y_0, y_1, t, batch).y_t
    for slide in range(3):
        spots = batch == slide
        alone = linear_path(y_0[spots], y_1[spots], t[slide : slide + 1]).y_t
        assert torch.equal(y_t[spots], alone)


@pytest.mark.parametrize(
    ("y_1", "t", "batch", "message"),
    [
        ((7, 4), (1,), None, r"\[7, 3\], \[7, 4\]"),
        ((7, 3), (2,), None, r"t must be \[1\].*got \[2\]"),
        ((7, 3), (3, 1), (7,), r"got \[3, 1\] and \[7\]"),
        ((7, 3), (3,), (6,), r"batch \[7\].*and \[6\]"),
    ],
)
def test_wrong_shapes_are_printed(y_1, t, batch, message):
    batch = None if batch is None else torch.zeros(batch).long()
    with pytest.raises(ValueError, match=message):
        linear_path(torch.zeros(7, 3), torch.zeros(y_1), torch.zeros(t), batch)
