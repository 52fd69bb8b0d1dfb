"""Gene lists of folds, each chosen on the fold's training slides."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from stflow_graph.data.genes import read_gene_list, slides_chosen_on, write_gene_list
from stflow_graph.data.splits import Fold, Sample
from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.expression import Expression, read_expression
from stflow_graph.io.gene_names import DEFAULT_MATCHING, GeneMatching
from stflow_graph.preparation.gene_choice import (
    METHODS,
    GeneStatistics,
    Method,
    rank_genes,
)
from stflow_graph.stats.metrics import morans_i, neighbour_mean

logger = logging.getLogger(__name__)

PREFIXES: dict[Method, str] = dict(zip(METHODS, ("var", "mean", "moran"), strict=True))
_BLOCK = 2**22  # elements of a dense block of spots x genes


@dataclasses.dataclass(frozen=True)
class GeneRule:
    """How genes are chosen; see ``preparation.gene_choice.rank_genes``.

    Attributes:
        method: ``hvg``, ``mean`` or ``moran``.
        n_genes: number of genes; fewer are chosen if fewer qualify.
        min_fraction: minimum fraction of the spots of every training slide with a count of the
            gene.
        panel: file with a gene list to choose from, or None.
        min_slides: minimum number of training slides that measure a gene, for slides of different
            panels, to be trained on with missing genes masked; None: all slides, and those to test.
    """

    method: Method = "hvg"
    n_genes: int = 50
    min_fraction: float = 0.1
    panel: str | Path | None = None
    min_slides: int | None = None

    def file_name(self, fold: Fold) -> str:
        """Return the list's name: ``var_50genes_fold0.json``, or ``var_50genes_all.json``."""
        return f"{PREFIXES[self.method]}_{self.n_genes}genes_{fold.name}.json"


DEFAULT_RULE = GeneRule()


@dataclasses.dataclass(frozen=True)
class ChosenGenes:
    """The genes of one fold.

    Attributes:
        dataset: the data set's name.
        fold: the fold's number; None of all slides.
        file: the gene list.
        genes: the chosen genes, the best first, as ``rank_genes`` returns them.
        n_qualified: number of genes that qualified.
        up_to_date: the same list existed already; nothing was written.
    """

    dataset: str
    fold: int | None
    file: Path
    genes: pd.DataFrame
    n_qualified: int
    up_to_date: bool


def write_gene_lists(
    folds: Sequence[Fold],
    folder: Path,
    rule: GeneRule = DEFAULT_RULE,
    *,
    matching: GeneMatching = DEFAULT_MATCHING,
    overwrite: bool = False,
    report: Callable[[ChosenGenes], None] | None = None,
) -> list[ChosenGenes]:
    """Choose the genes of each fold of a data set and write ``folder/<rule>_fold<i>.json``.

    Test slides must measure a gene, as it could not be scored there otherwise, unless the rule asks
    for some slides only; their counts have no influence. Arguments as of ``stages.choose_genes``.

    Raises:
        BadInput: files that cannot be used, no gene qualifies, or another list exists.
    """
    panel = None if rule.panel is None else set(read_gene_list(rule.panel))
    statistics: dict[str, GeneStatistics] = {}
    chosen = []
    for fold in folds:
        slides = (*fold.train, *fold.test)
        for sample in slides:
            if sample.id not in statistics:
                statistics[sample.id] = _statistics(sample, rule, matching)
        ranked = _rank(fold, statistics, rule, panel)
        file, best = folder / rule.file_name(fold), ranked.head(rule.n_genes)
        names = [sample.id for sample in fold.train]
        before = _write(file, list(best.index), names, rule.method, overwrite)
        n_qualified = len(ranked)
        chosen.append(ChosenGenes(slides[0].dataset, fold.index, file, best, n_qualified, before))
        if report:
            report(chosen[-1])
    return chosen


def _statistics(sample: Sample, rule: GeneRule, matching: GeneMatching) -> GeneStatistics:
    expression = read_expression(sample.expr_path, matching=matching)
    statistics = GeneStatistics.of(expression.counts, expression.genes)
    if rule.method != "moran":
        return statistics
    if expression.coords is None:
        raise BadInput(sample.expr_path, "obsm", unquoted("no 'spatial'"), "positions of the spots")
    columns = np.flatnonzero(statistics.table["share"] >= rule.min_fraction)
    moran = _morans_i(expression, expression.coords, columns)
    return dataclasses.replace(statistics, table=statistics.table.assign(moran=moran))


def _morans_i(expression: Expression, coords: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return Moran's I of log1p counts ``[G]``, NaN outside of ``columns``."""
    weights = neighbour_mean(coords)
    counts = expression.counts.tocsc()
    moran = np.full(len(expression.genes), np.nan)
    step = max(1, _BLOCK // len(expression.barcodes))
    for start in range(0, len(columns), step):
        block = columns[start : start + step]
        moran[block] = morans_i(np.log1p(counts[:, block].toarray()), weights)
    return moran


def _rank(
    fold: Fold, statistics: dict[str, GeneStatistics], rule: GeneRule, panel: set[str] | None
) -> pd.DataFrame:
    training = [statistics[sample.id] for sample in fold.train]
    if rule.min_slides is None:
        measured = [set(statistics[sample.id].table.index) for sample in (*fold.train, *fold.test)]
        shared = set.intersection(*measured, *([] if panel is None else [panel]))
        which, fix = f"the slides of {fold.title} share", "give a lower --min-fraction"
    else:
        measured = [set(slide.table.index) for slide in training]
        anywhere = set.union(*measured)
        shared = anywhere if panel is None else anywhere & panel
        which = f"the training slides of {fold.title} have"
        fix = f"give a lower --min-fraction, or --min-slides of at most {len(training)}"
    ranked = rank_genes(
        training,
        rule.method,
        min_fraction=rule.min_fraction,
        panel=shared,
        min_slides=rule.min_slides,
    )
    if ranked.empty:
        source = rule.panel or fold.train[0].expr_path.parent
        found = unquoted(f"0 of {len(shared)} genes that {which}")
        expected = f"genes counted in {rule.min_fraction:.0%} of the spots of every training slide"
        if rule.min_slides is not None:
            expected += f" that measures them, of {rule.min_slides} or more"
        raise BadInput(source, "genes", found, expected, fix)
    if len(ranked) < rule.n_genes:
        logger.warning("%s: only %d of %d genes qualify", fold.title, len(ranked), rule.n_genes)
    return ranked


def _write(
    file: Path, genes: list[str], chosen_on: Sequence[str], method: Method, overwrite: bool
) -> bool:
    """Write a list in HEST's order; return True, writing nothing, if the same list exists."""
    ordered = sorted(genes) if method == "hvg" else genes
    if file.exists() and not overwrite:
        stored = {*read_gene_list(file)}
        if stored != {*ordered}:
            n_missing = len({*ordered} - stored)
            found = unquoted(f"a list without {n_missing} of the {len(ordered)} genes chosen now")
            fix = "give --overwrite to replace it, or another --out"
            raise BadInput(file, "genes", found, "no list, or the same", fix)
        if slides_chosen_on(file) in ([], [*chosen_on]):
            return True
    write_gene_list(file, ordered, chosen_on)
    return False
