"""The report of an evaluation: one self-contained HTML page, from ``report.html.jinja``."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stflow_graph.evaluation.baselines import DARKNESS, NAMES
from stflow_graph.evaluation.by_scale import COLUMNS, scale_rows
from stflow_graph.evaluation.charts import (
    MapFrame,
    ScaleLine,
    Series,
    colour_scale,
    gene_chart,
    map_png,
    scale_chart,
    strip_chart,
)
from stflow_graph.evaluation.notes import TRAINING_SLIDE
from stflow_graph.evaluation.page import UNITS, render
from stflow_graph.evaluation.records import CEILING, Evaluation, SlideEvaluation
from stflow_graph.evaluation.table import MEAN_MEASURES, SAMPLE_MEASURES, defined_measures
from stflow_graph.stats.ensembles import max_coverage
from stflow_graph.version import __version__

MAX_MAPS = 8  # slides with maps
_MAX_MAP_MODELS = 3
_COLOURS = 4  # m0 to m3 in the style sheet


def render_report(evaluation: Evaluation) -> str:
    """Return the page as HTML with styles, charts and maps inside it; it needs no network."""
    models = [row.name for row in evaluation.rows if row.kind == "model"]
    page = render(
        "report.html.jinja",
        evaluation=evaluation,
        models=models,
        unit=UNITS[evaluation.target],
        training_mark=TRAINING_SLIDE,
        ceiling=CEILING,
        strips=_strips(evaluation),
        mean_measures=defined_measures(evaluation.rows, MEAN_MEASURES),
        sample_measures=defined_measures(evaluation.rows, SAMPLE_MEASURES),
        views=[
            _view(slide, models, evaluation.best_baseline, maps=i < MAX_MAPS)
            for i, slide in enumerate(evaluation.slides)
        ],
        # a slide with samples of each model
        sampled={name: slide for slide in reversed(evaluation.slides) for name in slide.samples},
        scales=_scales(evaluation, models),
        scale_columns=COLUMNS,
        max_maps=MAX_MAPS,
        colours=colour_scale(),
        version=__version__,
    )
    return str(page)


def _strips(evaluation: Evaluation) -> dict[str, str]:
    """Return each row's mean and interval as a chart, all on one scale."""
    values = [value for row in evaluation.rows for value in (row.mean, *row.interval)]
    finite = [value for value in values if np.isfinite(value)]
    span = min([0.0, *finite]), 1.04 * max([0.1, *finite])
    ceiling = evaluation.rows[-1].mean
    return {
        row.name: strip_chart(row.mean, row.interval, ceiling, span)
        for row in evaluation.rows
        if np.isfinite(row.mean) and row.name != CEILING
    }


def _scales(evaluation: Evaluation, models: Sequence[str]) -> dict[str, Any] | None:
    """Return the figure and the tables of calibration by scale; None without samples."""
    rows = {name: scale_rows(evaluation.averaged, name) for name in models}
    rows = {name: of_model for name, of_model in rows.items() if of_model}
    if not rows:
        return None
    lines = [
        ScaleLine(
            f"{name}{suffix}",
            f"m{models.index(name) % _COLOURS}",
            bool(suffix),
            {row.region: row.slides[key] for row in of_model if np.isfinite(row.means[key])},
        )
        for name, of_model in rows.items()
        for key, suffix in (("coverage_80", ""), ("centred_80", ", centred"))
    ]
    label = "Coverage of 80% intervals of means over regions, by size of region"
    n_samples = [len(slide.samples[n]) for slide in evaluation.slides for n in slide.samples]
    nominal = max_coverage(0.8, min(n_samples))
    chart = scale_chart(lines, nominal, label)
    return {"rows": rows, "lines": lines, "nominal": nominal, "chart": chart}


def _view(
    slide: SlideEvaluation, models: Sequence[str], baseline: str | None, *, maps: bool
) -> dict[str, Any]:
    """Return the charts of a slide's section."""
    ranked = sorted(
        (name for name in models if name in slide.scores),
        key=lambda name: -np.nan_to_num(slide.scores[name].mean("pearson"), nan=-2),
    )
    view: dict[str, Any] = {"slide": slide, "chart": None, "maps": [], "first": ranked[0]}
    pearson = slide.scores[ranked[0]].per_gene["pearson"]
    order = [int(i) for i in np.argsort(-pearson, kind="stable") if np.isfinite(pearson[i])]
    if order:
        others = [*ranked[1:], *([baseline] if baseline in slide.scores else [])]
        view |= _gene_chart(slide, ranked[0], others, models)
    if order and maps:
        frame = MapFrame.of(slide.coords, slide.um_per_px)
        names = [*ranked[:_MAX_MAP_MODELS], *_best_baseline(slide)]
        genes = {"Best": order[0], "Median": order[len(order) // 2], "Worst": order[-1]}
        view["maps"] = [_gene_maps(rank, i, slide, names, frame) for rank, i in genes.items()]
        view["bar_um"] = frame.bar_um
    return view


def _gene_chart(
    slide: SlideEvaluation, first: str, others: Sequence[str], models: Sequence[str]
) -> dict[str, Any]:
    def series(name: str) -> Series:
        style = f"m{models.index(name) % _COLOURS}" if name in models else "base"
        return Series(name, style, slide.scores[name].per_gene["pearson"])

    bars, dots = series(first), [series(name) for name in others]
    limit = Series(CEILING, "limit", slide.ceiling)
    label = f"Correlation of each gene on slide {slide.name}, {first} as bars, best first"
    return {
        "chart": gene_chart(slide.genes, bars, dots, limit, label),
        "legend": [("bar", bars), *(("dot", dot) for dot in dots), ("line", limit)],
    }


def _best_baseline(slide: SlideEvaluation) -> list[str]:
    """Return the baseline with the highest score of those in units of expression, if any."""
    names = [name for name in NAMES if name in slide.scores and name != DARKNESS]
    scores = {name: slide.scores[name].mean("pearson") for name in names}
    defined = {name: score for name, score in scores.items() if np.isfinite(score)}
    return [max(defined, key=lambda name: defined[name])] if defined else []


def _gene_maps(
    rank: str, gene: int, slide: SlideEvaluation, names: Sequence[str], frame: MapFrame
) -> Mapping[str, Any]:
    """Return the maps of a gene: the truth beside predictions, on one scale."""
    values = {"measured": slide.truth[:, gene]}
    values |= {name: slide.predictions[name][:, gene] for name in names}
    ends = np.quantile(list(values.values()), [0.01, 0.99], axis=1)
    low, high = float(ends[0].min()), float(ends[1].max())
    if high - low < 1e-9:
        high = low + 1.0
    pearson = {name: slide.scores[name].per_gene["pearson"][gene] for name in names}
    figures = [
        (title, base64.b64encode(map_png(frame, shown, (low, high))).decode(), pearson.get(title))
        for title, shown in values.items()
    ]
    size = [edge // 2 for edge in frame.size]
    return {"rank": rank, "gene": gene, "scale": (low, high), "size": size, "figures": figures}
