import gzip

import pytest

from stflow_graph.errors import BadConfig, BadInput
from stflow_graph.io.gene_aliases import gene_matching, read_gene_aliases

HGNC = (
    "hgnc_id\tsymbol\tname\talias_symbol\tprev_symbol\tensembl_gene_id\n"
    'HGNC:1\tTP53\ttumor protein\t"p53|LFS1"\t\tENSG00000141510\n'
    'HGNC:2\tERBB2\treceptor\t"NEU|HER-2|CD340"\t"NGL"\tENSG00000141736\n'
    "HGNC:3\tNEU1\tsialidase\tNEU\t\tENSG00000204386\n"
    "HGNC:4\tNGL\tother\t\t\tENSG00000000004\n"
)
DOWNLOAD = (
    "Approved symbol\tPrevious symbols\tAlias symbols\tEnsembl gene ID\n"
    "TP53\t\tp53, LFS1\tENSG00000141510\n"
)
BIOMART = "Gene stable ID,Gene name\nENSG00000141510,TP53\nENSG00000000001,\n"
GTF = (
    "#!genome-build GRCh38\n"
    '17\tensembl\tgene\t1\t9\t.\t-\t.\tgene_id "ENSG00000141510.18"; gene_name "TP53"; x "y";\n'
    '17\tensembl\texon\t1\t9\t.\t-\t.\tgene_id "ENSG00000141510.18"; gene_name "OTHER";\n'
    '17\tensembl\tgene\t1\t9\t.\t-\t.\tgene_id "ENSG00000000001"; gene_biotype "lncRNA";\n'
)
GFF = "chr17\tHAVANA\tgene\t1\t9\t.\t-\t.\tID=x;gene_id=ENSG00000141510.18;gene_name=TP53\n"


@pytest.mark.parametrize(
    ("name", "text", "alias"),
    [
        ("a.csv", "alias,gene\np53,TP53\nENSG00000141510.18,TP53\n", "p53"),
        ("a.tsv.gz", "gene\talias\nTP53\tp53\nTP53\tENSG00000141510\n", "p53"),
        ("hgnc_complete_set.txt", HGNC, "LFS1"),
        ("download.tsv", DOWNLOAD, "LFS1"),
        ("mart.csv", BIOMART, None),
        ("genes.gtf", GTF, None),
        ("genes.gtf.gz", GTF, None),
        ("genes.gff3", GFF, None),
    ],
)
def test_tables_of_every_kind_are_read(tmp_path, name, text, alias):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    means = read_gene_aliases(path)
    assert means["ENSG00000141510"] == means["TP53"] == "TP53"
    if alias:
        assert means[alias] == "TP53"
    assert "" not in means
    assert "OTHER" not in means


def test_an_alias_of_two_genes_means_none_and_a_genes_name_means_itself(tmp_path):
    (tmp_path / "hgnc.txt").write_text(HGNC)
    means = read_gene_aliases(tmp_path / "hgnc.txt")
    assert "NEU" not in means
    assert means["HER-2"] == "ERBB2"
    assert means["NGL"] == "NGL"  # though it was ERBB2's name once
    (tmp_path / "a.csv").write_text("alias,gene\nB,A\nX,B\n")
    assert read_gene_aliases(tmp_path / "a.csv") == {"A": "A", "B": "B", "X": "B"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"name,other\nA,B\n", "columns: found .*alias and gene"),
        ("a.csv", b"alias,gene\n", "0 genes"),
        ("a.gtf", b"nothing\n", "0 genes"),
        ("a.gtf.gz", b"nothing\n", "content: found a damaged .gz"),
        ("a.gtf", b"\xff\xfe\n", "content: found no UTF-8 text"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_gene_aliases(tmp_path / name)


def test_what_users_give_is_checked(tmp_path):
    assert gene_matching().aliases == gene_matching("").aliases == {}
    (tmp_path / "a.csv").write_text("alias,gene\nB,A\n")
    assert gene_matching(tmp_path / "a.csv", "sum").aliases["B"] == "A"
    with pytest.raises(BadConfig, match="'twice': expected refuse, sum, first"):
        gene_matching(None, "twice")
