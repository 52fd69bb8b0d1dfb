"""``stflow-graph genes``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from stflow_graph.preparation.gene_lists import ChosenGenes

_SCORES = {"hvg": "dispersion", "mean": "mean", "moran": "Moran's I"}


def genes(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="HEST-bench root or data set.")],
    method: Annotated[
        str, typer.Option(help="hvg (highly variable, as HEST), mean or moran.")
    ] = "hvg",
    n_genes: Annotated[int, typer.Option(min=1, help="Genes of a list.")] = 50,
    least_share: Annotated[
        float, typer.Option(min=0, max=1, help="Of every slide's spots that must have the gene.")
    ] = 0.1,
    panel: Annotated[Path | None, typer.Option(help="Gene list to choose from.")] = None,
    datasets: Annotated[list[str] | None, typer.Option(help="Data sets, one or more.")] = None,
    folds: Annotated[
        list[int] | None, typer.Option("--folds", "--fold", help="Folds, one or more.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder, if not the data set's.")] = None,
    top: Annotated[int, typer.Option(min=0, help="Genes to show.")] = 10,
    allow_patient_overlap: Annotated[
        bool, typer.Option("--allow-patient-overlap", help="Test patients may be in training.")
    ] = False,
    duplicate_genes: Annotated[str, typer.Option(help="refuse, sum or first.")] = "refuse",
    overwrite: Annotated[bool, typer.Option(help="Replace lists that are there.")] = False,
) -> None:
    """Choose the genes of every fold on its training slides alone, by HEST-bench's rule."""
    from stflow_graph.io.gene_aliases import gene_matching
    from stflow_graph.preparation.gene_choice import METHODS
    from stflow_graph.preparation.gene_lists import GeneRule
    from stflow_graph.stages.choose_genes import choose_genes

    known = next((name for name in METHODS if name == method), None)
    if known is None:
        raise typer.BadParameter(f"--method takes {', '.join(METHODS)}")
    console = Console()
    done = choose_genes(
        root,
        GeneRule(known, n_genes, least_share, panel),
        datasets=datasets or (),
        folds=folds or (),
        out=out,
        allow_patient_overlap=allow_patient_overlap,
        matching=gene_matching(None, duplicate_genes),
        overwrite=overwrite,
        report=lambda chosen: _show(console, chosen, _SCORES[method], top),
    )
    option = done[0].file.name.replace(f"_fold{done[0].fold}", "_fold{fold}")
    place = option if out is None else done[0].file.with_name(option)
    console.print(
        f"next: stflow-graph train --gene-list '{place}' ...",
        style="dim",
        soft_wrap=True,
        markup=False,
    )


def _show(console: Console, chosen: ChosenGenes, score: str, top: int) -> None:
    if top:
        title = f"{escape(chosen.dataset)}, fold {chosen.fold}: {chosen.n_qualified} genes qualify"
        table = Table("", "gene", title=title)
        for heading in ("mean count", "least share of spots", score):
            table.add_column(heading, justify="right")
        best = chosen.genes.head(top)
        for rank, (gene, mean, share, value) in enumerate(best.itertuples(), 1):
            table.add_row(str(rank), escape(gene), f"{mean:.2f}", f"{share:.0%}", f"{value:.3f}")
        console.print(table)
    state = "there already" if chosen.up_to_date else "written"
    line = f"{chosen.file}: {len(chosen.genes)} genes, {state}"
    console.print(line, soft_wrap=True, markup=False, highlight=False)
