"""Motions, scalings, permutations and tiny moves of a slide, drawn at random.

Bounds of the method's requirement 5, with the graph made anew from the moved positions.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch_geometric.data import Data

from stflow_graph.graph import SpatialGraph, spot_pitch
from stflow_graph.nn.denoiser import GraphDenoiser

F, G, K = 8, 5, 8


def hexagonal(side: int) -> np.ndarray:
    i, j = np.meshgrid(np.arange(side), np.arange(side))
    return np.stack([(i + 0.5 * (j % 2)).ravel(), (j * math.sqrt(3) / 2).ravel()], 1)


def square(side: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * 1.0


def jittered(side: int) -> np.ndarray:
    return hexagonal(side) + 0.1 * np.random.default_rng(side).normal(size=(side**2, 2))


def line(side: int) -> np.ndarray:
    return np.stack([np.arange(4.0 * side), np.zeros(4 * side)], 1)


def duplicates(side: int) -> np.ndarray:
    return np.concatenate([jittered(side), jittered(side)[: 2 * side], np.zeros((3, 2))])


def isolated(side: int) -> np.ndarray:
    return np.concatenate([jittered(side), [[500.0, -300.0], [-700.0, 900.0]]])


def heap(side: int) -> np.ndarray:
    """More spots at one place than there are neighbours."""
    return np.concatenate([jittered(side), np.full((K + 4, 2), 1.7)])


def few(n: int) -> np.ndarray:
    """1, 2 or 3 spots: 0, 1 or 2 neighbours each."""
    return np.random.default_rng(n).normal(size=(n, 2))


SLIDES = {
    "hexagonal": hexagonal(7),
    "square": square(7),
    "jittered": jittered(7),
    "line": line(6),
    "duplicates": duplicates(5),
    "heap": heap(5),
    "isolated": isolated(5),
    **{f"{n} spots": few(n) for n in (1, 2, 3)},
}
MODELS = {
    "additive, latent": {},
    "dot, linear": {"attention": "dot", "global_attention": "linear"},
    "graph once, context": {"graph_once": True, "context_hops": (1, 4, 16)},
}


def denoiser(**options) -> GraphDenoiser:
    torch.manual_seed(0)
    model = GraphDenoiser(F, G, hidden_channels=16, edge_channels=8, n_layers=3, **options)
    for block in model.blocks:  # the global term starts at 0: let it take part
        nn.init.ones_(block.gate)
    return model.eval()


DENOISERS = {name: denoiser(**options) for name, options in MODELS.items()}


@torch.inference_mode()
def run(name: str, pos: np.ndarray, order: np.ndarray | None = None) -> torch.Tensor:
    """Predict a slide whose spots stand in the given order; float32, as users do."""
    generator = torch.Generator().manual_seed(len(pos))
    x, y = (torch.randn(len(pos), c, generator=generator) for c in (F, G))
    order = np.arange(len(pos)) if order is None else order
    index = torch.from_numpy(order)
    data = SpatialGraph(K)(Data(x=x[index], pos=torch.from_numpy(pos[order])))
    return DENOISERS[name](y[index], torch.tensor([0.4]), data)


def change(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


slides, models = st.sampled_from(sorted(SLIDES)), st.sampled_from(sorted(MODELS))
angles = st.floats(0, 2 * math.pi)
FAST = settings(max_examples=120, deadline=None)


@given(
    slide=slides,
    model=models,
    angle=angles,
    reflect=st.booleans(),
    shift=st.tuples(st.floats(-1e5, 1e5), st.floats(-1e5, 1e5)),
    pitch=st.floats(1e-3, 1e3),
)
@FAST
def test_motions_and_units_change_the_output_by_no_more_than_1e_4(
    slide, model, angle, reflect, shift, pitch
):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if reflect:
        turn = turn @ np.diag([1.0, -1.0])
    moved = (SLIDES[slide] @ turn.T + shift) * pitch
    assert change(run(model, moved), run(model, SLIDES[slide])) <= 1e-4


@given(slide=slides, model=models, seed=st.integers(0, 2**32 - 1))
@FAST
def test_permuting_spots_permutes_the_output(slide, model, seed):
    order = np.random.default_rng(seed).permutation(len(SLIDES[slide]))
    out = run(model, SLIDES[slide])
    assert change(run(model, SLIDES[slide], order), out[torch.from_numpy(order)]) <= 1e-5


@given(slide=slides, model=models, seed=st.integers(0, 2**32 - 1))
@FAST
def test_moves_of_a_millionth_of_a_pitch_change_the_output_by_no_more_than_1e_3(slide, model, seed):
    pos = SLIDES[slide]
    noise = np.random.default_rng(seed).normal(size=pos.shape)
    moved = pos + 1e-6 * spot_pitch(torch.from_numpy(pos)) * noise
    assert change(run(model, moved), run(model, pos)) <= 1e-3


@pytest.mark.parametrize("slide", ["hexagonal", "square", "jittered"])
def test_the_output_does_depend_on_the_arrangement(slide):
    """A model blind to positions would pass all of the above."""
    stretched = SLIDES[slide] * [1.0, 1.3]
    for model in MODELS:
        assert change(run(model, stretched), run(model, SLIDES[slide])) > 1e-2
