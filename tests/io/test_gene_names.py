import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stflow_graph.errors import BadInput
from stflow_graph.io.gene_names import (
    GeneMatching,
    identities,
    match_genes,
    places_of,
    similar_genes,
    without_version,
)

SYMBOLS = ["TP53", "ACTB", "ERBB2", "IGKC", "MGP"]
IDS = [f"ENSG000001415{i:02d}" for i in range(5)]
VERSIONED = [f"{name}.{i + 3}" for i, name in enumerate(IDS)]
ALIASES = {"P53": "TP53", "HER2": "ERBB2", "TP53": "TP53", IDS[0]: "TP53", IDS[1]: "ACTB"}


def match(requested, names, *others, **options):
    return match_genes(requested, names, "file", other_names=others, **options)


def columns(result):
    return [indices.tolist() for indices in result.columns]


@pytest.mark.parametrize(
    ("requested", "names", "others", "how"),
    [
        (SYMBOLS, SYMBOLS, [], ""),
        (SYMBOLS, VERSIONED, [SYMBOLS], "5 of 5 genes matched by symbol"),
        (IDS, SYMBOLS, [IDS], "5 of 5 genes matched by Ensembl ID"),
        (IDS, SYMBOLS, [VERSIONED], "5 of 5 genes matched without the version"),
        (VERSIONED, IDS, [], "5 of 5 genes matched without the version"),
        (IDS, VERSIONED, [], "5 of 5 genes matched without the version"),
        (SYMBOLS, [s.capitalize() for s in SYMBOLS], [], "5 of 5 genes matched in another case"),
        ([*IDS[:2], *SYMBOLS[2:]], SYMBOLS, [IDS], "2 of 5 genes matched by Ensembl ID"),
        (
            ["TP53", "Actb", VERSIONED[2], "IGKC", IDS[4]],
            SYMBOLS,
            [IDS],
            "1 of 5 genes matched by Ensembl ID, 1 without the version, 1 in another case",
        ),
    ],
)
@given(st.permutations(range(5)))
def test_genes_are_found_whatever_the_file_calls_them(requested, names, others, how, order):
    result = match(requested, [names[i] for i in order], *([o[i] for i in order] for o in others))
    assert result.genes == requested
    assert columns(result) == [[order.index(i)] for i in range(5)]
    assert result.absent == []
    assert result.how == how


def test_aliases_go_both_ways_and_over_ids():
    matching = GeneMatching(ALIASES)
    result = match(["P53", "ERBB2", "ACTB"], ["HER2", VERSIONED[1], "TP53"], matching=matching)
    assert columns(result) == [[2], [0], [1]]
    assert result.how == "3 of 3 genes matched by alias"
    assert columns(match(["TP53"], [VERSIONED[0], "X"], matching=matching)) == [[0]]


@pytest.mark.parametrize(
    ("requested", "names"),
    [
        (["actb"], ["ACTB", "Actb"]),  # two genes of two species
        (["Actb", "actb"], ["ACTB"]),  # one gene for two
        (["ACTB", "Actb"], ["ACTB"]),  # taken already
        (["P53"], ["TP53", IDS[0]]),  # both mean TP53
        (["P53", "TP53"], ["TP53"]),
        ([VERSIONED[0], IDS[0] + ".9"], [IDS[0]]),
    ],
)
def test_what_is_not_clear_is_not_guessed(requested, names):
    with pytest.raises(BadInput, match=f"(1|{len(requested)}) of {len(requested)} gene"):
        match(requested, names, matching=GeneMatching(ALIASES))


def test_an_exact_name_wins_over_a_looser_one():
    result = match(["Actb", "ACTB"], ["ACTB", "Actb", "actb"])
    assert columns(result) == [[1], [0]]
    assert result.how == ""


