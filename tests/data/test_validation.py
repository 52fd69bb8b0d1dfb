from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from stflow_graph.data.slide import Slide
from stflow_graph.data.validation import split_validation
from stflow_graph.errors import BadConfig


def slide(name: str, n: int = 100) -> Slide:
    rng = np.random.default_rng(n)
    return Slide(
        name,
        rng.normal(size=(n, 3)).astype(np.float32),
        rng.uniform(size=(n, 2)),
        [f"{name}{i}" for i in range(n)],
        rng.normal(size=(n, 2)).astype(np.float32),
    )


@pytest.mark.parametrize(("n", "held_out"), [(3, 1), (4, 1), (10, 2)])
def test_whole_slides_are_held_out_where_there_are_three(n, held_out):
    slides = [slide(f"S{i}") for i in range(n)]
    ((learn, validate),) = split_validation(slides, 0)
    assert len(validate) == held_out
    assert sorted(s.name for s in learn + validate) == sorted(s.name for s in slides)
    chosen = {split_validation(slides, seed)[0][1][0].name for seed in range(30)}
    assert len(chosen) > 1


@pytest.mark.parametrize(("n", "wanted", "got"), [(3, 4, 3), (4, 4, 4), (10, 4, 4), (5, 2, 2)])
def test_several_splits_hold_every_slide_out_once(n, wanted, got):
    slides = [slide(f"S{i}") for i in range(n)]
    splits = split_validation(slides, 0, wanted)
    assert len(splits) == got
    held_out = [s.name for _, validate in splits for s in validate]
    assert sorted(held_out) == sorted(s.name for s in slides)
    for learn, validate in splits:
        assert sorted(s.name for s in learn + validate) == sorted(s.name for s in slides)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("wanted", [1, 4, 6])
def test_few_slides_give_a_contiguous_part_each(n, wanted):
    slides = [slide(f"S{i}") for i in range(n)]
    splits = split_validation(slides, 0, wanted)
    assert len(splits) == wanted
    for i, whole in enumerate(slides):
        for learn, validate in splits:
            rest, part = learn[i], validate[i]
            assert sorted(rest.barcodes + part.barcodes) == sorted(whole.barcodes)
            assert len(part) in (16, 17, 20)
        # a line separates the first part, which lies at the border, from the rest
        assert separable(splits[0][0][i].coords, splits[0][1][i].coords)
        parts = [b for _, validate in splits for b in validate[i].barcodes]
        assert len(parts) == len(set(parts))


def separable(a: np.ndarray, b: np.ndarray) -> bool:
    angles = np.linspace(0, 2 * np.pi, 3601)
    directions = np.stack([np.cos(angles), np.sin(angles)])
    return bool(((a @ directions).max(0) < (b @ directions).min(0)).any())


def lacking(name: str, genes: str, n: int = 40) -> Slide:
    """Return a slide of four genes that measures those whose letter is given."""
    whole = slide(name, n)
    measured = np.array([gene in genes for gene in "abcd"])
    y = np.where(measured, np.random.default_rng(n).normal(size=(n, 4)), np.nan)
    return dataclasses.replace(whole, y=y.astype(np.float32))


COHORTS = [
    ["abcd", "abcd", "abcd", "ab", "ab", "ab"],
    ["abc", "abc", "abc", "abc", "d"],  # one slide alone has a gene
    ["a", "b", "c", "d"],
    ["ab", "bc", "cd"],
    ["ab", "cd"],
    ["abcd", "abcd", "ab", "ab", "ac", "ac", "bd", "bd", "b", "c"],
]


@pytest.mark.parametrize("genes", COHORTS)
@pytest.mark.parametrize("wanted", [1, 2, 4])
def test_every_gene_is_learnt_by_all_and_held_out_by_some(genes, wanted):
    slides = [lacking(f"S{i}", panel) for i, panel in enumerate(genes)]
    for seed in range(5):
        splits = split_validation(slides, seed, wanted)
        for learn, validate in splits:
            assert np.any([~np.isnan(s.y).any(axis=0) for s in learn], axis=0).all()
            assert validate
            assert not {b for s in learn for b in s.barcodes} & {
                b for s in validate for b in s.barcodes
            }
        held_out = [s for _, validate in splits for s in validate]
        assert np.any([~np.isnan(s.y).any(axis=0) for s in held_out], axis=0).all()


def test_slides_of_one_panel_are_dealt_to_different_parts():
    slides = [lacking(f"S{i}", "abcd" if i < 4 else "ab") for i in range(8)]
    for seed in range(5):
        for _, validate in split_validation(slides, seed, 4):
            assert [len(s) for s in validate] == [40, 40]  # whole slides
            assert sorted(s.name < "S4" for s in validate) == [False, True]


def test_more_members_than_the_slides_have_strips_are_refused():
    slides = [slide("A", 36), slide("B", 90)]
    assert len(split_validation(slides, 0, 12)) == 12
    with pytest.raises(BadConfig, match=r"train.members = 13: .* of 36 spots, expected at most 12"):
        split_validation(slides, 0, 13)
    assert len(split_validation([slide("A", 7)], 0, 4)) == 4  # as by default, whatever the size
