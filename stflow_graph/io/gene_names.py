"""Matching requested genes to those of a file, which may name them differently."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from stflow_graph.errors import BadInput, count, unquoted

Duplicates = Literal["refuse", "sum", "first"]
DUPLICATES: tuple[Duplicates, ...] = ("refuse", "sum", "first")
Missing = Literal["refuse", "mask"]
# columns of an .h5ad's var that may hold the genes' other names
NAME_COLUMNS = (
    *("gene_ids", "gene_id", "ensembl_gene_id", "ensembl_id", "ensembl", "ENSEMBL", "feature_id"),
    *("gene_name", "gene_names", "feature_name", "gene_symbols", "gene_symbol", "hgnc_symbol"),
    *("symbol", "SYMBOL"),
)
_ENSEMBL = re.compile(r"(ENS[A-Z]{0,6}G\d{11})(?:\.\d+)?")
_N_EXAMPLES = 5


@dataclasses.dataclass(frozen=True, eq=False)
class GeneMatching:
    """Rules for matching genes whose names differ.

    Attributes:
        aliases: names to the gene that they stand for, see ``io.gene_aliases``.
        duplicates: treatment of a requested gene that stands several times in a file.
        missing: treatment of requested genes that a file lacks: with ``mask`` one suffices.
    """

    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    duplicates: Duplicates = "refuse"
    missing: Missing = "refuse"


DEFAULT_MATCHING = GeneMatching()


@dataclasses.dataclass(frozen=True)
class MatchedGenes:
    """The columns of the requested genes in a file.

    Attributes:
        genes: those present, in the requested order and by the requested names.
        columns: the columns of each in the file, several where they are to be summed.
        absent: the others.
        how: a phrase with the number of genes matched other than by name; "" if none.
    """

    genes: list[str]
    columns: list[np.ndarray]
    absent: list[str]
    how: str


def places_of(chosen: Sequence[str], genes: Sequence[str]) -> list[int | None]:
    """Return where each chosen gene is among the genes, None where it is not.

    A name in another case counts where one gene alone has it.
    """
    place = {gene: i for i, gene in enumerate(genes)}
    folded: dict[str, list[int]] = {}
    for i, gene in enumerate(genes):
        folded.setdefault(gene.casefold(), []).append(i)
    alone = {name: columns[0] for name, columns in folded.items() if len(columns) == 1}
    return [place.get(gene, alone.get(gene.casefold())) for gene in chosen]


def similar_genes(gene: str, genes: Sequence[str]) -> str:
    """Return the end of a message on an unknown gene: the nearest names, or some."""
    folded = {name.casefold(): name for name in reversed(genes)}
    similar = difflib.get_close_matches(gene.casefold(), folded, 3, 0.6)
    if similar:
        return f"did you mean {', '.join(folded[name] for name in similar)}?"
    return f"it has {', '.join(genes[:3])}, ..."


def without_version(name: str) -> str:
    """Return an Ensembl gene ID without its version, any other name as it is."""
    match = _ENSEMBL.fullmatch(name)
    return match.group(1) if match else name


def identities(genes: Sequence[str], names: Sequence[Sequence[str]]) -> dict[str, tuple[str, str]]:
    """Return the Ensembl ID and the symbol of genes, "" where none is among their names.

    Args:
        genes: G names.
        names: all names of each gene of a file, of which genes are found by any.
    """
    of_name = {name: each for each in reversed(names) for name in each if name}
    found = {}
    for gene in genes:
        each = [gene, *of_name.get(gene, [])]
        ids = [match.group(1) for name in each if (match := _ENSEMBL.fullmatch(name))]
        symbols = [name for name in each if name and not _ENSEMBL.fullmatch(name)]
        found[gene] = (ids[0] if ids else "", symbols[0] if symbols else "")
    return found


def match_genes(
    requested: Sequence[str],
    names: Sequence[str],
    path: str | Path,
    *,
    other_names: Sequence[Sequence[str]] = (),
    matching: GeneMatching = DEFAULT_MATCHING,
    min_fraction: float = 1.0,
) -> MatchedGenes:
    """Find genes by name, and the remaining ones by increasingly loose rules.

    The rules: the exact name; a name in another column of the file; Ensembl IDs without versions;
    an alias; letters of another case. A loose match counts only if the file has one such gene,
    no other requested gene matches it, and it was not matched before.

    Args:
        requested: the requested genes, each once.
        names: G names of the file's genes, which may stand several times.
        path: the file, for messages.
        other_names: further columns of G names, "" where unknown.
        matching: the aliases, and the treatment of duplicates.
        min_fraction: minimum fraction of the requested genes that must be there, unless
            ``matching`` masks missing genes.

    Raises:
        BadInput: too few are there, or one stands several times and that is refused; the message
            counts them, and names some and the kind of names of each side.
    """
    if not names:
        raise BadInput(path, "var_names", unquoted("0 genes"), "at least one gene")
    search = _Search(requested, [names, *other_names], matching.duplicates)
    search.match(str, "by name", lists=search.lists[:1], repeats=True)
    search.match(str, "by {kind}", lists=search.lists[1:], repeats=True)
    search.match(without_version, "without the version", repeats=True)
    if matching.aliases:
        search.match(_gene_of(matching.aliases), "by alias")
    search.match(lambda name: without_version(name).casefold(), "in another case")
    if search.repeated:
        examples = search.repeated[:_N_EXAMPLES]
        found = unquoted(
            f"{count(len(search.repeated), 'duplicate')} among the genes asked for: {examples}"
        )
        fix = "give --duplicate-genes sum or first, or remove them from the file"
        raise BadInput(path, "var_names", found, "each gene once", fix)
    absent = list(search.left)
    masked = matching.missing == "mask"
    too_few = not masked and len(search.columns) < min_fraction * len(requested)
    if too_few or not search.columns:
        raise _too_few(requested, absent, names, path, matching)
    genes = [gene for gene in requested if gene in search.columns]
    counts = ", ".join(f"{n} {rule}" for rule, n in search.rules.items() if rule != "by name")
    how = counts.replace(" ", f" of {count(len(requested), 'gene')} matched ", 1)
    return MatchedGenes(genes, [search.columns[gene] for gene in genes], absent, how)


class _Search:
    """The columns of the genes matched so far, the genes left, and the count of each rule."""

    def __init__(
        self, requested: Sequence[str], lists: Sequence[Sequence[str]], duplicates: Duplicates
    ) -> None:
        self.lists = lists
        self.left = dict.fromkeys(requested)
        self.columns: dict[str, np.ndarray] = {}
        self.repeated: list[str] = []
        self.rules: Counter[str] = Counter()
        self._duplicates = duplicates
        self._taken: set[int] = set()

    def match(
        self,
        key: Callable[[str], str],
        rule: str,
        *,
        lists: Sequence[Sequence[str]] | None = None,
        repeats: bool = False,
    ) -> None:
        """Match what is left by a key; ``repeats``: duplicates by this key are the same gene."""
        keys = {gene: key(gene) for gene in self.left}
        claims = Counter(keys.values())
        matches: dict[str, set[int]] = {}
        for names in (self.lists if lists is None else lists) if keys else ():
            for column, name in enumerate(names):
                if name and (value := key(name)) in claims:
                    matches.setdefault(value, set()).add(column)
        for gene, value in keys.items():
            columns = sorted(matches.get(value, ()))
            unclear = claims[value] > 1 or (len(columns) > 1 and not repeats)
            if not columns or unclear or not self._taken.isdisjoint(columns):
                continue
            del self.left[gene]
            if len(columns) > 1 and self._duplicates == "refuse":
                self.repeated.append(gene)
                continue
            chosen = columns if self._duplicates == "sum" else columns[:1]
            self.columns[gene] = np.array(chosen, dtype=np.int64)
            self._taken.update(columns)
            self.rules[rule.format(kind=_kind([gene]))] += 1


def _gene_of(aliases: Mapping[str, str]) -> Callable[[str], str]:
    def key(name: str) -> str:
        bare = without_version(name)
        return aliases.get(name, aliases.get(bare, bare))

    return key


def _kind(names: Sequence[str]) -> str:
    n_ids = sum(_ENSEMBL.fullmatch(name) is not None for name in names)
    return "Ensembl ID" if n_ids > 0.5 * len(names) else "symbol"


def _too_few(
    requested: Sequence[str],
    absent: Sequence[str],
    names: Sequence[str],
    path: str | Path,
    matching: GeneMatching,
) -> BadInput:
    kinds = _kind(requested), _kind(names)
    text = f"{len(absent)} of {count(len(requested), 'gene')} absent"
    text += f", such as {list(absent[:_N_EXAMPLES])}"
    expected = "every gene of the gene list"
    fix = "choose genes that every slide has, with `stflow-graph genes`"
    if matching.missing == "mask":
        expected = "at least one gene of the gene list"
        fix = "leave the slide out, or choose genes that it has"
    elif len(absent) < len(requested):
        fix += ", or mask missing genes with `train --missing-genes mask`"
    if kinds[0] != kinds[1]:
        text += f"; asked for {kinds[0]}s, the file has {kinds[1]}s such as {list(names[:2])}"
        fix = "put the other names into a column gene_ids or gene_name of var"
    if not matching.aliases:
        fix += ", or give a table of names, such as HGNC's or a GTF, with --gene-aliases"
    return BadInput(path, "var_names", unquoted(text), expected, fix)
