import pytest
import torch
from slides import noise

from stflow_graph.flow import linear_path

Y_0, Y_1 = (noise(7, 3, seed=seed).double() for seed in (0, 1))
BATCH = torch.tensor([0, 0, 0, 1, 1, 2, 2])


def test_the_path_of_each_slide_runs_from_the_prior_to_the_data():
    t = torch.tensor([0.0, 0.25, 1.0]).double()
    path = linear_path(Y_0, Y_1, t, BATCH)
    assert path.y_0 is Y_0
    assert path.y_1 is Y_1
    assert path.t is t
    expected = torch.cat([Y_0[:3], 0.75 * Y_0[3:5] + 0.25 * Y_1[3:5], Y_1[5:]])
    torch.testing.assert_close(path.y_t, expected)
    assert torch.equal(linear_path(Y_0[3:5], Y_1[3:5], t[1:2]).y_t, path.y_t[3:5])


def test_velocity_is_the_difference_of_the_ends():
    t = torch.tensor([0.3], dtype=torch.double)
    _, velocity = torch.func.jvp(lambda t: linear_path(Y_0, Y_1, t).y_t, (t,), (t / t,))
    torch.testing.assert_close(velocity, Y_1 - Y_0)


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