@pytest.mark.parametrize(
    ("requested", "names", "others"),
    [
        (["ACTB"], ["MGP", "ACTB", "ACTB"], []),
        (["ACTB"], ["MGP", *IDS[:2]], [["MGP", "ACTB", "ACTB"]]),
        ([IDS[0]], ["MGP", IDS[0] + ".1", IDS[0] + ".2"], []),
    ],
)
def test_duplicates_matter_only_where_they_are_asked_for(requested, names, others):
    with pytest.raises(BadInput, match="1 duplicate among the genes asked for.*duplicate-genes"):
        match(requested, names, *others)
    assert columns(match(["MGP"], names, *others)) == [[0]]
    for duplicates, expected in (("sum", [1, 2]), ("first", [1])):
        result = match(requested, names, *others, matching=GeneMatching({}, duplicates))
        assert columns(result) == [expected]


def test_genes_that_are_not_there_are_told_with_what_would_help():
    with pytest.raises(BadInput) as error:
        match(SYMBOLS, VERSIONED)
    text = str(error.value)
    assert "5 of 5 genes absent, such as ['TP53', 'ACTB', 'ERBB2', 'IGKC', 'MGP']" in text
    assert "asked for symbols, the file has Ensembl IDs" in text
    assert "gene_ids or gene_name" in text
    assert "--gene-aliases" in text
    with pytest.raises(BadInput) as error:
        match(["A", "TP53"], SYMBOLS, matching=GeneMatching(ALIASES))
    assert "1 of 2 genes absent, such as ['A']" in str(error.value)
    assert "--gene-aliases" not in str(error.value)  # it was given


def test_some_genes_may_be_absent_if_that_is_said():
    result = match(["A", *SYMBOLS], SYMBOLS[::-1], min_fraction=0.5)
    assert (result.genes, result.absent) == (SYMBOLS, ["A"])
    assert columns(result) == [[4], [3], [2], [1], [0]]
    with pytest.raises(BadInput, match="2 of 3 genes absent"):
        match(["A", "B", "MGP"], SYMBOLS, min_fraction=0.5)
    with pytest.raises(BadInput, match="1 of 1 gene absent"):
        match(["A"], SYMBOLS, min_fraction=0.0)
    with pytest.raises(BadInput, match="found 0 genes"):
        match(["A"], [])


def test_many_genes_take_no_time():
    names = [f"gene{i}" for i in range(60_000)]
    result = match(names, names[::-1])
    np.testing.assert_array_equal(np.concatenate(result.columns), np.arange(60_000)[::-1])


def test_only_ensembl_ids_have_versions():
    assert without_version("ENSMUSG00000029580.14") == "ENSMUSG00000029580"
    for name in ("HLA.1", "ENSG00000182378.14_PAR_Y", "AC012.3", "RP11-34P13.7"):
        assert without_version(name) == name


def test_identities_are_the_id_and_the_symbol_among_all_names():
    names = [
        ("ERBB2", "ENSG00000141736.14", "HER2"),
        ("ENSG00000091831", "", "ESR1"),
        ("AC01", "", ""),
    ]
    genes = ["ENSG00000141736.14", "ESR1", "AC01", "absent", "ENSG00000000003"]
    assert identities(genes, names) == {
        "ENSG00000141736.14": ("ENSG00000141736", "ERBB2"),
        "ESR1": ("ENSG00000091831", "ESR1"),
        "AC01": ("", "AC01"),
        "absent": ("", "absent"),
        "ENSG00000000003": ("ENSG00000000003", ""),
    }


def test_chosen_genes_are_found_in_letters_of_any_case_where_one_gene_has_them():
    genes = ["TP53", "Tp53", "MGP", "C1orf43"]
    assert places_of(["tp53", "TP53", "Tp53", "mgp", "C1ORF43", "IGKC"], genes) == [
        *(None, 0, 1, 2, 3, None)
    ]
    assert similar_genes("erbb3", SYMBOLS) == "did you mean ERBB2?"
    assert similar_genes("xyz", SYMBOLS) == "it has TP53, ACTB, ERBB2, ..."
