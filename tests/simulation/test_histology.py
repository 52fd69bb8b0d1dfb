import dataclasses
from functools import cache, partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stflow_graph.simulation.fields import PATCH, REGIONS, STATES
from stflow_graph.simulation.histology import Painter, Stain
from stflow_graph.simulation.tissue import Tissue, make_tissue


def rng_for(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, *purpose.encode()])


@cache
def slide(seed: int = 0) -> tuple[Tissue, Painter]:
    tissue = make_tissue(60, partial(rng_for, seed))
    return tissue, Painter(tissue, partial(rng_for, seed))


def patches(seed: int) -> np.ndarray:
    tissue, painter = slide(seed)
    corners = (tissue.centres - PATCH // 2).tolist()
    return np.stack([painter.draw(x, y, PATCH, PATCH) for x, y in corners]).astype(float)


@settings(deadline=None, max_examples=25)
@given(
    left=st.integers(0, 400),
    top=st.integers(0, 300),
    width=st.integers(1, 224),
    height=st.integers(1, 224),
)
def test_a_pixel_depends_on_its_place_alone(left, top, width, height):
    tissue, painter = slide()
    x, y = tissue.centres.mean(axis=0).astype(int) - 300
    whole = painter.draw(x, y, 624, 524)
    window = painter.draw(x + left, y + top, width, height)
    np.testing.assert_array_equal(window, whole[top : top + height, left : left + width])


def test_overlapping_patches_show_the_same_strip():
    tissue, painter = slide()
    step = tissue.array[:, None] - tissue.array[None]
    left, right = np.argwhere((step[..., 0] == 0) & (step[..., 1] == -2))[0]
    first, second = (
        painter.draw(*(tissue.centres[i] - PATCH // 2), PATCH, PATCH) for i in (left, right)
    )
    shift = tissue.centres[right, 0] - tissue.centres[left, 0]
    assert PATCH - shift == 24
    np.testing.assert_array_equal(first[:, shift:], second[:, : PATCH - shift])


def test_stains_absorb_by_beer_and_lambert():
    stain = Stain.random(np.random.default_rng(0))
    concentration = np.linspace(0, 1.2, 40).reshape(8, 5)
    none = np.zeros_like(concentration)
    for h, e in [(concentration, none), (none, concentration), (concentration, concentration)]:
        expected = stain.light * np.exp(
            -(h[..., None] * stain.haematoxylin + e[..., None] * stain.eosin)
        )
        np.testing.assert_allclose(stain.image(h, e), expected, atol=0.51)
    # haematoxylin is blue and eosin is pink: what each takes from red and from blue
    assert stain.haematoxylin[0] > stain.haematoxylin[2]
    assert stain.eosin[1] > stain.eosin[2] > stain.eosin[0]


def test_outside_the_tissue_is_glass():
    tissue, painter = slide()
    y, x = (
        20 * place
        for place in np.unravel_index(tissue.depth_inside.argmin(), (tissue.depth_inside.shape))
    )
    glass = painter.draw(int(x) - 10, int(y) - 10, 20, 20)
    assert (glass == glass[0, 0]).all()
    assert glass.min() > 220
    assert patches(0).mean() < 215


def test_regions_look_different():
    shares = np.concatenate([slide(seed)[0].spot_regions() for seed in range(3)])
    images = np.concatenate([patches(seed) for seed in range(3)])
    darkness = 255 - images[..., 0].mean(axis=(1, 2))
    pinkness = (images[..., 0] - images[..., 1]).mean(axis=(1, 2))
    mean = {
        name: (darkness[shares[:, i] > 0.8].mean(), pinkness[shares[:, i] > 0.8].mean())
        for i, name in enumerate(REGIONS)
        if (shares[:, i] > 0.8).sum() > 3
    }
    assert mean["immune"][0] > 1.3 * mean["stroma"][0]
    assert mean["stroma"][1] > mean["immune"][1]


def test_collagen_is_pink():
    tissue, _ = slide()
    state = tissue.states.copy()
    state[STATES.index("collagen")] += 1.5
    more = Painter(dataclasses.replace(tissue, states=state), partial(rng_for, 0))
    x, y = tissue.centres[30] - PATCH // 2
    before, after = (p.draw(x, y, PATCH, PATCH).mean(axis=(0, 1)) for p in (slide()[1], more))
    assert (before - after)[1] > 1.5 * (before - after)[0] > 0


def test_slides_differ_in_stain():
    stains = [Stain.random(np.random.default_rng(seed)) for seed in range(20)]
    for name in ("haematoxylin", "eosin"):
        strength = [np.linalg.norm(getattr(stain, name)) for stain in stains]
        assert 0.08 < np.std(np.log(strength)) < 0.3


@pytest.mark.parametrize("field", ["nuclei", "openings"])
def test_tissue_without_nuclei_or_openings_can_be_drawn(field):
    tissue, painter = slide()
    part = getattr(tissue, field)
    none = dataclasses.replace(
        part, **{f.name: getattr(part, f.name)[:0] for f in dataclasses.fields(part)}
    )
    bare = Painter(dataclasses.replace(tissue, **{field: none}), partial(rng_for, 0))
    x, y = tissue.centres.mean(axis=0).astype(int) - 300
    assert (bare.draw(x, y, 600, 600) != painter.draw(x, y, 600, 600)).any()
