"""The tables of a summary that have a row a slide, or a row a patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from stflow_graph.data.patients import PatientTable
from stflow_graph.errors import BadInput
from stflow_graph.io.columns import as_number
from stflow_graph.stats.weighted_means import WeightedMeans

PATIENT = "patient"
# of a slide, not averaged over those of a patient
COUNTS = ("n_spots", "n_measured", "n_genes", "n_constant_genes", "n_samples")
_FIXED = ("slide", PATIENT, "dataset", "in_training", *COUNTS)
_OF_PATIENTS = ("n_slides", "n_spots")


def check_column_names(sets: Sequence[str], patients: PatientTable | None, n_domains: int) -> None:
    """Check that columns of gene sets, domains and of a table of patients have different names.

    Raises:
        BadInput: they have not.
    """
    taken = {*_FIXED, *_OF_PATIENTS, *domain_names(n_domains)}
    expected = "names that no other column has"
    if clash := sorted(taken & set(sets)):
        raise BadInput("gene sets", "names", clash[:3], expected)
    if patients is not None and (clash := sorted((taken | set(sets)) & patients.columns.keys())):
        raise BadInput("patients", "columns", clash[:3], expected)


def domain_names(n_domains: int) -> list[str]:
    """Return the columns of the shares of domains."""
    return [f"domain_{i}" for i in range(1, n_domains + 1)]


def slide_table(
    rows: Sequence[Mapping[str, object]],
    gene_sets: pd.DataFrame | None,
    labels: Mapping[str, np.ndarray] | None,
    n_domains: int,
    patients: PatientTable | None,
) -> pd.DataFrame:
    """Return the table of slides: counts, shares of domains, means of gene sets.

    Args:
        rows: of each slide ``slide``, ``dataset``, ``in_training`` and its counts.
        gene_sets: a row a slide and set, in the slides' order, or None.
        labels: slide to the domains of its spots, ``[N]`` from 1 on, or None.
        n_domains: K.
        patients: the patients, or None.
    """
    parts = [pd.DataFrame(rows)]
    slides = parts[0]["slide"]
    if patients is not None:
        parts[0].insert(1, PATIENT, [patients.patient_of[slide] for slide in slides])
    if labels is not None:
        sizes = [np.bincount(labels[slide], minlength=n_domains + 1)[1:] for slide in slides]
        shares = [size / size.sum() for size in sizes]
        parts.append(pd.DataFrame(shares, columns=domain_names(n_domains)))
    if gene_sets is not None:
        groups = gene_sets.groupby("gene_set", sort=False)["mean"]
        parts.append(pd.DataFrame({name: means.to_numpy() for name, means in groups}))
    return pd.concat(parts, axis=1)


def patient_table(slides: pd.DataFrame, patients: PatientTable) -> pd.DataFrame:
    """Return a row a patient: the user's columns, counts, and means weighted by spots.

    Args:
        slides: as of :func:`slide_table`.
        patients: the user's table.
    """
    names = [name for name in slides.columns if name not in _FIXED]
    means, values = WeightedMeans(), slides[names].to_numpy(dtype=np.float64)
    for patient, row, n_spots in zip(slides[PATIENT], values, slides["n_spots"], strict=True):
        means.add(patient, names, row, n_spots)
    counts = slides.groupby(PATIENT, sort=True)["n_spots"].agg(["size", "sum"])
    order = list(counts.index)
    carried = {
        name: _typed([cells[patient] for patient in order])
        for name, cells in patients.columns.items()
    }
    first = pd.DataFrame({PATIENT: order, **carried})
    numbers = pd.DataFrame(counts.to_numpy(), columns=list(_OF_PATIENTS))
    return pd.concat([first, numbers, means.table(order)], axis=1)


def _typed(cells: Sequence[str]) -> pd.Series:
    """Return a column of numbers if all cells that are not empty are numbers, else of text."""
    values = [as_number(cell) for cell in cells if cell]
    if not values or None in values:
        return pd.Series(list(cells), dtype=object)
    if all(cell.isascii() and cell.isdigit() and len(cell) < 16 for cell in cells):
        return pd.Series([int(cell) for cell in cells])
    return pd.Series([as_number(cell) if cell else np.nan for cell in cells], dtype=np.float64)
