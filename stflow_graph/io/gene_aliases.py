"""Tables of gene aliases."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from stflow_graph.errors import BadConfig, BadInput, unquoted
from stflow_graph.io.columns import lines_of, open_text, read_text_columns
from stflow_graph.io.gene_names import DUPLICATES, GeneMatching, Missing, without_version

# the gene's name, and columns of its other names; the first match counts
_LAYOUTS = (
    ("gene", ("alias",)),
    ("symbol", ("alias_symbol", "prev_symbol", "ensembl_gene_id")),  # HGNC's complete set
    ("Approved symbol", ("Alias symbols", "Previous symbols", "Ensembl gene ID")),  # its downloads
    ("Gene name", ("Gene stable ID", "Gene Synonym")),  # Ensembl BioMart
)
_ATTRIBUTE = re.compile(r'\b(gene_id|gene_name)[ =]"?([^";]+)"?')


def read_gene_aliases(path: str | Path) -> dict[str, str]:
    """Read the gene that each alias stands for.

    Args:
        path: a table (.csv or tab-separated, maybe .gz) with the columns ``alias, gene``, or HGNC's
            (``symbol, alias_symbol, prev_symbol, ensembl_gene_id``), or BioMart's; or a gene
            annotation (.gtf, maybe .gz).

    Returns:
        Name to the gene's name. A gene's name stands for itself, even if it is also an alias; an
        alias of several genes is left out. Ensembl IDs have no versions.

    Raises:
        BadInput: another kind of file.
    """
    path = Path(path)
    is_gtf = path.name.lower().removesuffix(".gz").endswith((".gtf", ".gff", ".gff3"))
    pairs = list(_annotated(path) if is_gtf else _tabulated(path))
    if not pairs:
        raise BadInput(path, "rows", unquoted("0 genes"), "genes and their other names")
    genes = {gene: gene for gene, _ in pairs}
    ambiguous = set()
    for gene, alias in pairs:
        if genes.setdefault(alias, gene) not in (gene, alias):
            ambiguous.add(alias)
    return {name: gene for name, gene in genes.items() if name not in ambiguous}


def gene_matching(
    aliases: str | Path | None = None, duplicates: str = "refuse", missing: Missing = "refuse"
) -> GeneMatching:
    """Return the rules for matching genes from a user's options.

    Args:
        aliases: file for :func:`read_gene_aliases`; None or "" for none.
        duplicates: ``refuse``, ``sum`` or ``first``.
        missing: ``refuse`` or ``mask``.

    Raises:
        BadInput: the file is another.
        BadConfig: another word.
    """
    rule = next((name for name in DUPLICATES if name == duplicates), None)
    if rule is None:
        raise BadConfig(f"duplicate_genes = {duplicates!r}: expected {', '.join(DUPLICATES)}")
    return GeneMatching(read_gene_aliases(aliases) if aliases else {}, rule, missing)


def _tabulated(path: Path) -> Iterable[tuple[str, str]]:
    table = read_text_columns(path)
    for name, others in _LAYOUTS:
        columns = [column for column in others if column in table]
        if name not in table or not columns:
            continue
        for column in columns:
            for gene, cell in zip(table[name], table[column], strict=True):
                for alias in re.split(r"[|,]", cell):
                    if gene and alias.strip(' "'):
                        yield gene, without_version(alias.strip(' "'))
        return
    raise BadInput(path, "columns", list(table), "alias and gene, or HGNC's symbol, alias_symbol")


def _annotated(path: Path) -> Iterator[tuple[str, str]]:
    with open_text(path, "a gene annotation (GTF)") as file:
        for line in lines_of(file, path):
            fields = line.split("\t")
            if len(fields) == 9 and fields[2] == "gene":
                gene = dict(_ATTRIBUTE.findall(fields[8].rstrip()))
                if {"gene_id", "gene_name"} <= gene.keys():
                    yield gene["gene_name"], without_version(gene["gene_id"])
