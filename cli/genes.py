"""``stflow-graph genes``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from stflow_graph.errors import count

from . import options as opt
from .display import add_result, show, state, table
from .following import follow_genes

if TYPE_CHECKING:
    from stflow_graph.preparation.gene_lists import ChosenGenes

_SCORES = {"hvg": "dispersion", "mean": "mean", "moran": "Moran's I"}


def genes(
    root: Annotated[Path, Argument(metavar="ROOT", help="HEST-bench root or data set folder.")],
    method: Annotated[
        Literal["hvg", "mean", "moran"], Option(help="hvg: highly variable genes, as HEST.")
    ] = "hvg",
    n_genes: Annotated[int, Option(min=1, help="Number of genes per list.")] = 50,
    min_fraction: Annotated[
        float, Option(min=0, max=1, help="Minimum fraction of spots with the gene, in every slide.")
    ] = 0.1,
    min_slides: Annotated[
        int | None,
        Option(min=1, help="Training slides that must measure a gene; 1: any. (default: all)"),
    ] = None,
    panel: Annotated[Path | None, Option(help="Gene list to choose from.")] = None,
    datasets: opt.Datasets = None,
    folds: opt.Folds = None,
    out: Annotated[Path | None, Option(help="Output folder. (default: the data set)")] = None,
    top: Annotated[int, Option(min=0, help="Number of genes to print.")] = 10,
    allow_patient_overlap: opt.AllowPatientOverlap[bool] = False,
    duplicate_genes: opt.DuplicateGenes[str] = "refuse",
    overwrite: opt.Overwrite = False,
) -> None:
    """Choose the genes of every fold on its training slides.

    The rule is HEST-bench's, which applies it to all slides. For slides of different gene panels
    give --min-slides 1, and train with --missing-genes mask.
    """
    from stflow_graph.io.gene_aliases import gene_matching
    from stflow_graph.preparation.gene_lists import GeneRule
    from stflow_graph.stages.choose_genes import choose_genes

    done = choose_genes(
        root,
        GeneRule(method, n_genes, min_fraction, panel, min_slides),
        datasets=datasets or (),
        folds=opt.numbers_or_all(folds),
        out=out,
        allow_patient_overlap=allow_patient_overlap,
        matching=gene_matching(None, duplicate_genes),
        overwrite=overwrite,
        report=lambda chosen: _show(chosen, _SCORES[method], top),
    )
    everything = done[0].fold is None
    option = done[0].file.name.replace(f"_fold{done[0].fold}", "_fold{fold}")
    file = Path(option) if out is None else done[0].file.with_name(option)
    masked = [] if min_slides is None else ["--missing-genes", "mask"]
    every_slide = ["--folds", "all"] if everything else []
    follow_genes(root, done[0].dataset, ["--gene-list", file, *masked, *every_slide])


def _show(chosen: ChosenGenes, score: str, top: int) -> None:
    add_result(chosen)
    if top:
        rows = [
            [str(rank), gene, f"{mean:.2f}", f"{share:.0%}", f"{value:.3f}", str(slides)]
            for rank, (gene, mean, share, value, slides) in enumerate(
                chosen.genes.head(top).itertuples(), 1
            )
        ]
        which = "all slides" if chosen.fold is None else f"fold {chosen.fold}"
        qualified = count(chosen.n_qualified, "gene")
        verb = "qualifies" if chosen.n_qualified == 1 else "qualify"
        title = f"{chosen.dataset}, {which}: {qualified} {verb}"
        headings = ["", "gene", "mean count", "min. fraction", score, "slides"]
        show(table(title, headings, rows, left=(1,)))
    show(f"{chosen.file} {state(chosen.up_to_date)}: {count(len(chosen.genes), 'gene')}")
