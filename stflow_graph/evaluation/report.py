"""The report of an evaluation: one self-contained HTML page, from ``report.html.jinja``."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stflow_graph.evaluation.baselines import DARKNESS, NAMES
from stflow_graph.evaluation.charts import (
    MapFrame,
    Series,
    colour_scale,
    gene_chart,
    map_png,
    strip_chart,
)
from stflow_graph.evaluation.notes import TRAINING_SLIDE
from stflow_graph.evaluation.records import CEILING, Evaluation, SlideEvaluation
from stflow_graph.evaluation.table import MEASURES, make_table
from stflow_graph.stats.metrics import mean_of_defined
from stflow_graph.version import __version__

MAX_MAPS = 8  # slides with maps
_MAX_MAP_MODELS = 3
_COLOURS = 4  # m0 to m3 in the style sheet
_UNITS = {"log1p": "log1p(count)", "log1p_normalised": "log1p(10⁴ · count / total)"}


def render_report(evaluation: Evaluation) -> str:
    """Return the page as HTML with styles, charts and maps inside it; it needs no network."""
    environment = Environment(
        loader=PackageLoader("stflow_graph.evaluation", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"number": _number, "interval": _interval, "percent": _percent}
    environment.tests["finite"] = lambda value: bool(np.isfinite(value))
    models = [row.name for row in evaluation.rows if row.kind == "model"]
    genes = sorted({len(slide.genes) for slide in evaluation.slides})
    n_spots, n_genes = sum(map(len, evaluation.slides)), " or ".join(map(str, genes))
    return environment.get_template("report.html.jinja").render(
        evaluation=evaluation,
        title=f"{' and '.join(models)}: predicted expression on "
        + _count(len(evaluation.slides), "slide"),
        lead=f"{n_spots:,} spots, {n_genes} genes, {_UNITS[evaluation.target]}",
        **_headlines(evaluation, models),
        ceiling=CEILING,
        strips=_strips(evaluation),
        measures={
            metric: texts
            for metric, texts in MEASURES.items()
            if any(np.isfinite(row.others.get(metric, np.nan)) for row in evaluation.rows)
        },
        calibrated=_calibrated(evaluation),
        slides=[
            _slide(slide, evaluation, models, maps=i < MAX_MAPS)
            for i, slide in enumerate(evaluation.slides)
        ],
        n_without_maps=max(0, len(evaluation.slides) - MAX_MAPS),
        provenance=_provenance(evaluation),
        colours=Markup(colour_scale()),
    )


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _number(value: float | None, places: int = 3, sign: bool = False) -> str:
    """Return a number for display: a true minus, and a dash for None and NaN."""
    if value is None or not np.isfinite(value):
        return "–"
    value = round(value, places) + 0.0  # no minus before a zero
    text = f"{value:+.{places}f}" if sign else f"{value:.{places}f}"
    return text.replace("-", "−")


def _interval(ends: tuple[float, float] | None, sign: bool = False) -> str:
    if ends is None or not np.isfinite(ends).all():
        return ""
    return f"{_number(ends[0], sign=sign)} to {_number(ends[1], sign=sign)}"


def _percent(value: float) -> str:
    return f"{value:.0%}" if np.isfinite(value) else "–"


def _headlines(evaluation: Evaluation, models: Sequence[str]) -> dict[str, Any]:
    """Return the scores of test slides, and lines on training slides, which are no test."""
    test = [slide for slide in evaluation.slides if slide.held_out is not False]
    rows, best = evaluation.rows, evaluation.best_baseline
    if len(test) < len(evaluation.slides):
        rows, best = [], None
        if test:
            rows, best = make_table(test, evaluation.n_bootstrap, evaluation.seed)
    kind = "held-out slide" if all(slide.held_out for slide in test) else "slide"
    return {
        "test_slides": _count(len(test), kind),
        "test_rows": rows,
        "test_best": best,
        "training_lines": [
            f"Slide {slide.name}: {_model_scores(slide, models)} ({TRAINING_SLIDE})"
            for slide in evaluation.slides
            if slide.held_out is False
        ],
    }


def _model_scores(slide: SlideEvaluation, models: Sequence[str]) -> str:
    scores = {name: slide.scores[name].mean("pearson") for name in models if name in slide.scores}
    return ", ".join(f"{name} {_number(score)}" for name, score in scores.items())


def _strips(evaluation: Evaluation) -> dict[str, str]:
    """Return each row's mean and interval as a chart, all on one scale."""
    values = [value for row in evaluation.rows for value in (row.mean, *row.interval)]
    finite = [value for value in values if np.isfinite(value)]
    span = min([0.0, *finite]), 1.04 * max([0.1, *finite])
    ceiling = evaluation.rows[-1].mean
    return {
        row.name: Markup(strip_chart(row.mean, row.interval, ceiling, span))
        if np.isfinite(row.mean) and row.name != CEILING
        else ""
        for row in evaluation.rows
    }


