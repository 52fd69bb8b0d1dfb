import numpy as np

from stflow_graph.images.stain import StainMeter


def meter(*batches):
    found = StainMeter()
    for batch in batches:
        found.add(batch)
    return found


def test_shares_are_those_of_the_densities_of_stained_pixels():
    images = np.full((2, 8, 8, 3), 250, np.uint8)  # glass, which does not count
    images[0] = (127, 63, 191)
    density = -np.log((np.array([127, 63, 191]) + 1) / 256)
    np.testing.assert_allclose(meter(images).shares, density / density.sum())


def test_batches_add_up_and_light_does_not_matter():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (6, 8, 8, 3), dtype=np.uint8)
    np.testing.assert_allclose(meter(images[:2], images[2:]).shares, meter(images).shares)
    assert meter(images).shares.sum() == 1


def test_glass_has_no_stain():
    assert meter(np.full((2, 8, 8, 3), 250, np.uint8)).shares is None
    assert meter().shares is None
