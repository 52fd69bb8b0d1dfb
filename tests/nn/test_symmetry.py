"""Motions, scalings, permutations and tiny moves of a slide, drawn at random.

Bounds of the method's requirement 5, with the graph made anew from the moved positions.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import F, G, network
from slides import ARRAYS, array, change, motion, noise, seeded
from torch_geometric.data import Data

from stflow_graph.graph import SimilarityEdges, SpatialGraph, spot_pitch

SLIDES = {
    **{kind: array(kind, 6) for kind in ARRAYS},
    **{f"{n} spots": noise(n, 2, seed=n).double() for n in (1, 2, 3)},  # n - 1 neighbours each
}
NETWORKS = {
    (kind, layers): network(kind, layers, n_layers=3, context_hops=hops).float()
    for kind, layers, hops in (
        ("every step", "additive", ()),
        ("every step", "Performer", (1,)),
        ("two stages", "additive", (1, 4, 16)),
        ("two stages", "typed edges", (1, 4)),
        ("two stages", "frame averaged", ()),
    )
}


@torch.inference_mode()
def run(name: tuple[str, str], pos: torch.Tensor, order: torch.Tensor | slice = slice(None)):
    """Predict a slide, its spots in this order; float32, as users do."""
    x, y = (noise(len(pos), channels, seed=channels)[order] for channels in (F, G))
    data = SpatialGraph(8)(Data(x=x, pos=pos[order]))
    data = SimilarityEdges(4)(data) if name[1] == "typed edges" else data
    return NETWORKS[name](y, torch.tensor([0.4]), data)


def examples(**strategies):
    """Draw a slide, a network and more."""
    arrays, networks = st.sampled_from(sorted(SLIDES)), st.sampled_from(sorted(NETWORKS))
    cases = given(kind=arrays, name=networks, **strategies)
    return lambda test: settings(max_examples=50, deadline=None)(cases(test))


@examples(
    angle=st.floats(0, 2 * math.pi),
    reflect=st.booleans(),
    shift=st.tuples(st.floats(-1e5, 1e5), st.floats(-1e5, 1e5)),
    pitch=st.floats(1e-3, 1e3),
)
def test_motions_and_units_change_the_output_by_at_most_1e_4(
    kind, name, angle, reflect, shift, pitch
):
    pos = SLIDES[kind]
    moved = (pos @ motion(angle, reflect).T + torch.tensor(shift).double()) * pitch
    assert change(run(name, moved), run(name, pos)) <= 1e-4


@examples(seed=st.integers(0, 2**32 - 1))
def test_permuting_spots_permutes_the_output(kind, name, seed):
    pos = SLIDES[kind]
    order = torch.randperm(len(pos), generator=seeded(seed))
    assert change(run(name, pos, order), run(name, pos)[order]) <= 1e-5


@examples(seed=st.integers(0, 2**32 - 1))
def test_moves_of_a_millionth_of_a_pitch_change_the_output_by_at_most_1e_3(kind, name, seed):
    pos = SLIDES[kind]
    moved = pos + 1e-6 * spot_pitch(pos) * noise(*pos.shape, seed=seed)
    assert change(run(name, moved), run(name, pos)) <= 1e-3


@pytest.mark.parametrize("kind", ["hexagonal", "square", "jittered"])
@pytest.mark.parametrize("name", NETWORKS, ids=", ".join)
def test_the_output_depends_on_the_arrangement(kind, name):
    """A network blind to positions would obey all of the above."""
    stretched = SLIDES[kind] * torch.tensor([1.0, 1.3])
    assert change(run(name, stretched), run(name, SLIDES[kind])) > 1e-2
