"""Directions in which genes vary together do not hang on rounding."""

import numpy as np
import pytest
from slides import noise

from stflow_graph.training.gene_directions import gene_directions


@pytest.mark.parametrize("n_genes", [20, 510])
def test_signs_do_not_depend_on_the_order_of_spots_or_on_rounding(n_genes):
    mixed = (noise(400, 6) @ noise(6, n_genes, seed=1) + 0.1 * noise(400, n_genes, seed=2)).numpy()
    measured = np.ones((1, n_genes), dtype=bool)
    directions, _ = gene_directions([mixed], measured)
    for other in (mixed[::-1], mixed * (1 + 1e-9), -mixed, mixed.astype(np.float32)):
        again, _ = gene_directions([other], measured)
        # the first are of the six that were mixed
        np.testing.assert_allclose(again[:, :6], directions[:, :6], atol=1e-3)
    assert (directions.max(axis=0) >= -directions.min(axis=0)).all()
