"""Choosing each fold's genes on its training slides, as lists that ``train`` takes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from stflow_graph.data.genes import read_gene_list, write_gene_list
from stflow_graph.data.splits import Fold, Sample, find_datasets
from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.expression import Expression, read_expression
from stflow_graph.io.gene_names import DEFAULT_MATCHING, GeneMatching
from stflow_graph.preparation.gene_choice import (
    METHODS,
    GeneStatistics,
    Method,
    RankedGenes,
    rank_genes,
)
from stflow_graph.stats.metrics import morans_i, neighbour_mean

logger = logging.getLogger(__name__)

PREFIXES: dict[Method, str] = dict(zip(METHODS, ("var", "mean", "moran"), strict=True))
# of a dense block of spots times genes
_BLOCK = 2**22


@dataclasses.dataclass(frozen=True)
class GeneRule:
    """How genes are chosen; see ``preparation.gene_choice.rank_genes``.

    Attributes:
        method: ``hvg``, ``mean`` or ``moran``.
        n_genes: how many; fewer are chosen if fewer qualify.
        least_share: of the spots of every training slide that must have counted the gene.
        panel: file with a gene list that the choice is made from, or None.
    """

    method: Method = "hvg"
    n_genes: int = 50
    least_share: float = 0.1
    panel: str | Path | None = None

    def file_name(self, fold: int) -> str:
        """Return the list's name, such as ``var_50genes_fold0.json``."""
        return f"{PREFIXES[self.method]}_{self.n_genes}genes_fold{fold}.json"


@dataclasses.dataclass(frozen=True)
class ChosenGenes:
    """The genes of one fold.

    Attributes:
        dataset: the data set's name.
        fold: the fold's number.
        file: the gene list.
        genes: the genes chosen, the best first.
        n_qualified: genes that they were chosen from.
        complete_before: the same list was there; nothing was written.
    """

    dataset: str
    fold: int
    file: Path
    genes: RankedGenes
    n_qualified: int
    complete_before: bool


def choose_genes(
    root: str | Path,
    rule: GeneRule = GeneRule(),
    *,
    datasets: Sequence[str] = (),
    folds: Sequence[int] = (),
    out: str | Path | None = None,
    allow_patient_overlap: bool = False,
    matching: GeneMatching = DEFAULT_MATCHING,
    overwrite: bool = False,
    report: Callable[[ChosenGenes], None] | None = None,
) -> list[ChosenGenes]:
    """Choose genes on the training slides of each fold and write a list for each fold.

    Lists are named ``var_50genes_fold<i>.json`` (``mean_...``, ``moran_...``) and lie in the data
    set's folder, where ``train --gene-list 'var_50genes_fold{fold}.json'`` finds them. Test slides
    must measure a gene, as it could not be scored there otherwise; their counts are not looked at.

    Args:
        root: HEST-bench root or data set folder.
        rule: how to choose.
        datasets: the data sets wanted; none means all.
        folds: the folds wanted; none means all.
        out: folder of the lists; None means the data set's own.
        allow_patient_overlap: choose also for folds that test patients of training slides.
        matching: what becomes of a gene that a slide has several times.
        overwrite: replace lists that are there and differ.
        report: called after every fold.

    Raises:
        BadInput: files that cannot be used, no gene qualifies, or another list is there.
        BadConfig: a fold that is not there.
    """
    panel = None if rule.panel is None else set(read_gene_list(rule.panel))
    found = find_datasets(root, datasets)
    chosen = []
    for dataset in found:
        known: dict[str, GeneStatistics] = {}
        places = Path(out or dataset.path) / (dataset.name if out and len(found) > 1 else "")
        for fold in dataset.training_folds(folds, allow_patient_overlap=allow_patient_overlap):
            for sample in (*fold.train, *fold.test):
                if sample.id not in known:
                    known[sample.id] = _statistics(sample, rule, matching)
            ranked = _rank(fold, known, rule, panel)
            file = places / rule.file_name(fold.index)
            top = ranked.top(rule.n_genes)
            before = _write(file, top.genes, rule.method, overwrite)
            done = ChosenGenes(dataset.name, fold.index, file, top, len(ranked.genes), before)
            chosen.append(done)
            if report:
                report(done)
    return chosen


def _statistics(sample: Sample, rule: GeneRule, matching: GeneMatching) -> GeneStatistics:
    expression = read_expression(sample.expr_path, matching=matching)
    statistics = GeneStatistics.of(expression.counts, expression.genes)
    if rule.method != "moran":
        return statistics
    if expression.coords is None:
        raise BadInput(sample.expr_path, "obsm", unquoted("no 'spatial'"), "places of the spots")
    enough = np.flatnonzero(statistics.share >= rule.least_share)
    return dataclasses.replace(statistics, moran=_morans_i(expression, expression.coords, enough))


def _morans_i(expression: Expression, coords: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return Moran's I of log1p counts of the wanted genes, ``[G]``; NaN for the others."""
    weights = neighbour_mean(coords)
    counts = expression.counts.tocsc()
    found = np.full(len(expression.genes), np.nan)
    step = max(1, _BLOCK // len(expression.barcodes))
    for start in range(0, len(wanted), step):
        columns = wanted[start : start + step]
        found[columns] = morans_i(np.log1p(counts[:, columns].toarray()), weights)
    return found


def _rank(
    fold: Fold, known: dict[str, GeneStatistics], rule: GeneRule, panel: set[str] | None
) -> RankedGenes:
    measured = [set(known[sample.id].genes) for sample in (*fold.train, *fold.test)]
    wanted = set.intersection(*measured, *([] if panel is None else [panel]))
    training = [known[sample.id] for sample in fold.train]
    ranked = rank_genes(training, rule.method, least_share=rule.least_share, panel=wanted)
    if not ranked.genes:
        source = rule.panel or fold.train[0].expr_path.parent
        found = unquoted(f"0 of {len(wanted)} genes that the slides of fold {fold.index} share")
        expected = f"genes counted in {rule.least_share:.0%} of the spots of every training slide"
        raise BadInput(source, "genes", found, expected, "give a lower --least-share")
    if len(ranked.genes) < rule.n_genes:
        logger.warning(
            "fold %d: only %d of %d genes qualify", fold.index, len(ranked.genes), rule.n_genes
        )
    return ranked


def _write(file: Path, genes: list[str], method: Method, overwrite: bool) -> bool:
    """Write a list in HEST's order unless it is there; return whether it was."""
    ordered = sorted(genes) if method == "hvg" else genes
    if file.exists() and not overwrite:
        stored = read_gene_list(file)
        if set(stored) == set(ordered):
            return True
        other = len(set(ordered) - set(stored))
        found = unquoted(f"a list without {other} of the {len(ordered)} genes chosen now")
        fix = "give --overwrite to replace it, or another --out"
        raise BadInput(file, "genes", found, "no list, or the same", fix)
    write_gene_list(file, ordered)
    return False
