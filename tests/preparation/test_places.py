from __future__ import annotations

import numpy as np
import pytest
from foreign import tissue_on_glass

from stflow_graph.images.overlay import Overview
from stflow_graph.preparation.places import warn_of_places

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
