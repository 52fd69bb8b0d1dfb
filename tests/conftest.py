"""Fixtures shared by the tests of the stages."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy import Cohort, write_cohort


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    """Four slides of 36 spots, fold i tests slide i."""
    return write_cohort(tmp_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
