"""Calibration by scale over slides: a row per size of region, for tables and the figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from stflow_graph.evaluation.records import Score, SlideEvaluation
from stflow_graph.stats.ensembles import Coverage
from stflow_graph.stats.metrics import mean_of_defined
from stflow_graph.stats.scales import REGIONS, ScaleCoverage

# column: heading, description
COLUMNS = {
    "coverage_50": ("in 50%", "share of regions and genes inside the samples' 50% interval"),
    "coverage_80": ("in 80%", "the same, 80%"),
    "coverage_90": ("in 90%", "the same, 90%"),
    "width_80": ("80% width", "mean width of the 80% interval"),
    "centred_80": ("centred", "in 80% once the slide's mean is taken off truth and samples"),
    "genes_80": ("all genes", "in 80%, of the mean over all genes"),
}
SLIDE = "slide"


@dataclasses.dataclass(frozen=True)
class ScaleRow:
    """Coverage of the means over regions of one size.

    Attributes:
        region: for display, such as ``"9 spots"``.
        means: column of :data:`COLUMNS` to its mean over slides, NaN where undefined.
        slides: the same columns to a value for each slide that has such regions.
    """

    region: str
    means: dict[str, float]
    slides: dict[str, np.ndarray]


def scale_rows(slides: Sequence[SlideEvaluation], name: str) -> list[ScaleRow]:
    """Return the rows of one model, small regions first; none where it has no samples."""
    scores = [slide.scores[name] for slide in slides if name in slide.scores]
    rows = []
    for spots in (*REGIONS, None):
        columns = [_columns(score, spots) for score in scores if _parts(score, spots)]
        if columns:
            values = {key: np.array([column[key] for column in columns]) for key in COLUMNS}
            region = SLIDE if spots is None else f"{spots} spot{'s' if spots > 1 else ''}"
            means = {key: mean_of_defined(value) for key, value in values.items()}
            rows.append(ScaleRow(region, means, values))
    return rows


def _parts(score: Score, spots: int | None) -> list[ScaleCoverage]:
    """Return the coverage of regions of a size, None for the slide: of each gene, of their mean."""
    return [
        part
        for part in score.by_scale
        if part.whole == (spots is None) and spots in (None, part.spots)
    ]


def _columns(score: Score, spots: int | None) -> dict[str, float]:
    each, together = _parts(score, spots)
    return {
        **{f"coverage_{100 * part.level:.0f}": part.covered for part in each.raw},
        "width_80": _at_80(each.raw).width,
        "centred_80": _at_80(each.centred).covered if each.centred else float("nan"),
        "genes_80": _at_80(together.raw).covered,
    }


def _at_80(coverage: Sequence[Coverage]) -> Coverage:
    return next(part for part in coverage if part.level == 0.8)
