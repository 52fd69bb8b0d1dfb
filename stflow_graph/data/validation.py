"""The validation part of a fold's training slides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stflow_graph.data.slide import Slide

_VALIDATION_SHARE = 0.2


def split_validation(
    slides: Sequence[Slide], seed: int, n_splits: int = 1
) -> list[tuple[list[Slide], list[Slide]]]:
    """Cut validation parts from training slides: whole slides where there are at least three.

    With several splits their validation parts do not overlap; there are at most as many splits
    as slides. With one or two slides, each is cut across a random direction into strips (at
    least five) of equal numbers of spots, and a split holds one strip of every slide out.

    Args:
        slides: the training slides.
        seed: decides which slides, or the direction.
        n_splits: splits wanted.

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
    # one after the other from the outermost of both sides, which have the fewest neighbours left
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
