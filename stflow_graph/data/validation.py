"""Validation splits of a fold's training slides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stflow_graph.data.slide import Slide
from stflow_graph.errors import BadConfig
from stflow_graph.stats.panels import measured_genes

_VALIDATION_SHARE = 0.2
_MIN_SPOTS = 3  # of a strip, where there are more than the usual number


def split_validation(
    slides: Sequence[Slide], seed: int, n_splits: int = 1
) -> list[tuple[list[Slide], list[Slide]]]:
    """Split training slides into parts to learn from and parts to validate on.

    Of three or more slides whole slides are held out; the validation parts of several splits are
    disjoint, and there are at most as many splits as slides. One or two slides are each cut across
    a random direction into at least five strips of equal numbers of spots, and a split holds out
    one strip of every slide.

    Where slides measure different genes, those of one panel are dealt to different parts. Slides
    that measure a gene which only one or two of them do are cut into strips as well, and a split
    holds out one strip of each. So is a slide without which a split would have no slide to learn a
    gene from, or whose genes would be held out in no split.

    Args:
        slides: the training slides.
        seed: of the choice of slides, or of the direction.
        n_splits: maximum number of splits.

    Returns:
        For each split the slides to learn from and those to validate on.

    Raises:
        BadConfig: more splits than slides that are cut have strips of three spots.
    """
    rng = np.random.default_rng(seed)
    if len(slides) >= 3:
        order = rng.permutation(len(slides))
        if n_splits == 1:
            parts = [order[: max(1, round(_VALIDATION_SHARE * len(slides)))]]
        else:
            parts = np.array_split(order, min(n_splits, len(slides)))
        measured = np.stack([_measured(slide) for slide in slides])
        cut: set[int] = set()
        if not measured.all():
            parts, cut = _parts_of_panels(parts, order, measured)
    else:
        parts, cut = [np.zeros(0, np.int64)] * n_splits, set(range(len(slides)))
    _check_strips([slides[i] for i in cut], len(parts))
    strips = {i: _strips(slides[i], len(parts), rng) for i in sorted(cut)}
    splits: list[tuple[list[Slide], list[Slide]]] = []
    for number, part in enumerate(parts):
        learn, validate = [], []
        for i, slide in enumerate(slides):
            if i in cut:
                rest, strip = strips[i][number]
                learn.append(slide.take(rest))
                validate.append(slide.take(strip))
            else:
                (validate if i in part else learn).append(slide)
        splits.append((learn, validate))
    return splits


def _measured(slide: Slide) -> np.ndarray:
    """Return the genes that a slide measures; a slide without expression has none to lack."""
    return np.ones(1, bool) if slide.y is None else measured_genes(slide.y)


def _parts_of_panels(
    parts: Sequence[np.ndarray], order: np.ndarray, measured: np.ndarray
) -> tuple[list[np.ndarray], set[int]]:
    """Return parts to hold out without which every gene is known, and slides to cut into strips.

    Args:
        parts: numbers of the slides to hold out.
        order: of all slides, random.
        measured: ``[S, G]`` genes that each slide measures.
    """
    if len(parts) > 1:
        panels = np.unique(measured, axis=0, return_inverse=True)[1].reshape(-1)
        dealt = order[np.argsort(panels[order], kind="stable")]
        parts = [dealt[number :: len(parts)] for number in range(len(parts))]
    known, rare = np.asarray(measured.any(axis=0)), measured.sum(axis=0) < 3
    cut = {int(i) for i in np.flatnonzero(measured[:, rare].any(axis=1))}
    for part in parts:
        kept = np.delete(measured, part, axis=0)
        cut |= _covering(known & ~kept.any(axis=0), part, measured)
    held_out = measured[np.concatenate([*parts, [*cut]]).astype(int)]
    cut |= _covering(known & ~held_out.any(axis=0), order, measured)
    return [part[~np.isin(part, [*cut])] for part in parts], cut


def _covering(genes: np.ndarray, candidates: np.ndarray, measured: np.ndarray) -> set[int]:
    """Return slides that together measure the genes ``[G]`` bool, by the most of them first."""
    chosen: set[int] = set()
    left = genes.copy()
    while left.any():
        best = int(candidates[np.argmax((measured[candidates] & left).sum(axis=1))])
        chosen.add(best)
        left &= ~measured[best]
    return chosen


def _check_strips(slides: Sequence[Slide], n_splits: int) -> None:
    """Refuse more splits than a slide has strips of enough spots to correlate."""
    n_spots = min(map(len, slides), default=0)
    most = max(round(1 / _VALIDATION_SHARE), n_spots // _MIN_SPOTS)
    if slides and n_splits > most:
        raise BadConfig(
            f"train.members = {n_splits}: each holds out a strip of the training slides, the "
            f"smallest of {n_spots} spots, expected at most {most}"
        )


def _strips(
    slide: Slide, n_splits: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for each split the rows of a slide to learn from, and those of the strip held out."""
    n_strips = max(n_splits, round(1 / _VALIDATION_SHARE))
    angle = rng.uniform(0, 2 * np.pi)
    along = slide.coords @ np.array([np.cos(angle), np.sin(angle)])
    strips = np.array_split(np.argsort(-along, kind="stable"), n_strips)
    # from the outermost strips of both sides inwards: these have the fewest neighbours left
    outermost = sorted(range(n_strips), key=lambda i: min(i, n_strips - 1 - i))[:n_splits]
    return [
        (np.sort(np.concatenate(strips[:i] + strips[i + 1 :])), np.sort(strips[i]))
        for i in outermost
    ]
