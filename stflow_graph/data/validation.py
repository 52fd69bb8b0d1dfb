"""Validation splits of a fold's training slides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stflow_graph.data.slide import Slide

_VALIDATION_SHARE = 0.2


def split_validation(
    slides: Sequence[Slide], seed: int, n_splits: int = 1
) -> list[tuple[list[Slide], list[Slide]]]:
    """Split training slides into parts to learn from and parts to validate on.

    Of three or more slides whole slides are held out; the validation parts of several splits are
    disjoint, and there are at most as many splits as slides. One or two slides are each cut across
    a random direction into at least five strips of equal numbers of spots, and a split holds out
    one strip of every slide.

    Args:
        slides: the training slides.
        seed: of the choice of slides, or of the direction.
        n_splits: maximum number of splits.

    Returns:
        For each split the slides to learn from and those to validate on.
    """
    rng = np.random.default_rng(seed)
    if len(slides) >= 3:
        order = rng.permutation(len(slides))
        if n_splits == 1:
            parts = [order[: max(1, round(_VALIDATION_SHARE * len(slides)))]]
        else:
            parts = np.array_split(order, min(n_splits, len(slides)))
        return [
            (
                [s for i, s in enumerate(slides) if i not in part],
                [s for i, s in enumerate(slides) if i in part],
            )
            for part in parts
        ]
    n_strips = max(n_splits, round(1 / _VALIDATION_SHARE))
    strips = []
    for slide in slides:
        angle = rng.uniform(0, 2 * np.pi)
        along = slide.coords @ np.array([np.cos(angle), np.sin(angle)])
        strips.append(np.array_split(np.argsort(-along, kind="stable"), n_strips))
    # from the outermost strips of both sides inwards: these have the fewest neighbours left
    outermost = sorted(range(n_strips), key=lambda i: min(i, n_strips - 1 - i))[:n_splits]
    return [
        (
            [
                slide.take(np.sort(np.concatenate(cut[:held_out] + cut[held_out + 1 :])))
                for slide, cut in zip(slides, strips, strict=True)
            ],
            [slide.take(np.sort(cut[held_out])) for slide, cut in zip(slides, strips, strict=True)],
        )
        for held_out in outermost
    ]
