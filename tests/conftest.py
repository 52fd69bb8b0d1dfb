"""Fixtures shared by the tests of the stages."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy import GENES, SLIDES, Cohort, write_slide

from stflow_graph.data.genes import write_gene_list


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    """Four slides of 36 spots, fold i tests slide i."""
    made = Cohort(tmp_path / "cohort", tmp_path / "embeddings")
    for seed, slide in enumerate(SLIDES):
        write_slide(made.embedding(slide), made.expression(slide), 36, seed)
    (made.root / "splits").mkdir()
    rows = [f"{s},patches/{s}.h5,adata/{s}.h5ad" for s in SLIDES]
    for fold, row in enumerate(rows):
        sides = {"test": [row], "train": [r for r in rows if r != row]}
        for side, lines in sides.items():
            text = "\n".join(["sample_id,patches_path,expr_path", *lines]) + "\n"
            (made.root / "splits" / f"{side}_{fold}.csv").write_text(text)
    write_gene_list(made.root / "var_50genes.json", GENES)
    return made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
