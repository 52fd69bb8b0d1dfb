"""Records of an evaluation: scores, slides, rows of the table, and all of them together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from stflow_graph.stats.ensembles import Coverage
from stflow_graph.stats.metrics import is_constant, mean_of_defined
from stflow_graph.stats.scales import ScaleCoverage

Kind = Literal["model", "baseline", "reference"]
CEILING = "noise ceiling"
TRUE_MEAN = "true mean (simulator)"


@dataclasses.dataclass(frozen=True)
class Score:
    """Scores of one prediction of one slide.

    Attributes:
        per_gene: metric to ``[G]``, NaN where undefined: pearson, spearman, moran; in the units of
            expression mse, r2, relative_variation; for samples crps, energy_distance.
        overall: metrics of all genes together: moran_difference (prediction − truth),
            gene_correlation_distance; for samples energy_score, coverage_50 and so on, width_80,
            and those of ``stats.scales``.
        coverage: the same coverage beside that of a calibrated model; empty without samples.
        by_scale: coverage of means over regions of each size; empty without samples.
    """

    per_gene: dict[str, np.ndarray]
    overall: dict[str, float]
    coverage: list[Coverage]
    by_scale: list[ScaleCoverage] = dataclasses.field(default_factory=list)

    def mean(self, metric: str) -> float:
        """Return a metric over all genes, NaN where it is undefined."""
        if metric in self.overall:
            return self.overall[metric]
        return mean_of_defined(self.per_gene.get(metric, np.empty(0)))


@dataclasses.dataclass(frozen=True)
class SlideEvaluation:
    """One slide: the truth, predictions for its N spots and G genes, and their scores.

    Attributes:
        id: the slide's name.
        name: the same, prefixed with its data set where two data sets share the name.
        dataset: its data set, "" if none.
        fold: the fold of its models, None if unknown.
        target: unit of the expression, see ``data.normalise``.
        genes: G names.
        barcodes: N spots with a prediction and a truth.
        coords: ``[N, 2]`` level-0 pixels (x, y).
        um_per_px: micrometres per pixel, None if unknown.
        truth: ``[N, G]`` in the units of the target.
        truth_file: its file, "" for counts in memory.
        ceiling: ``[G]`` noise ceiling of the Pearson correlation.
        moran: ``[G]`` Moran's I of the truth.
        n_predicted: number of predicted spots; those beyond N have no truth.
        n_unpredicted: number of spots with a truth and without a prediction.
        held_out: False if a model was trained on this slide; None if unknown.
        predictions: row of the table to ``[N, G]``.
        samples: row of the table to ``[S, N, G]``.
        scores: row of the table to its score.
        provenance: model to the provenance in its file.
        absent_genes: predicted genes that are absent from the truth and not among the G.
        matched_genes: sentence on genes matched by another name; "" if none.
        observed: sentence on measured values that informed a prediction; "" if none.
        truth_sha256: SHA-256 of the truth's file, None for counts in memory.
    """

    id: str
    name: str
    dataset: str
    fold: int | None
    target: str
    genes: list[str]
    barcodes: list[str]
    coords: np.ndarray
    um_per_px: float | None
    truth: np.ndarray
    truth_file: str
    ceiling: np.ndarray
    moran: np.ndarray
    n_predicted: int
    held_out: bool | None
    predictions: dict[str, np.ndarray]
    samples: dict[str, np.ndarray]
    scores: dict[str, Score]
    provenance: dict[str, dict[str, Any]]
    absent_genes: list[str] = dataclasses.field(default_factory=list)
    matched_genes: str = ""
    observed: str = ""
    n_unpredicted: int = 0
    truth_sha256: str | None = None

    def __len__(self) -> int:
        return len(self.barcodes)

    @property
    def n_genes(self) -> int:
        """Number of predicted genes, with those that the truth lacks."""
        return len(self.genes) + len(self.absent_genes)

    @property
    def label(self) -> str:
        """The slide's name, and how many of the genes are measured unless all are."""
        n_measured = f" ({len(self.genes)} of {self.n_genes} genes)"
        return self.name + (n_measured if self.absent_genes else "")

    @property
    def constant_genes(self) -> list[str]:
        """Genes whose truth is constant, so that correlations are undefined."""
        return [self.genes[i] for i in np.flatnonzero(is_constant(self.truth))]


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table of scores.

    Attributes:
        name: model, baseline or reference.
        kind: which of the three.
        slides: slide to its mean Pearson correlation over genes; training slides as well.
        mean: mean over the test slides, NaN unless each of them has one; so are the others.
        interval: 95% spot-bootstrap interval of the mean.
        difference: mean − the best baseline's; None except for models beside baselines.
        difference_interval: its 95% spot-bootstrap interval.
        of_ceiling: mean / the noise ceiling's mean.
        others: further metrics, means over slides.
    """

    name: str
    kind: Kind
    slides: dict[str, float]
    mean: float
    interval: tuple[float, float]
    difference: float | None
    difference_interval: tuple[float, float] | None
    of_ceiling: float
    others: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of ``evaluate``.

    Attributes:
        target: unit of the expression, see ``data.normalise``.
        slides: in the order of the predictions.
        rows: the table: models, baselines, references; means are over :attr:`averaged`.
        best_baseline: the baseline of the highest mean, None if none.
        notes: warnings: exclusions and their reasons.
        n_bootstrap: resamples behind each interval.
        seed: of the resamples, the thinning and the baselines.
        out: folder of ``metrics.json``, ``metrics.csv`` and ``report.html``; None if not written.
        protocols: names of the evaluation protocols, see ``data.protocol``; empty for foreign
            predictions.
    """

    target: str
    slides: list[SlideEvaluation]
    rows: list[Row]
    best_baseline: str | None
    notes: list[str]
    n_bootstrap: int
    seed: int
    out: Path | None = None
    protocols: list[str] = dataclasses.field(default_factory=list)

    @property
    def test_slides(self) -> list[SlideEvaluation]:
        """Slides that no model was trained on, as far as is known."""
        return [slide for slide in self.slides if slide.held_out is not False]

    @property
    def scored_genes(self) -> str:
        """The genes that means are over, for captions."""
        return "measured genes" if any(slide.absent_genes for slide in self.slides) else "genes"

    @property
    def averaged(self) -> list[SlideEvaluation]:
        """Slides that the table's means are over: the test slides, or all if there are none."""
        return averaged_slides(self.slides)

    def table(self) -> pd.DataFrame:
        """Return a row per model, baseline and reference: the mean PCC and the other metrics."""
        columns = {
            row.name: {
                "kind": row.kind,
                "pearson": row.mean,
                "low": row.interval[0],
                "high": row.interval[1],
                "of_ceiling": row.of_ceiling,
                **row.others,
            }
            for row in self.rows
        }
        return pd.DataFrame.from_dict(columns, orient="index")


def averaged_slides(slides: Sequence[SlideEvaluation]) -> list[SlideEvaluation]:
    """Return the slides that means are over: those not trained on, or all if there are none."""
    return [slide for slide in slides if slide.held_out is not False] or list(slides)
