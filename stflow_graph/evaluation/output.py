"""Output of an evaluation: ``metrics.json``, ``metrics.csv`` and ``report.html``."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
import sklearn

from stflow_graph.evaluation.records import CEILING, Evaluation, Row, Score, SlideEvaluation
from stflow_graph.evaluation.report import render_report
from stflow_graph.io.atomic import write_json, write_text
from stflow_graph.io.cells import safe_cell
from stflow_graph.stats.ensembles import Coverage
from stflow_graph.stats.metrics import none_if_nan
from stflow_graph.version import __version__


def write_results(evaluation: Evaluation, out: Path) -> None:
    """Write the three files into a folder."""
    html = render_report(evaluation)
    write_json(out / "metrics.json", as_json(evaluation))
    write_text(out / "metrics.csv", as_csv(evaluation))
    write_text(out / "report.html", html)


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation without its matrices; undefined numbers are None.

    So are those of predicted genes that the truth of a slide lacks.
    """
    content = {
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
                    slide.name: _score_json(slide.scores[row.name], slide)
                    for slide in evaluation.slides
                    if row.name in slide.scores
                },
            }
            for row in evaluation.rows
            if row.name != CEILING
        },
        "truth": {
            slide.name: {
                gene: {"noise_ceiling": slide.ceiling[i], "moran": slide.moran[i]}
                for i, gene in enumerate(slide.genes)
            }
            | {gene: {"noise_ceiling": None, "moran": None} for gene in slide.absent_genes}
            for slide in evaluation.slides
        },
        "provenance": {slide.name: slide.provenance for slide in evaluation.slides},
        "versions": {
            "stflow_graph": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "scikit-learn": sklearn.__version__,
        },
    }
    return _without_nan(content)


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinities, which are not JSON, by None, at any depth."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return none_if_nan(value) if isinstance(value, float) else value


def _slide_protocol(slide: SlideEvaluation) -> dict[str, Any]:
    first = next(iter(slide.provenance.values()))
    return {
        "dataset": slide.dataset,
        "fold": slide.fold,
        "train_slides": first.get("train_slides"),
        "held_out": slide.held_out,
        "name": first.get("protocol"),
        "truth": slide.truth_file,
        "truth_sha256": slide.truth_sha256,
        "gene_list": first.get("gene_list"),
        "n_genes": len(slide.genes),
        "absent_genes": slide.absent_genes,
        "constant_genes": slide.constant_genes,
        "n_spots_predicted": slide.n_predicted,
        "n_spots_unpredicted": slide.n_unpredicted,
        "n_spots_scored": len(slide),
    }


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "kind": row.kind,
        "pearson": row.slides,
        "pearson_mean": row.mean,
        "pearson_interval": row.interval,
        "difference": row.difference,
        "difference_interval": row.difference_interval,
        "of_ceiling": row.of_ceiling,
        **row.others,
    }


def _score_json(score: Score, slide: SlideEvaluation) -> dict[str, Any]:
    return {
        "mean": {name: score.mean(name) for name in (*score.per_gene, *score.overall)},
        "n_genes_defined": {
            name: int(np.isfinite(values).sum()) for name, values in score.per_gene.items()
        },
        "coverage": _coverage_json(score.coverage),
        "calibration_by_scale": [
            {
                "spots": part.spots,
                "whole_slide": part.whole,
                "genes": "mean" if part.gene_mean else "each",
                "raw": _coverage_json(part.raw),
                "centred": _coverage_json(part.centred),
            }
            for part in score.by_scale
        ],
        "genes": {
            gene: {name: values[i] for name, values in score.per_gene.items()}
            for i, gene in enumerate(slide.genes)
        }
        | {gene: dict.fromkeys(score.per_gene) for gene in slide.absent_genes},
    }


def _coverage_json(coverage: Sequence[Coverage]) -> list[dict[str, float]]:
    names = ("level", "covered", "calibrated", "width")
    return [{name: getattr(part, name) for name in names} for part in coverage]


def as_csv(evaluation: Evaluation) -> str:
    """Return a row per slide, model and gene of the truth; undefined numbers are empty cells."""
    last = ["moran_truth", "noise_ceiling"]
    rows = [
        {
            **{"slide": safe_cell(slide.name), "model": safe_cell(model), "gene": safe_cell(gene)},
            "n_spots": len(slide),
            **{name: values[i] for name, values in score.per_gene.items()},
            **dict(zip(last, (slide.moran[i], slide.ceiling[i]), strict=True)),
        }
        for slide in evaluation.slides
        for model, score in slide.scores.items()
        for i, gene in enumerate(slide.genes)
    ]
    table = pd.DataFrame(rows)
    table = table[[*table.columns.drop(last), *last]]  # the first model may lack some metrics
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
