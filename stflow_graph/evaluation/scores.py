"""What was predicted beside what was measured: scores, the table over slides, JSON and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import platform
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy
import scipy.sparse as sp
import sklearn

from stflow_graph.evaluation.baselines import DARKNESS, NAMES
from stflow_graph.io.atomic import sha256
from stflow_graph.io.cells import safe_cell
from stflow_graph.stats import ensembles, metrics, resampling
from stflow_graph.stats.metrics import mean_of_defined, none_if_nan
from stflow_graph.version import __version__

Kind = Literal["model", "baseline", "reference"]
CEILING = "noise ceiling"
TRUE_MEAN = "true mean (simulator)"
OTHERS = (
    "spearman",
    "mse",
    "r2",
    "moran_difference",
    "relative_variation",
    "gene_correlation_distance",
    "crps",
    "energy_score",
    "energy_distance",
    *(f"coverage_{100 * level:.0f}" for level in ensembles.LEVELS),
    "width_80",
)


@dataclasses.dataclass(frozen=True)
class Score:
    """One prediction of one slide against the truth.

    Attributes:
        per_gene: metric to ``[G]``, NaN where a gene does not define it: pearson, spearman, moran,
            and in the units of expression mse, r2, relative_variation, with samples crps,
            energy_distance.
        overall: metrics of all genes together: moran_difference (prediction − truth),
            gene_correlation_distance, with samples energy_score, coverage_50 and so on, width_80.
        coverage: the same coverage with what a calibrated model has; empty without samples.
    """

    per_gene: dict[str, np.ndarray]
    overall: dict[str, float]
    coverage: list[ensembles.Coverage]

    def mean(self, metric: str) -> float:
        """Return a metric over all genes, NaN where it is not defined."""
        if metric in self.overall:
            return self.overall[metric]
        return mean_of_defined(self.per_gene.get(metric, np.empty(0)))


@dataclasses.dataclass(frozen=True)
class SlideEvaluation:
    """One slide: the truth, what was predicted for its N spots and G genes, and the scores.

    Attributes:
        id: the slide's name.
        name: the same, with its data set's where two data sets have a slide of this name.
        dataset: its data set, "" if none.
        fold: the fold of its models, None if unknown.
        target: what the expression is, see ``data.normalise``.
        genes: G names.
        barcodes: N spots that have a prediction and a truth.
        coords: ``[N, 2]`` level-0 pixels (x, y).
        um_per_px: micrometres per pixel, None if unknown.
        truth: ``[N, G]`` in the units of the target.
        truth_file: where it was read, "" if it was in memory.
        ceiling: ``[G]`` noise ceiling of the Pearson correlation.
        moran: ``[G]`` Moran's I of the truth.
        n_predicted: spots that were predicted; those beyond N have no truth.
        held_out: whether the models did not train on it; None if unknown.
        predictions: row of the table to ``[N, G]``.
        samples: row of the table to ``[S, N, G]``.
        scores: row of the table to its score.
        provenance: model to what its file says of itself.
        absent_genes: predicted genes that the truth lacks, which are not among the G.
        matched_genes: in words how many genes the truth names otherwise; "" if none.
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

    def __len__(self) -> int:
        return len(self.barcodes)

    @property
    def constant_genes(self) -> list[str]:
        """Genes whose truth is constant, which no correlation can score."""
        constant = metrics.is_constant(self.truth)
        return [gene for gene, flag in zip(self.genes, constant, strict=True) if flag]


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table of scores.

    Attributes:
        name: model, baseline or reference.
        kind: which of the three.
        slides: slide to its mean Pearson correlation over genes.
        mean: their mean, NaN unless every slide has one; so are the others.
        interval: 95% spot-bootstrap interval of the mean.
        difference: mean − the best baseline's; None but for models beside baselines.
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
    """All that ``evaluate`` found.

    Attributes:
        target: what the expression is, see ``data.normalise``.
        slides: one entry a slide, in the order of the predictions given.
        rows: the table: models, baselines, references.
        best_baseline: the baseline of the highest mean that has every slide, None if none.
        notes: sentences on what was left out, and why.
        n_bootstrap: resamples behind each interval.
        seed: of the resamples, the thinning and the baselines.
        out: folder of ``metrics.json``, ``metrics.csv`` and ``report.html``; None if not written.
        protocols: names of what was measured, see ``data.protocol``; none of foreign predictions.
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

    def table(self) -> pd.DataFrame:
        """Return one row a model, baseline and reference: the mean PCC and the other metrics."""
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


def score_slide(slide: SlideEvaluation) -> None:
    """Score every prediction of a slide."""
    weights = metrics.neighbour_mean(slide.coords)
    for name, predicted in slide.predictions.items():
        score = _score_shape(predicted, slide, weights)
        if name != DARKNESS:
            score = _with_units(score, predicted, slide.truth)
        if name in slide.samples:
            score = _with_samples(score, slide.samples[name], slide.truth)
        slide.scores[name] = score


def _score_shape(predicted: np.ndarray, slide: SlideEvaluation, weights: sp.csr_matrix) -> Score:
    """Return the scores that need no units."""
    moran = metrics.morans_i(predicted, weights)
    per_gene = {
        "pearson": metrics.pearson_per_gene(predicted, slide.truth),
        "spearman": metrics.spearman_per_gene(predicted, slide.truth),
        "moran": moran,
    }
    return Score(per_gene, {"moran_difference": mean_of_defined(moran - slide.moran)}, [])


def _with_units(score: Score, predicted: np.ndarray, truth: np.ndarray) -> Score:
    per_gene = {
        "mse": metrics.mse_per_gene(predicted, truth),
        "r2": metrics.r2_per_gene(predicted, truth),
        "relative_variation": metrics.relative_variation_per_gene(predicted, truth),
    }
    distance = metrics.gene_correlation_distance(predicted, truth)
    return dataclasses.replace(
        score,
        per_gene=score.per_gene | per_gene,
        overall=score.overall | {"gene_correlation_distance": distance},
    )


def _with_samples(score: Score, samples: np.ndarray, truth: np.ndarray) -> Score:
    per_gene = {
        "crps": ensembles.crps_per_gene(samples, truth),
        "energy_distance": ensembles.energy_distance_per_gene(samples, truth),
    }
    coverage = ensembles.coverage(samples, truth)
    overall = {
        "energy_score": ensembles.energy_score(samples, truth),
        **{f"coverage_{100 * each.level:.0f}": each.covered for each in coverage},
        "width_80": next(each.width for each in coverage if each.level == 0.8),
    }
    return Score(score.per_gene | per_gene, score.overall | overall, coverage)


def _kinds(slides: Sequence[SlideEvaluation]) -> dict[str, Kind]:
    """Return the kind of each row, in the table's order."""
    names = list(dict.fromkeys(name for slide in slides for name in slide.scores))
    models = {name for slide in slides for name in slide.provenance}
    kinds: dict[str, Kind] = {name: "model" for name in names if name in models}
    kinds |= {name: "baseline" for name in names if name in NAMES}
    return kinds | {name: "reference" for name in names if name == TRUE_MEAN}


