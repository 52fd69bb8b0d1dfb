"""The genes stage: a gene list for every fold, chosen on its training slides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from stflow_graph.data.splits import Folds, find_datasets
from stflow_graph.io.gene_names import DEFAULT_MATCHING, GeneMatching
from stflow_graph.io.outputs import check_output_folder
from stflow_graph.preparation.gene_lists import (
    DEFAULT_RULE,
    ChosenGenes,
    GeneRule,
    write_gene_lists,
)


def choose_genes(
    root: str | Path,
    rule: GeneRule = DEFAULT_RULE,
    *,
    datasets: Sequence[str] = (),
    folds: Folds = (),
    out: str | Path | None = None,
    allow_patient_overlap: bool = False,
    matching: GeneMatching = DEFAULT_MATCHING,
    overwrite: bool = False,
    report: Callable[[ChosenGenes], None] | None = None,
) -> list[ChosenGenes]:
    """Choose genes on the training slides of each fold and write a list for each fold.

    Lists are named ``var_50genes_fold<i>.json`` (``mean_...``, ``moran_...``) and lie in the data
    set's folder, where ``train --gene-list 'var_50genes_fold{fold}.json'`` finds them.

    Args:
        root: HEST-bench root or data set folder.
        rule: how to choose.
        datasets: names of data sets; none means all.
        folds: numbers of folds; none means those of ``splits/``, ``"all"`` all slides at once, of
            which the list is named ``var_50genes_all.json``.
        out: folder of the lists; None means the data set's own.
        allow_patient_overlap: choose also for folds that test patients of training slides.
        matching: how genes that a slide has several times are resolved.
        overwrite: replace existing lists that differ.
        report: called after every fold.

    Raises:
        BadInput: files that cannot be used, no gene qualifies, or another list exists.
        BadConfig: a fold that does not exist.
    """
    if out is not None:
        check_output_folder(out)
    chosen = []
    sets = find_datasets(root, datasets)
    for dataset in sets:
        folder = Path(out or dataset.path) / (dataset.name if out and len(sets) > 1 else "")
        chosen += write_gene_lists(
            dataset.training_folds(folds, allow_patient_overlap=allow_patient_overlap),
            folder,
            rule,
            matching=matching,
            overwrite=overwrite,
            report=report,
        )
    return chosen
