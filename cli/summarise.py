"""``stflow-graph summarise``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.console import Console
from rich.text import Text
from typer import Argument, Option

from stflow_graph.errors import count

from .display import add_result, show, table
from .paths import check_paths

if TYPE_CHECKING:
    from stflow_graph.stages.summarise import Summary

_MAX_ROWS, _MAX_COLUMNS = 20, 10
_NOT_SHOWN = ["dataset", "in_training", "n_measured", "n_constant_genes"]


def summarise(
    predictions: Annotated[list[Path], Argument(help="Prediction files of `sample`, or folders.")],
    out: Annotated[Path, Option(help="Folder of the tables; an earlier summary is replaced.")],
    patients: Annotated[
        Path | None, Option(help="Table with sample_id, patient and further columns to keep.")
    ] = None,
    gene_sets: Annotated[list[Path] | None, Option(help="Gene sets, GMT files.")] = None,
    domains: Annotated[int, Option(min=0, max=100, help="Number of spatial domains; 0: none.")] = 0,
    smoothing: Annotated[
        int, Option(min=0, max=100, help="Averages over neighbours before finding domains.")
    ] = 0,
    reference: Annotated[
        list[Path] | None,
        Option(help="Predictions of training slides, to count spots above their quantiles."),
    ] = None,
    seed: Annotated[int, Option(min=0, max=2**32 - 1, help="Random seed of the domains.")] = 0,
    format: Annotated[Literal["csv", "parquet"], Option(help="Format of the tables.")] = "csv",
) -> None:
    """Tabulate the slides, genes, domains and patients of a cohort."""
    check_paths(*(gene_sets or ()), patients, *(reference or ()), folder=out, slides=predictions)
    from stflow_graph.stages.summarise import SummarySettings
    from stflow_graph.stages.summarise import summarise as run

    settings = SummarySettings(
        gene_sets=tuple(gene_sets or ()),
        patients=patients,
        reference=tuple(reference or ()),
        domains=domains,
        smoothing=smoothing,
        seed=seed,
        format=format,
    )
    with Console(stderr=True).status("reading") as status:

        def done(result: Summary) -> None:
            status.stop()
            add_result(result)
            _show(result)

        def report(step: str) -> None:
            status.update(Text(step))

        run(predictions, out, settings, report=report, done=done)


def _show(result: Summary) -> None:
    from stflow_graph.io.cells import printable

    slides = result.slides
    columns = list(slides.columns.drop(_NOT_SHOWN)[:_MAX_COLUMNS])
    rows = [
        [_cell(x) for x in row] for row in slides[columns].head(_MAX_ROWS).itertuples(index=False)
    ]
    note = ""
    if len(slides) > _MAX_ROWS or len(columns) < len(slides.columns) - len(_NOT_SHOWN):
        columns_in_all = count(len(slides.columns), "column")
        note = f"{count(len(slides), 'slide')}, {columns_in_all} in the table of slides"
    left = [i for i, name in enumerate(columns) if name in ("slide", "patient")]
    show(table("", [printable(name) for name in columns], rows, left=left, note=note))
    show(*(f"note: {text}" for text in result.content["notes"]), style="yellow")
    for name, text in result.content["tables"].items():
        show(f"{result.out / name}: {text}")
    show(f"report: {result.report}")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.3f}"
    return str(value)
