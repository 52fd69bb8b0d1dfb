"""Regions of slides and the validation part of a fold's training slides."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch_geometric.data import Data

from stflow_graph.data.slide import Slide

_VALIDATION_SHARE = 0.2
_SPOT_FIELDS = ("x", "pos", "y")


def random_region(data: Data, generator: torch.Generator, least: int = 2) -> Data:
    """Return the ⌊uN⌋ spots nearest to a random spot, u ~ U(0, 1), as published for STFlow.

    Args:
        data: a slide with ``x``, ``pos`` and ``y`` and nothing that refers to spots by index.
        generator: a generator on the CPU.
        least: the smallest region; a smaller slide is returned whole.
    """
    n = data.pos.size(0)
    u = torch.rand((), generator=generator).item()
    centre = int(torch.randint(n, (), generator=generator))
    size = min(n, max(least, int(u * n)))
    distance = (data.pos - data.pos[centre]).square().sum(1)
    # ascending rows keep the order of spots, and with it every sum, reproducible
    rows = distance.argsort(stable=True)[:size].sort().values
    region = Data(**{field: data[field][rows] for field in _SPOT_FIELDS})
    if "pitch" in data:
        region.pitch = data.pitch
    return region


def split_validation(slides: Sequence[Slide], seed: int) -> tuple[list[Slide], list[Slide]]:
    """Cut a validation part from training slides: whole slides where there are at least three.

    With one or two slides, each gives a fifth of its spots: the outermost in a random direction,
    so that the part is contiguous.

    Args:
        slides: the training slides.
        seed: decides which slides or direction.

    Returns:
        The slides to learn from and those to validate on.
    """
    rng = np.random.default_rng(seed)
    if len(slides) >= 3:
        held_out = rng.permutation(len(slides))[: max(1, round(_VALIDATION_SHARE * len(slides)))]
        return (
            [s for i, s in enumerate(slides) if i not in held_out],
            [s for i, s in enumerate(slides) if i in held_out],
        )
    learn, validate = [], []
    for slide in slides:
        angle = rng.uniform(0, 2 * np.pi)
        along = slide.coords @ np.array([np.cos(angle), np.sin(angle)])
        order = np.argsort(along, kind="stable")
        cut = len(order) - max(2, round(_VALIDATION_SHARE * len(order)))
        learn.append(_take(slide, np.sort(order[:cut])))
        validate.append(_take(slide, np.sort(order[cut:])))
    return learn, validate


def _take(slide: Slide, rows: np.ndarray) -> Slide:
    return dataclasses.replace(
        slide,
        x=slide.x[rows],
        coords=slide.coords[rows],
        barcodes=[slide.barcodes[i] for i in rows],
        y=None if slide.y is None else slide.y[rows],
    )