def make_table(
    slides: Sequence[SlideEvaluation], n_bootstrap: int, seed: int
) -> tuple[list[Row], str | None]:
    """Return the rows, models first, and the name of the best baseline."""
    kinds = _kinds(slides)
    means = {name: _over_slides(slides, name, "pearson") for name in kinds}
    resampled = _bootstrap(slides, list(kinds), n_bootstrap, seed)
    ranked = [n for n in kinds if kinds[n] == "baseline" and np.isfinite(means[n])]
    best = max(ranked, key=lambda name: means[name]) if ranked else None
    ceilings = {slide.name: mean_of_defined(slide.ceiling) for slide in slides}
    ceiling = float(np.mean(list(ceilings.values())))
    rows = []
    for name, kind in kinds.items():
        difference, difference_interval = None, None
        if best is not None and kind == "model":
            difference = means[name] - means[best]
            difference_interval = resampling.interval(resampled[name] - resampled[best])
        row = Row(
            name,
            kind,
            {s.name: s.scores[name].mean("pearson") for s in slides if name in s.scores},
            means[name],
            resampling.interval(resampled[name]),
            difference,
            difference_interval,
            means[name] / ceiling if ceiling > 0 else float("nan"),
            {metric: _over_slides(slides, name, metric) for metric in OTHERS}
            | {"pearson_pooled": _pooled(slides, name)},
        )
        rows.append(row)
    undefined = (float("nan"), float("nan"))
    rows.append(Row(CEILING, "reference", ceilings, ceiling, undefined, None, None, 1.0, {}))
    return rows, best


def _over_slides(slides: Sequence[SlideEvaluation], name: str, metric: str) -> float:
    """Return the mean over slides; NaN unless all have it, as other means do not compare."""
    values = [s.scores[name].mean(metric) if name in s.scores else np.nan for s in slides]
    return float(np.mean(values))


def _pooled(slides: Sequence[SlideEvaluation], name: str) -> float:
    """Return HEST-bench's figure: the spots of a fold's test slides together, mean over folds."""
    folds: dict[tuple[Any, ...], list[SlideEvaluation]] = {}
    for slide in slides:
        folds.setdefault((slide.dataset, slide.fold, *slide.genes), []).append(slide)
    if any(name not in slide.predictions for slide in slides):
        return float("nan")
    pooled = [
        metrics.pearson_per_gene(
            np.concatenate([slide.predictions[name] for slide in fold]),
            np.concatenate([slide.truth for slide in fold]),
        )
        for fold in folds.values()
    ]
    return float(np.mean([mean_of_defined(each) for each in pooled]))