def _calibrated(evaluation: Evaluation) -> list[tuple[str, int, list[float]]]:
    """Return each model with samples, their number, and the coverage of a calibrated model."""
    lines = []
    for row in evaluation.rows:
        slide = next((s for s in evaluation.slides if row.name in s.samples), None)
        if slide is not None:
            shares = [part.calibrated for part in slide.scores[row.name].coverage]
            lines.append((row.name, len(slide.samples[row.name]), shares))
    return lines


def _slide(
    slide: SlideEvaluation, evaluation: Evaluation, models: Sequence[str], *, maps: bool
) -> dict[str, Any]:
    facts = [_count(len(slide), "spot")]
    if slide.fold is not None:
        facts.append(f"fold {slide.fold}")
    if slide.held_out is not None:
        facts.append("held out of training" if slide.held_out else TRAINING_SLIDE)
    facts.append(f"noise ceiling {_number(mean_of_defined(slide.ceiling), 2)}")
    present = sorted(
        (name for name in models if name in slide.scores),
        key=lambda name: -np.nan_to_num(slide.scores[name].mean("pearson"), nan=-2),
    )
    view = {"name": slide.name, "facts": facts}
    view |= _gene_chart(slide, present, models, evaluation.best_baseline)
    return view | (_maps(slide, present) if maps else {"maps": []})


def _gene_chart(
    slide: SlideEvaluation, present: Sequence[str], models: Sequence[str], baseline: str | None
) -> dict[str, Any]:
    def series(name: str) -> Series:
        style = f"m{models.index(name) % _COLOURS}" if name in models else "base"
        return Series(name, style, slide.scores[name].per_gene["pearson"])

    others = [*present[1:], *([baseline] if baseline in slide.scores else [])]
    bars, dots = series(present[0]), [series(name) for name in others]
    if not np.isfinite(bars.values).any():
        return {"chart": None}
    limit = Series(CEILING, "limit", slide.ceiling)
    label = f"Correlation of each gene on slide {slide.name}, {bars.name} as bars, best first"
    legend = [("bar", bars.style, bars.name), *(("dot", dot.style, dot.name) for dot in dots)]
    return {
        "chart": Markup(gene_chart(slide.genes, bars, dots, limit, label)),
        "legend": [*legend, ("line", "", CEILING)],
    }


def _maps(slide: SlideEvaluation, present: Sequence[str]) -> dict[str, Any]:
    """Return maps of the best, the median and the worst gene: the truth beside predictions."""
    pearson = slide.scores[present[0]].per_gene["pearson"]
    order = [int(i) for i in np.argsort(-pearson, kind="stable") if np.isfinite(pearson[i])]
    if not order:
        return {"maps": []}
    with_units = [n for n in NAMES if n in slide.scores and n != DARKNESS]
    ranked = [n for n in with_units if np.isfinite(slide.scores[n].mean("pearson"))]
    best = max(ranked, key=lambda n: slide.scores[n].mean("pearson"), default=None)
    names = [*present[:_MAX_MAP_MODELS], *([best] if best else [])]
    frame = MapFrame.of(slide.coords, slide.um_per_px)
    bar = "" if frame.bar_um is None else f" The grey bar is {frame.bar_um:,} µm."
    caption = (
        f"Genes selected by the score of {present[0]}. All maps of a gene share a colour scale, "
        f"{_UNITS[slide.target]}, from the 1st to the 99th percentile of the values shown.{bar}"
    )
    selected = {"Best": order[0], "Median": order[len(order) // 2], "Worst": order[-1]}
    maps = [_gene_maps(rank, i, slide, names, frame) for rank, i in selected.items()]
    return {"maps": maps, "maps_caption": caption}


def _gene_maps(
    rank: str, gene: int, slide: SlideEvaluation, names: Sequence[str], frame: MapFrame
) -> dict[str, Any]:
    values = {"measured": slide.truth[:, gene]}
    values |= {name: slide.predictions[name][:, gene] for name in names}
    ends = np.quantile(list(values.values()), [0.01, 0.99], axis=1)
    low, high = float(ends[0].min()), float(ends[1].max())
    if high - low < 1e-9:
        high = low + 1.0
    pearson = {name: slide.scores[name].per_gene["pearson"][gene] for name in names}
    return {
        "rank": rank,
        "name": slide.genes[gene],
        "ceiling": slide.ceiling[gene],
        "low": low,
        "high": high,
        "width": frame.size[0] // 2,
        "height": frame.size[1] // 2,
        "figures": [
            {
                "title": title,
                "png": base64.b64encode(map_png(frame, shown, (low, high))).decode(),
                "score": pearson.get(title),
            }
            for title, shown in values.items()
        ],
    }


def _provenance(evaluation: Evaluation) -> list[tuple[str, str]]:
    rows = [("stflow-graph", __version__), ("seed of the evaluation", str(evaluation.seed))]
    for slide in evaluation.slides:
        rows.append((f"{slide.name}, truth", slide.truth_file))
        for model, values in slide.provenance.items():
            text = ", ".join(f"{k} = {v}" for k, v in values.items() if v not in (None, "", []))
            rows.append((f"{slide.name}, {model}", text))
    return rows
