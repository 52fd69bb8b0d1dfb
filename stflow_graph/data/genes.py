"""Gene lists in HEST-bench's format, a JSON file with the key ``genes``."""

from __future__ import annotations

from pathlib import Path

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.atomic import read_json, write_json
from stflow_graph.io.hdf5 import check_unique


def read_gene_list(path: str | Path) -> list[str]:
    """Read ``{"genes": [...]}``.

    Raises:
        BadInput: no file, other content, no genes, or duplicates.
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
    return genes


def write_gene_list(path: str | Path, genes: list[str]) -> None:
    """Write ``{"genes": [...]}`` atomically."""
    write_json(path, {"genes": genes})
