"""Gene lists in HEST-bench's format, a JSON file with the key ``genes``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.atomic import read_json, write_json
from stflow_graph.io.hdf5 import check_unique
from stflow_graph.stats.panels import measured_genes

if TYPE_CHECKING:
    from stflow_graph.data.slide import Slide


def read_gene_list(path: str | Path) -> list[str]:
    """Read ``{"genes": [...]}``.

    Raises:
        BadInput: no file, other content, no genes, duplicates, or names that cannot be printed.
    """
    if not Path(path).exists():
        fix = f"stflow-graph genes {Path(path).parent}, or another --gene-list"
        raise BadInput(path, "gene list", unquoted("no file"), "a list of genes", fix)
    content = read_json(path)
    genes = content.get("genes") if isinstance(content, dict) else content
    if not isinstance(genes, list) or not all(isinstance(gene, str) for gene in genes):
        raise BadInput(path, "genes", type(genes).__name__, "a list of gene names")
    if not genes:
        raise BadInput(path, "genes", unquoted("0 genes"), "at least one gene")
    check_unique(genes, path, "genes")
    for gene in genes:
        # HDF5 stores neither NUL nor halves of surrogate pairs, tables no line breaks
        if not gene.isprintable():
            raise BadInput(path, "genes", gene, "names of characters that can be printed")
    return genes


def write_gene_list(path: str | Path, genes: list[str], chosen_on: Sequence[str] = ()) -> None:
    """Write ``{"genes": [...]}`` atomically.

    Args:
        path: the file.
        genes: G names.
        chosen_on: slides that the genes were chosen on, a further key if there are any.
    """
    write_json(path, {"genes": genes, **({"chosen_on": list(chosen_on)} if chosen_on else {})})


def slides_chosen_on(path: str | Path) -> list[str]:
    """Return the slides that a list's genes were chosen on; none if the file does not name them."""
    content = read_json(path)
    slides = content.get("chosen_on", []) if isinstance(content, dict) else []
    return [str(slide) for slide in slides] if isinstance(slides, list) else []


def check_not_chosen_on(path: str | Path, test_slides: Sequence[str]) -> None:
    """Refuse a gene list that was chosen on slides of the test side.

    Raises:
        BadInput: names the first of them.
    """
    seen = sorted({*slides_chosen_on(path)} & {*test_slides})
    if seen:
        found = unquoted(f"{len(seen)} of {len(test_slides)} test slides, such as {seen[:3]}")
        fix = "choose again with `stflow-graph genes ROOT --overwrite`; the folds have changed"
        raise BadInput(path, "slides that the genes were chosen on", found, "none", fix)


def check_measured(genes: Sequence[str], slides: Sequence[Slide], origin: str | Path) -> None:
    """Refuse genes that none of the training slides measures.

    Args:
        genes: G names.
        slides: training slides with ``y [N, G]``.
        origin: the gene list, for the message.

    Raises:
        BadInput: names the first of them.
    """
    measured = np.any([measured_genes(slide.truth) for slide in slides], axis=0)
    unmeasured = [gene for gene, known in zip(genes, measured, strict=True) if not known]
    if unmeasured:
        found = unquoted(f"{len(unmeasured)} of {len(genes)} in none, such as {unmeasured[:3]}")
        expected = "genes that a training slide measures"
        fix = "choose genes with `stflow-graph genes ROOT --min-slides 1`, or remove them"
        raise BadInput(origin, "genes", found, expected, fix)
