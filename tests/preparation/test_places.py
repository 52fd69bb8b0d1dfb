from __future__ import annotations

import numpy as np
import pytest
from foreign import tissue_on_glass

from stflow_graph.errors import BadInput
from stflow_graph.images.overlay import Overview
from stflow_graph.preparation.places import rows_inside, warn_of_places

# all over the tissue; exchanged, 8 of 10 columns and 8 of 10 rows are on it
OVERVIEW = Overview(tissue_on_glass(), 1.0)
SPOTS = np.stack(np.meshgrid(np.arange(220, 600, 40), np.arange(120, 500, 40)), -1).reshape(-1, 2)


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        (SPOTS, ""),
        (SPOTS[:, ::-1], "64% of the spots lie on tissue, 100% with x and y exchanged"),
        (SPOTS / 4, "of the spots lie on tissue: see the overlay"),
    ],
)
def test_spots_beside_the_tissue_and_exchanged_ones_are_said(coords, message, caplog):
    warn_of_places(OVERVIEW, coords.astype(float), 40.0, "spots.csv")
    assert message in caplog.text
    assert bool(caplog.text) == bool(message)


def test_the_share_of_spots_outside_is_limited_and_the_command_can_raise_it():
    coords = np.stack([np.arange(20.0) + 50, np.arange(20.0) + 10], axis=1)
    size, all_outside = (100, 26), coords + 50
    with pytest.raises(BadInput, match="3 of 20 spots outside the image.*another resolution$"):
        rows_inside(coords, size, "spots.csv")
    with pytest.raises(BadInput, match="; or leave out more of them with --max-outside$"):
        rows_inside(coords, size, "spots.csv", 0.1, "--max-outside")
    rows = rows_inside(coords, size, "spots.csv", 0.2, "--max-outside")
    np.testing.assert_array_equal(rows, np.arange(17))
    with pytest.raises(BadInput, match="20 of 20 spots outside.*another resolution$"):
        rows_inside(all_outside, size, "spots.csv", 1.0, "--max-outside")
