"""Warnings of an evaluation: mixed protocols, and what is excluded from scores and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stflow_graph.evaluation.files import Models
from stflow_graph.evaluation.records import SlideEvaluation
from stflow_graph.io.cells import printable

TRAINING_SLIDE = "trained on this slide: a training score, not a test score"


def protocols_of(predictions: Mapping[str, Models]) -> dict[str, list[str]]:
    """Return the names of the protocols of each data set's predictions."""
    protocols: dict[str, dict[str, None]] = {}
    for item in (model for models in predictions.values() for model in models.values()):
        if item.text("protocol"):
            protocols.setdefault(item.text("dataset"), {})[printable(item.text("protocol"))] = None
    return {dataset: list(names) for dataset, names in protocols.items()}


def mixed_protocols(protocols: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a warning per data set with more than one protocol."""
    return [
        f"{dataset}: {len(names)} protocols in one table, whose scores do not compare: "
        + "; ".join(names)
        for dataset, names in protocols.items()
        if len(names) > 1
    ]


def slide_notes(slide: SlideEvaluation) -> list[str]:
    """Return the warnings of a slide: spots and genes without scores, a training slide."""
    n_genes, notes = len(slide.genes), []
    if slide.observed:
        notes.append(slide.observed)
    if slide.n_predicted > len(slide):
        notes.append(f"{slide.n_predicted - len(slide)} of {slide.n_predicted} spots have no truth")
    if slide.n_unpredicted:
        measured = len(slide) + slide.n_unpredicted
        notes.append(f"{slide.n_unpredicted} of {measured} measured spots have no prediction")
    if slide.matched_genes:
        notes.append(slide.matched_genes)
    if slide.absent_genes:
        absent = slide.absent_genes
        count = f"{len(absent)} of {len(absent) + n_genes} genes"
        notes.append(f"{count} are not in the truth ({_first_names(absent)})")
    if slide.constant_genes:
        constant = slide.constant_genes
        notes.append(
            f"{len(constant)} of {n_genes} genes are constant in the truth and are left out of "
            f"means of correlations ({_first_names(constant)})"
        )
    if slide.held_out is False:
        notes.append(TRAINING_SLIDE)
    return [f"{slide.name}: {note}" for note in notes]


def _first_names(genes: Sequence[str], limit: int = 5) -> str:
    return printable(", ".join(genes[:limit])) + (", ..." if len(genes) > limit else "")
