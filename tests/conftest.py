"""Fixtures shared by the tests of the stages."""

import functools
import inspect
import shutil
from pathlib import Path

import pytest
from toy import GENES, Cohort, keep_genes, write_cohort

# PyG parses the source of a layer whenever one is made, half of what making a small network takes
inspect.getsource = functools.cache(inspect.getsource)


@pytest.fixture(scope="session")
def cohort_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a cohort that no test changes."""
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder)
    return folder


@pytest.fixture
def cohort(tmp_path: Path, cohort_files: Path) -> Cohort:
    """Four slides of 36 spots, fold i tests slide i."""
    shutil.copytree(cohort_files, tmp_path, dirs_exist_ok=True)
    return Cohort.of(tmp_path)


@pytest.fixture
def panels(cohort: Cohort) -> Cohort:
    """The same cohort, but A, which fold 0 tests, lacks G0, and B lacks G3 to G5."""
    keep_genes(cohort, "A", *GENES[1:])
    keep_genes(cohort, "B", *GENES[:3])
    return cohort


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
