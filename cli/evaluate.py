"""``stflow-graph eval``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console, Group
from rich.text import Text
from typer import Argument, Option

from stflow_graph.errors import count

from . import options as opt
from .display import add_result, console, show, table
from .paths import check_paths

if TYPE_CHECKING:
    from stflow_graph.evaluation.records import Evaluation

_MAX_SLIDES = 6
# columns that a row's name and a measure take at most
_NAME_WIDTH, _MEASURE_WIDTH = 24, 9
_STYLES = {"model": "bold", "baseline": "", "reference": "dim"}


def evaluate(
    predictions: Annotated[list[Path], Argument(help="Prediction files of `sample`, or folders.")],
    truth: Annotated[Path, Option(help="Measured .h5ad, or a folder of <slide>.h5ad.")],
    out: Annotated[Path, Option(help="Folder of metrics.json, metrics.csv, report.html.")],
    baselines: Annotated[bool, Option("--baselines", help="Fit and score baselines.")] = False,
    slow_baselines: Annotated[
        bool, Option("--slow-baselines", help="Also a random forest and a simple GNN.")
    ] = False,
    source_dataroot: opt.SourceDataroot[Path | None] = None,
    embed_dataroot: opt.EmbedDataroot[Path | None] = None,
    gene_aliases: opt.GeneAliases[Path | None] = None,
    duplicate_genes: opt.DuplicateGenes[str] = "refuse",
    n_bootstrap: Annotated[
        int, Option(min=1, max=100_000, help="Bootstrap samples for intervals.")
    ] = 1000,
    seed: opt.Seed = 0,
) -> None:
    """Score predictions and baselines, and write a report.

    Baselines need --source-dataroot and --embed-dataroot, those of training.
    """
    check_paths(
        *(*predictions, truth, gene_aliases), folder=out, roots=(source_dataroot, embed_dataroot)
    )
    from stflow_graph.io.gene_aliases import gene_matching
    from stflow_graph.stages.evaluate import evaluate as run

    with Console(stderr=True).status("reading") as status:
        scores = run(
            predictions,
            truth,
            out,
            baselines=baselines,
            slow_baselines=slow_baselines,
            source_dataroot=source_dataroot,
            embed_dataroot=embed_dataroot,
            matching=gene_matching(gene_aliases, duplicate_genes),
            n_bootstrap=n_bootstrap,
            seed=seed,
            progress=lambda step: status.update(Text(step)),
            done=lambda scores: add_result(_record(scores, out)),
        )
    show(_score_table(scores), _slide_table(scores), *_measure_tables(scores))
    show(*_scale_tables(scores))
    show(*(f"protocol: {protocol}" for protocol in scores.protocols))
    for slide in scores.slides:
        genes = f", {len(slide.genes)} of {slide.n_genes} genes" if slide.absent_genes else ""
        show(f"{slide.name}: {len(slide)} of {slide.n_predicted} predicted spots{genes} scored")
    show(*(f"note: {note}" for note in scores.notes), style="yellow")
    show(f"report: {out / 'report.html'}")


def _record(scores: Evaluation, out: Path) -> dict[str, object]:
    """Return an evaluation without its matrices and genes, which are in ``metrics.json``."""
    return {
        "metrics": out / "metrics.json",
        "table": out / "metrics.csv",
        "report": out / "report.html",
        "target": scores.target,
        "protocols": scores.protocols,
        "best_baseline": scores.best_baseline,
        "rows": scores.rows,
        "slides": [
            {
                "slide": slide.name,
                "held_out": slide.held_out,
                "n_spots": len(slide),
                "n_spots_predicted": slide.n_predicted,
                "n_genes": len(slide.genes),
            }
            for slide in scores.slides
        ],
        "notes": scores.notes,
    }


def _score_table(scores: Evaluation) -> Group:
    """Return the mean correlations: models, baselines, noise ceiling."""
    names = [slide.name for slide in scores.averaged]
    slides = names[0] if len(names) == 1 else f"mean of {len(names)} slides"
    if left_out := len(scores.slides) - len(names):
        slides += f" ({count(left_out, 'training slide')} left out)"
    elif not scores.test_slides:
        slides += " (trained on)"
    compared = scores.best_baseline is not None
    rows = []
    for row in scores.rows:
        ceiling = "–" if math.isnan(row.of_ceiling) else f"{row.of_ceiling:.0%}"
        cells = [row.name, _number(row.mean), _interval(row.interval), ceiling]
        if compared and row.difference is not None:
            ends = _interval(row.difference_interval)
            cells += [f"{_number(row.difference, sign=True)} ({ends})"]
        rows.append(cells)
    headings = ["", "PCC", "95%", "ceiling", *(["− best baseline"] if compared else [])]
    title = f"PCC of {scores.target}, mean over {scores.scored_genes}, {slides}"
    return table(title, headings, rows, styles=_styles(scores))


def _slide_table(scores: Evaluation) -> Group | None:
    """Return the mean correlation of every slide; None for one slide or very many."""
    names = [slide.name for slide in scores.slides]
    if not 1 < len(names) <= _MAX_SLIDES:
        return None
    rows = [[row.name, *(_number(row.slides.get(name)) for name in names)] for row in scores.rows]
    marks = [" (trained on)" if slide.held_out is False else "" for slide in scores.slides]
    labels = [slide.label for slide in scores.slides]
    headings = [f"{label}{mark}" for label, mark in zip(labels, marks, strict=True)]
    return table("PCC per slide", ["", *headings], rows, styles=_styles(scores))


def _measure_tables(scores: Evaluation) -> list[Group]:
    """Return the other measures, means over slides, in tables that fit the width."""
    from stflow_graph.evaluation.table import MEAN_MEASURES, SAMPLE_MEASURES, defined_measures

    kinds = {"other measures": MEAN_MEASURES, "measures of the samples": SAMPLE_MEASURES}
    per_table = max(1, (console().width - _NAME_WIDTH) // _MEASURE_WIDTH)
    tables = []
    for title, measures in kinds.items():
        rows, texts = defined_measures(scores.rows, measures)
        names, styles = list(texts), [_STYLES[row.kind] for row in rows]
        for some in (names[i : i + per_table] for i in range(0, len(names), per_table)):
            cells = [
                [row.name, *(_number(row.others[n], sign=n.endswith("difference")) for n in some)]
                for row in rows
            ]
            headings = ["", *(texts[name][0] for name in some)]
            tables.append(table(f"{title}, mean over slides", headings, cells, styles=styles))
    return tables


def _scale_tables(scores: Evaluation) -> list[Group]:
    """Return calibration by scale of each model with samples."""
    from stflow_graph.evaluation.by_scale import COLUMNS, scale_rows

    tables = []
    for name in (row.name for row in scores.rows if row.kind == "model"):
        cells = [
            [row.region, *(_number(row.means[key]) for key in COLUMNS)]
            for row in scale_rows(scores.averaged, name)
        ]
        if cells:
            headings = ["mean over", *(heading for heading, _ in COLUMNS.values())]
            tables.append(table(f"calibration by scale, {name}", headings, cells))
    return tables


def _styles(scores: Evaluation) -> list[str]:
    return [_STYLES[row.kind] for row in scores.rows]


def _number(value: float | None, sign: bool = False) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:+.3f}" if sign else f"{value:.3f}"


def _interval(ends: tuple[float, float] | None) -> str:
    if ends is None or math.isnan(ends[0]):
        return ""
    return f"{_number(ends[0])} to {_number(ends[1])}"
