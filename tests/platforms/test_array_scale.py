import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stflow_graph.errors import BadInput
from stflow_graph.platforms.array_scale import check_scale, um_per_px_of_array, um_per_px_of_pitch
from stflow_graph.platforms.tables import SpotTable

PLACES = np.array([(c, r) for r in range(8) for c in range(r % 2, 12, 2)])
STEPS = (50.0, 50.0 * 3**0.5)


def table(coords, places=PLACES):
    return SpotTable([str(i) for i in range(len(coords))], coords, array=places)


@given(
    scale=st.floats(0.1, 20),
    angle=st.floats(0, 6.3),
    mirror=st.booleans(),
    shift=st.floats(-1e4, 1e4),
)
def test_the_scale_does_not_depend_on_how_the_array_lies(scale, angle, mirror, shift):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    coords = (PLACES * STEPS) @ turn / scale + shift
    coords = coords[:, ::-1] if mirror else coords
    assert um_per_px_of_array(table(coords), STEPS) == pytest.approx(scale, rel=1e-6)
    assert um_per_px_of_pitch(coords, 100) == pytest.approx(scale, rel=1e-6)


def test_rounding_to_whole_pixels_cancels():
    coords = np.rint(PLACES * STEPS / 7.3)
    assert um_per_px_of_array(table(coords), STEPS) == pytest.approx(7.3, rel=0.005)


@pytest.mark.parametrize("places", [None, PLACES[:1], PLACES[:2], PLACES[:6], PLACES[:0]])
def test_a_line_of_spots_has_no_area(places):
    n = 5 if places is None else len(places)
    assert um_per_px_of_array(table(np.zeros((n, 2)), places), STEPS) is None


def test_spots_in_one_place_have_no_scale():
    assert um_per_px_of_array(table(np.ones((len(PLACES), 2))), STEPS) is None
    assert um_per_px_of_pitch(np.ones((4, 2)), 100) is None
    assert um_per_px_of_pitch(np.ones((1, 2)), 100) is None


def test_another_resolution_is_refused():
    check_scale(0.5, 0.55, 1.25, "t.csv", "x.json")
    for measured in (0.05, 5.0):
        with pytest.raises(
            BadInput, match=r"coordinates: found .* µm/px .*0\.5 µm/px as in x\.json"
        ):
            check_scale(measured, 0.5, 1.25, "t.csv", "x.json")
