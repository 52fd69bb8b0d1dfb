"""Protocol names: one line on what was measured, equal for comparable scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from stflow_graph.data.genes import read_gene_list
from stflow_graph.data.splits import Dataset, Fold
from stflow_graph.errors import BadInput

MASKED = "missing genes masked"


def protocol_name(
    dataset: Dataset,
    target: str,
    gene_list: str,
    missing_genes: str = "refuse",
    folds: Sequence[Fold] | None = None,
) -> str:
    """Return a name such as ``log1p | var_50genes.json | patient-grouped 3-fold | 1f0a93c2``.

    The parts are the target, the gene list, the split rule, and a hash of the target, of every
    fold's genes and of every fold's slides on both sides: names of comparable scores are equal,
    whatever the folders are called and whichever folds were run. The gene list is the one that was
    taken, ``var_50genes_all.json`` or ``var_50genes_fold{fold}.json`` where ``var_50genes.json`` is
    absent. Masked genes are in the name and
    the hash, as slides are then scored on different genes.

    Args:
        dataset: the data set.
        target: see ``data.normalise``.
        gene_list: as in ``Dataset.gene_list_path``.
        missing_genes: ``refuse`` or ``mask``.
        folds: None takes those of ``splits/``.
    """
    folds = dataset.folds() if folds is None else folds
    content = [
        [
            sorted(sample.id for sample in fold.train),
            sorted(sample.id for sample in fold.test),
            _genes(dataset.gene_list_path(gene_list, fold)),
        ]
        for fold in folds
    ]
    masked = [MASKED] if missing_genes == "mask" else []
    digest = hashlib.sha256(json.dumps([target, content, *masked]).encode()).hexdigest()
    genes = dataset.gene_list_name(gene_list, folds)
    return " | ".join([target, genes, *masked, _split_rule(folds), digest[:8]])


def _split_rule(folds: Sequence[Fold]) -> str:
    """Return what the folds hold out, and whether patients are on both sides."""
    if not any(fold.test for fold in folds):
        return "no test slides"
    n = f"{len(folds)}-fold"
    if any(fold.shared_patients for fold in folds):
        return f"slide-grouped {n}, patients on both sides"
    if all(fold.knows_patients for fold in folds):
        return f"patient-grouped {n}"
    return f"slide-grouped {n}, patients unknown"


def _genes(file: Path) -> list[str] | None:
    try:
        return sorted(read_gene_list(file))
    except BadInput:  # a fold that is not run may lack its list
        return None