def _bootstrap(
    slides: Sequence[SlideEvaluation], names: Sequence[str], n_bootstrap: int, seed: int
) -> dict[str, np.ndarray]:
    """Return each row's mean over slides in resamples of the spots within slides, ``[B]``."""
    total = {name: np.zeros(n_bootstrap) for name in names}
    for slide in slides:
        rng = rng_for(seed, slide.name, "bootstrap")
        found = resampling.bootstrap_pearson(slide.predictions, slide.truth, rng, n_bootstrap)
        for name in names:
            total[name] += found.get(name, np.nan)
    return {name: values / len(slides) for name, values in total.items()}


def rng_for(seed: int, slide: str, purpose: str) -> np.random.Generator:
    """Return a generator keyed by the slide: its figures do not depend on the slides beside it."""
    return np.random.default_rng([seed, zlib.crc32(f"{purpose}:{slide}".encode())])


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return everything of an evaluation but its matrices; what is not defined is None."""
    return {
        "format": "stflow_graph.evaluation/1",
        "protocol": {
            "names": evaluation.protocols,
            "target": evaluation.target,
            "score": "mean over genes of the Pearson correlation over spots, mean over slides",
            "best_baseline": evaluation.best_baseline,
            "interval": f"95%, {evaluation.n_bootstrap} resamples of the spots of each slide",
            "seed": evaluation.seed,
            "slides": {slide.name: _slide_protocol(slide) for slide in evaluation.slides},
            "notes": evaluation.notes,
        },
        "table": [_row_json(row) for row in evaluation.rows],
        "models": {
            row.name: {
                "kind": row.kind,
                "slides": {
                    slide.name: _score_json(slide.scores[row.name], slide.genes)
                    for slide in evaluation.slides
                    if row.name in slide.scores
                },
            }
            for row in evaluation.rows
            if row.name != CEILING
        },
        "truth": {slide.name: _truth_json(slide) for slide in evaluation.slides},
        "provenance": {slide.name: slide.provenance for slide in evaluation.slides},
        "versions": {
            "stflow_graph": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "scikit-learn": sklearn.__version__,
        },
    }


def _slide_protocol(slide: SlideEvaluation) -> dict[str, Any]:
    first = next(iter(slide.provenance.values()))
    return {
        "dataset": slide.dataset,
        "fold": slide.fold,
        "train_slides": first.get("train_slides"),
        "held_out": slide.held_out,
        "name": first.get("protocol"),
        "truth": slide.truth_file,
        "truth_sha256": sha256(slide.truth_file) if slide.truth_file else None,
        "gene_list": first.get("gene_list"),
        "n_genes": len(slide.genes),
        "absent_genes": slide.absent_genes,
        "constant_genes": slide.constant_genes,
        "n_spots_predicted": slide.n_predicted,
        "n_spots_scored": len(slide),
    }


def _row_json(row: Row) -> dict[str, Any]:
    between = row.difference_interval
    return {
        "name": row.name,
        "kind": row.kind,
        "pearson": {slide: none_if_nan(value) for slide, value in row.slides.items()},
        "pearson_mean": none_if_nan(row.mean),
        "pearson_interval": [none_if_nan(end) for end in row.interval],
        "difference": None if row.difference is None else none_if_nan(row.difference),
        "difference_interval": None if between is None else [none_if_nan(end) for end in between],
        "of_ceiling": none_if_nan(row.of_ceiling),
        **{metric: none_if_nan(value) for metric, value in row.others.items()},
    }


def _score_json(score: Score, genes: Sequence[str]) -> dict[str, Any]:
    return {
        "mean": {name: none_if_nan(score.mean(name)) for name in (*score.per_gene, *score.overall)},
        "n_genes_defined": {
            name: int(np.isfinite(values).sum()) for name, values in score.per_gene.items()
        },
        "coverage": [
            {name: getattr(each, name) for name in ("level", "covered", "calibrated", "width")}
            for each in score.coverage
        ],
        "genes": {
            gene: {name: none_if_nan(values[i]) for name, values in score.per_gene.items()}
            for i, gene in enumerate(genes)
        },
    }


def _truth_json(slide: SlideEvaluation) -> dict[str, Any]:
    rows = zip(slide.genes, slide.ceiling, slide.moran, strict=True)
    return {
        gene: {"noise_ceiling": none_if_nan(ceiling), "moran": none_if_nan(moran)}
        for gene, ceiling, moran in rows
    }


def as_csv(evaluation: Evaluation) -> str:
    """Return one row a slide, model and gene; a cell without a value is empty."""
    scores = [score for slide in evaluation.slides for score in slide.scores.values()]
    columns = list(dict.fromkeys(name for score in scores for name in score.per_gene))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["slide", "model", "gene", "n_spots", *columns, "moran_truth", "noise_ceiling"])
    for slide in evaluation.slides:
        for model, score in slide.scores.items():
            for i, gene in enumerate(slide.genes):
                known = [score.per_gene.get(name) for name in columns]
                values = [np.nan if value is None else value[i] for value in known]
                values += [slide.moran[i], slide.ceiling[i]]
                names = [safe_cell(name) for name in (slide.name, model, gene)]
                numbers = [f"{value:.6g}" if np.isfinite(value) else "" for value in values]
                table.writerow([*names, len(slide), *numbers])
    return text.getvalue()
