"""Gene sets in GMT files, as MSigDB and Enrichr distribute them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.columns import lines_of, open_text
from stflow_graph.io.gene_names import without_version

_EXPECTED = "lines of a name, a description and genes, separated by tabs"


def read_gene_sets(paths: Iterable[str | Path]) -> dict[str, list[str]]:
    """Read gene sets, in the order of the files.

    A line is a set: its name, a description and its genes, separated by tabs. Enrichr writes a
    weight after some genes (``TP53,1.0``), which is dropped.

    Args:
        paths: files, maybe .gz.

    Returns:
        Name to genes, each once.

    Raises:
        BadInput: not such a file, a set without genes, or two of one name.
    """
    sets: dict[str, list[str]] = {}
    for path in paths:
        n_before = len(sets)
        with open_text(path, _EXPECTED) as file:
            for line in lines_of(file, path):
                if line.strip():
                    _add(sets, line, path)
        if len(sets) == n_before:
            raise BadInput(path, "content", unquoted("an empty file"), _EXPECTED)
    return sets


def _add(sets: dict[str, list[str]], line: str, path: str | Path) -> None:
    name, *rest = (cell.strip() for cell in line.split("\t"))
    genes = [gene for cell in rest[1:] if (gene := cell.split(",")[0].strip())]
    if not name or not genes:
        raise BadInput(path, "lines", line[:80].rstrip("\n"), _EXPECTED)
    if name in sets:
        raise BadInput(path, "names", unquoted(f"{name[:80]!r} twice"), "each set once")
    sets[name] = list(dict.fromkeys(genes))


def columns_of_sets(
    sets: Mapping[str, Sequence[str]], genes: Sequence[str]
) -> tuple[dict[str, np.ndarray], int]:
    """Find the genes of sets among those of a slide.

    A gene is matched by its name, or else by its Ensembl ID without version and letters of another
    case, where one gene of the slide fits.

    Args:
        sets: name to genes.
        genes: G names.

    Returns:
        Name to the ascending columns of its genes, which may be none; and the number of genes of
        the slide that were matched in the other ways.
    """
    exact = {gene: i for i, gene in enumerate(genes)}
    loose: dict[str, list[int]] = {}
    for i, gene in enumerate(genes):
        loose.setdefault(_key(gene), []).append(i)
    result, renamed = {}, set()
    for name, members in sets.items():
        columns = set()
        for gene in members:
            column = exact.get(gene)
            if column is None and len(near := loose.get(_key(gene), [])) == 1:
                column = near[0]
                renamed.add(column)
            if column is not None:
                columns.add(column)
        result[name] = np.array(sorted(columns), dtype=np.int64)
    return result, len(renamed)


def _key(gene: str) -> str:
    return without_version(gene).casefold()
