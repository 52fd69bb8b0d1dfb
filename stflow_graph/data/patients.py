"""The patient, or other group, of each slide: from a table or from the slide's own file."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from stflow_graph.errors import BadInput, as_bad_input, unquoted
from stflow_graph.io.columns import read_text_columns
from stflow_graph.io.hdf5 import open_h5

logger = logging.getLogger(__name__)

PATIENT = "patient"
# searched in a data set's folder, in this order
TABLES = ("patients.csv", "metadata.csv", "dataset.csv")
_IDS = ("sample_id", "id", "slide", "slide_id", "sample")


def find_table(folder: str | Path, column: str = PATIENT) -> Path | None:
    """Return the first of ``TABLES`` in a data set's folder that has slides and the column.

    A file of this name that cannot be read may be another tool's: it is skipped with a warning.
    """
    for name in TABLES:
        file = Path(folder) / name
        if not file.is_file():
            continue
        try:
            columns = read_text_columns(file)
        except BadInput as error:
            logger.warning("not read for the slides' patients: %s", error)
            continue
        if column in columns and set(_IDS) & columns.keys():
            return file
    return None


def read_groups(path: str | Path, columns: Sequence[str] = (PATIENT,)) -> dict[str, str]:
    """Read the group of each slide from a table (.csv or tab-separated, maybe .gz).

    Slides are in the first of the columns ``sample_id, id, slide, slide_id, sample``, so that a
    kit's manifest and HEST's metadata can be used as they are.

    Args:
        path: the table.
        columns: the columns that define a group; the values of several are joined by ``/``.

    Returns:
        Slide to group, "" where a cell is empty.

    Raises:
        BadInput: missing columns, or a slide in two groups.
    """
    table = read_text_columns(path)
    slides = _slide_column(path, table)
    missing = [name for name in columns if name not in table]
    if missing:
        raise BadInput(path, "columns", list(table), "also " + ", ".join(missing))
    groups: dict[str, str] = {}
    cells = zip(*(table[name] for name in columns), strict=True)
    for slide, group in zip(table[slides], map(_join, cells), strict=True):
        if groups.setdefault(slide, group) != group:
            found = unquoted(f"{groups[slide]!r} and {group!r}")
            raise BadInput(path, f"{'/'.join(columns)} of {slide}", found, "one for each slide")
    return groups


def _slide_column(path: str | Path, table: Mapping[str, Sequence[str]]) -> str:
    for name in _IDS:
        if name in table:
            return name
    raise BadInput(path, "columns", list(table), "one of " + ", ".join(_IDS))


@dataclasses.dataclass(frozen=True)
class PatientTable:
    """The patients of slides, and what a table says of them.

    Attributes:
        patient_of: slide to patient.
        columns: further columns, each patient to its cell.
        varying: columns that are left out, as they differ among slides of a patient.
    """

    patient_of: dict[str, str]
    columns: dict[str, dict[str, str]]
    varying: list[str]


def read_patients(path: str | Path) -> PatientTable:
    """Read the patient of each slide, and the columns that have one value for each patient.

    Args:
        path: a table as of :func:`read_groups`; further columns, such as survival times, are kept
            as they are written.

    Raises:
        BadInput: missing columns, or a slide without a patient or with two.
    """
    patient_of = read_groups(path)
    without = [slide for slide, patient in patient_of.items() if not (slide and patient)]
    if without:
        raise BadInput(path, PATIENT, without[:3], "a patient for each slide")
    table = read_text_columns(path)
    columns: dict[str, dict[str, str]] = {}
    varying = []
    for name in table.keys() - {PATIENT, _slide_column(path, table), ""}:
        cells = dict(zip(table[PATIENT], table[name], strict=True))
        if all(cells[p] == cell for p, cell in zip(table[PATIENT], table[name], strict=True)):
            columns[name] = cells
        else:
            varying.append(name)
    columns = {name: columns[name] for name in table if name in columns}
    return PatientTable(patient_of, columns, [name for name in table if name in varying])


def stored_group(path: str | Path, columns: Sequence[str] = (PATIENT,)) -> str:
    """Read the group of a slide from ``uns`` or ``obs`` of its .h5ad, without reading the counts.

    Args:
        path: the file.
        columns: as of :func:`read_groups`.

    Returns:
        The group, "" if the file does not state it.

    Raises:
        BadInput: the spots of the slide are of several groups.
    """
    with open_h5(path) as file:
        return _join([_stored(file, name, path) for name in columns])


def _join(cells: Sequence[str]) -> str:
    return "/".join(cells) if all(cells) else ""


def _stored(file: h5py.File, column: str, path: str | Path) -> str:
    field = next((p for p in (f"uns/{column}", f"obs/{column}") if p in file), None)
    if field is None:
        return ""
    values = pd.Series(np.asarray(_element(file[field], path), dtype=object).reshape(-1)).dropna()
    groups = sorted({str(value).strip() for value in values} - {""})
    if len(groups) > 1:
        found = unquoted(f"{len(groups)} values, such as {groups[:3]}")
        raise BadInput(path, field, found, "one value for all spots of the slide")
    return groups[0] if groups else ""


def _element(item: h5py.Group | h5py.Dataset, path: str | Path) -> Any:
    import anndata

    reader = anndata.io if hasattr(anndata, "io") else anndata.experimental  # before 0.11
    with as_bad_input(path, item.name, "a column that anndata can read"):
        return reader.read_elem(item)


def count_spots(path: str | Path) -> int:
    """Return the number of spots of an .h5ad without reading its counts.

    Raises:
        BadInput: not an .h5ad.
    """
    with open_h5(path) as file:
        obs = file.get("obs")
        if isinstance(obs, h5py.Group):
            index = obs.get(str(obs.attrs.get("_index", "_index")))
            if isinstance(index, h5py.Dataset) and index.ndim == 1:
                return len(index)
        raise BadInput(path, "obs", unquoted("no table of spots"), "an .h5ad with obs")
