"""Matching the genes asked for to those of a file, which may name them in another way."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from stflow_graph.errors import BadInput, unquoted

Duplicates = Literal["refuse", "sum", "first"]
DUPLICATES: tuple[Duplicates, ...] = ("refuse", "sum", "first")
# columns of an .h5ad's var that may hold the genes' other names
NAME_COLUMNS = (
    "gene_ids",
    "gene_id",
    "ensembl_gene_id",
    "ensembl_id",
    "ensembl",
    "ENSEMBL",
    "feature_id",
    "gene_name",
    "gene_names",
    "feature_name",
    "gene_symbols",
    "gene_symbol",
    "hgnc_symbol",
    "symbol",
    "SYMBOL",
)
_ENSEMBL = re.compile(r"(ENS[A-Z]{0,6}G\d{11})(?:\.\d+)?")
_SHOWN = 5


@dataclasses.dataclass(frozen=True, eq=False)
class GeneMatching:
    """How genes may be matched where their names differ.

    Attributes:
        aliases: names to the name of the gene that they mean, see ``io.gene_aliases``.
        duplicates: what becomes of a gene asked for that stands several times in a file.
    """

    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    duplicates: Duplicates = "refuse"


DEFAULT_MATCHING = GeneMatching()


@dataclasses.dataclass(frozen=True)
class MatchedGenes:
    """Where the genes asked for are in a file.

    Attributes:
        genes: those found, named as they were asked for, in that order.
        columns: for each its columns in the file, several where they are to be summed.
        absent: those not found.
        how: in words how many were matched otherwise than by their very name; "" if none.
    """

    genes: list[str]
    columns: list[np.ndarray]
    absent: list[str]
    how: str


def without_version(name: str) -> str:
    """Return an Ensembl gene ID without its version, any other name as it is."""
    match = _ENSEMBL.fullmatch(name)
    return match.group(1) if match else name


def match_genes(
    wanted: Sequence[str],
    names: Sequence[str],
    path: str | Path,
    *,
    other_names: Sequence[Sequence[str]] = (),
    matching: GeneMatching = DEFAULT_MATCHING,
    least_share: float = 1.0,
) -> MatchedGenes:
    """Find genes by name, and those left over by looser and looser rules.

    The rules: the very name; a name in another column of the file; Ensembl IDs without versions;
    an alias; letters of another case. A looser match is taken only if the file has one such gene,
    nothing else asked for means it, and it was not matched before.

    Args:
        wanted: the genes asked for, each once.
        names: G names of the file's genes, which may stand several times.
        path: the file, for messages.
        other_names: further columns of G names, "" where unknown.
        matching: the aliases, and what becomes of duplicates.
        least_share: of the genes asked for that must be found.

    Raises:
        BadInput: too few are found, or one stands several times and that is refused; the message
            says how many, names some, and what kind of names each side has.
    """
    if not names:
        raise BadInput(path, "var_names", unquoted("0 genes"), "at least one gene")
    search = _Search(wanted, [names, *other_names], matching.duplicates)
    others = search.lists[1:]
    search.go(_same, search.lists[:1], "by name", repeats=True)
    for kind in ("Ensembl ID", "symbol"):
        named = [name for name in search.left if _is_ensembl(name) == (kind == "Ensembl ID")]
        search.go(_same, others, f"by {kind}", repeats=True, among=named)
    search.go(without_version, search.lists, "without the version", repeats=True)
    if matching.aliases:
        search.go(_meaning(matching.aliases), search.lists, "by alias")
    search.go(lambda name: without_version(name).casefold(), search.lists, "in another case")
    if search.repeated:
        shown = search.repeated[:_SHOWN]
        found = unquoted(f"{len(search.repeated)} duplicates among the genes asked for: {shown}")
        fix = "give --duplicate-genes sum or first, or remove them from the file"
        raise BadInput(path, "var_names", found, "each gene once", fix)
    if len(search.found) < least_share * len(wanted) or not search.found:
        raise _too_few(wanted, list(search.left), names, path, bool(matching.aliases))
    genes = [gene for gene in wanted if gene in search.found]
    return MatchedGenes(
        genes, [search.found[gene] for gene in genes], list(search.left), search.how(len(wanted))
    )


class _Search:
    """The genes found so far, those left, and how they were found."""

    def __init__(
        self, wanted: Sequence[str], lists: Sequence[Sequence[str]], duplicates: Duplicates
    ) -> None:
        self.lists = lists
        self.left = dict.fromkeys(wanted)
        self.found: dict[str, np.ndarray] = {}
        self.repeated: list[str] = []
        self._duplicates = duplicates
        self._taken: set[int] = set()
        self._rules: Counter[str] = Counter()

    def go(
        self,
        key: Callable[[str], str],
        lists: Sequence[Sequence[str]],
        rule: str,
        *,
        repeats: bool = False,
        among: Sequence[str] | None = None,
    ) -> None:
        """Match what is left by a key; ``repeats``: duplicates by this key are the same gene."""
        keys = {gene: key(gene) for gene in (self.left if among is None else among)}
        claims = Counter(keys.values())
        places: dict[str, set[int]] = {}
        for names in lists if keys else ():
            for column, name in enumerate(names):
                if name and (known := key(name)) in claims:
                    places.setdefault(known, set()).add(column)
        for gene, value in keys.items():
            columns = sorted(places.get(value, ()))
            unclear = claims[value] > 1 or (len(columns) > 1 and not repeats)
            if not columns or unclear or not self._taken.isdisjoint(columns):
                continue
            del self.left[gene]
            if len(columns) > 1 and self._duplicates == "refuse":
                self.repeated.append(gene)
                continue
            chosen = columns if self._duplicates == "sum" else columns[:1]
            self.found[gene] = np.array(chosen, dtype=np.int64)
            self._taken.update(columns)
            self._rules[rule] += 1

    def how(self, n_wanted: int) -> str:
        parts = [f"{count} {rule}" for rule, count in self._rules.items() if rule != "by name"]
        if not parts:
            return ""
        first, *rest = parts
        count, rule = first.split(" ", 1)
        return ", ".join([f"{count} of {n_wanted} genes matched {rule}", *rest])


def _same(name: str) -> str:
    return name


def _meaning(aliases: Mapping[str, str]) -> Callable[[str], str]:
    def key(name: str) -> str:
        bare = without_version(name)
        return aliases.get(name, aliases.get(bare, bare))

    return key


def _is_ensembl(name: str) -> bool:
    return _ENSEMBL.fullmatch(name) is not None


def _kind(names: Sequence[str]) -> str:
    share = np.mean([_is_ensembl(name) for name in names]) if names else 0
    return "Ensembl IDs" if share > 0.5 else "symbols"


def _too_few(
    wanted: Sequence[str],
    absent: Sequence[str],
    names: Sequence[str],
    path: str | Path,
    has_aliases: bool,
) -> BadInput:
    asked, there = _kind(wanted), _kind(names)
    text = f"{len(absent)} of {len(wanted)} genes absent, such as {list(absent[:_SHOWN])}"
    if asked != there:
        text += f"; asked for {asked}, the file has {there} such as {list(names[:2])}"
        fix = "put the other names into a column gene_ids or gene_name of var"
    else:
        fix = "choose genes that every slide has, with `stflow-graph genes`"
    if not has_aliases:
        fix += ", or give a table of names, such as HGNC's or a GTF, with --gene-aliases"
    return BadInput(path, "var_names", unquoted(text), "every gene of the gene list", fix)
