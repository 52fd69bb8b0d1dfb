"""The split stage: folds of a data set whose test patients are not in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from stflow_graph.data.patients import (
    PATIENT,
    TABLES,
    count_spots,
    find_table,
    read_groups,
    stored_group,
)
from stflow_graph.data.splits import Dataset, Fold, split_files, write_splits
from stflow_graph.errors import BadInput, count, unquoted
from stflow_graph.io.atomic import check_file, check_name
from stflow_graph.io.columns import read_text_columns
from stflow_graph.io.outputs import check_output_folder
from stflow_graph.preparation.group_folds import group_folds


@dataclasses.dataclass(frozen=True)
class Split:
    """The result of :func:`split`.

    Attributes:
        folder: the folder of the split files.
        source: the table with the groups, or the folder of the .h5ad files.
        folds: the folds.
        n_spots: number of spots of each slide.
        not_there: slides of the table that the data set does not have.
        up_to_date: the same files existed; nothing was written.
    """

    folder: Path
    source: Path
    folds: list[Fold]
    n_spots: dict[str, int]
    not_there: list[str]
    up_to_date: bool


def split(
    folder: str | Path,
    *,
    k: int | None = None,
    table: str | Path | None = None,
    columns: Sequence[str] = (PATIENT,),
    stratify: str | None = None,
    by_spots: bool = True,
    seed: int = 0,
    overwrite: bool = False,
) -> Split:
    """Write ``splits/train_<i>.csv`` and ``test_<i>.csv``, patients on one side only.

    Slides are those of ``folder/adata``. Their patients come from the table, or else from one in
    the folder (``patients.csv``, ``metadata.csv``, ``dataset.csv``), or else from ``uns`` or
    ``obs`` of each .h5ad. The files have HEST-bench's columns and ``patient``.

    Args:
        folder: the data set folder.
        k: number of folds; None makes one for each patient.
        table: table of slides and patients, such as a kit's ``dataset.csv`` or HEST's metadata.
        columns: the columns that define a group, together.
        stratify: a column whose values are spread evenly over the folds.
        by_spots: balance the folds' numbers of spots, instead of slides.
        seed: decides among patients of equal weight.
        overwrite: replace other split files.

    Raises:
        BadInput: no slides, patients unknown or too few, or other splits exist.
    """
    folder = Path(folder)
    check_output_folder(folder / "splits")
    files = {file.stem: file for file in sorted((folder / "adata").glob("*.h5ad"))}
    if not files:
        raise BadInput(folder / "adata", "folder", unquoted("no .h5ad file"), "a data set's slides")
    slides = [check_name(name, file) for name, file in files.items()]
    n_spots = {name: count_spots(file) for name, file in files.items()}
    source = Path(table) if table else find_table(folder, columns[0])
    origin = source or folder / "adata"
    groups = _all_groups(files, source, columns, origin)
    n_groups = len(set(groups))
    k = n_groups if k is None else k
    if not 2 <= k <= n_groups:
        found = unquoted(f"{n_groups} groups ({', '.join(sorted(set(groups))[:5])})")
        expected = f"at least {max(k, 2)}, one for each fold"
        raise BadInput(origin, "/".join(columns), found, expected)
    strata = _all_groups(files, source, [stratify], origin) if stratify else None
    weights = [max(n_spots[name], 1) for name in slides] if by_spots else None
    tested = group_folds(groups, k, weights=weights, strata=strata, seed=seed)
    # another group, such as the slide, must not pass for the patient
    patients = groups if PATIENT in columns else _patients(files, source)
    up_to_date = _write(
        folder / "splits", split_files(slides, tested.tolist(), patients), overwrite
    )
    in_table = read_groups(source, columns) if source else {}
    not_there = [name for name in in_table if name not in files]
    folds = Dataset(folder.resolve().name, folder).folds()
    return Split(folder / "splits", origin, folds, n_spots, not_there, up_to_date)


def _groups(files: Mapping[str, Path], source: Path | None, columns: Sequence[str]) -> list[str]:
    """Return the group of each slide, "" if it is unknown."""
    if source is None:
        return [stored_group(file, columns) for file in files.values()]
    groups = read_groups(source, columns)
    return [groups.get(name, "") for name in files]


def _all_groups(
    files: Mapping[str, Path], source: Path | None, columns: Sequence[str], origin: Path
) -> list[str]:
    """Return the group of each slide, all of which must be known."""
    groups = _groups(files, source, columns)
    unknown = [name for name, group in zip(files, groups, strict=True) if not group]
    if unknown:
        found = unquoted(
            f"none for {len(unknown)} of {count(len(files), 'slide')}, such as {unknown[:3]}"
        )
        fix = f"give a table of all slides with --table or as one of {', '.join(TABLES)}"
        raise BadInput(origin, "/".join(columns), found, "a value for every slide", fix)
    return groups


def _patients(files: Mapping[str, Path], source: Path | None) -> list[str]:
    if source is not None and PATIENT not in read_text_columns(source):
        return []
    return _groups(files, source, [PATIENT])


def _write(folder: Path, contents: Mapping[str, str], overwrite: bool) -> bool:
    """Write the files; return True, writing nothing, if the same files exist."""
    existing = {file.name: check_file(file).read_bytes() for file in folder.glob("*.csv")}
    if existing == {name: text.encode() for name, text in contents.items()}:
        return True
    if existing and not overwrite:
        found = unquoted(f"{count(len(existing), 'other file')}")
        raise BadInput(folder, "splits", found, "no splits", "give --overwrite to replace them")
    write_splits(folder, contents)
    return False
