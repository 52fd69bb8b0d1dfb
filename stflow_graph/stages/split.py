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
from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.atomic import check_name
from stflow_graph.io.columns import read_text_columns
from stflow_graph.preparation.group_folds import group_folds


@dataclasses.dataclass(frozen=True)
class Split:
    """What :func:`split` made.

    Attributes:
        folder: where the split files are.
        source: the table that named the groups, or the folder of the .h5ad files.
        folds: the folds.
        n_spots: spots of each slide.
        not_there: slides of the table that the data set does not have.
        up_to_date: the same files were there; nothing was written.
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
        k: folds; None makes one for each patient.
        table: table of slides and patients, such as a kit's ``dataset.csv`` or HEST's metadata.
        columns: the columns that make a group; of several, their values together.
        stratify: a column whose values are spread evenly over the folds.
        by_spots: balance the folds' numbers of spots, or else of slides.
        seed: decides among patients of equal weight.
        overwrite: replace other split files that are there.

    Raises:
        BadInput: no slides, patients unknown or too few, or other splits are there.
    """
    folder = Path(folder)
    files = {file.stem: file for file in sorted((folder / "adata").glob("*.h5ad"))}
    if not files:
        raise BadInput(folder / "adata", "folder", unquoted("no .h5ad file"), "a data set's slides")
    slides = [check_name(name, file) for name, file in files.items()]
    n_spots = {name: count_spots(file) for name, file in files.items()}
    source = Path(table) if table else find_table(folder, columns[0])
    groups = _of_slides(files, source, columns)
    found = source or folder / "adata"
    n_groups = len({groups[name] for name in slides})
    k = n_groups if k is None else k
    if not 2 <= k <= n_groups:
        text = unquoted(f"{n_groups} groups ({', '.join(sorted(set(groups.values()))[:5])})")
        raise BadInput(found, "/".join(columns), text, f"at least {max(k, 2)}, one for each fold")
    strata = None if stratify is None else _of_slides(files, source, [stratify])
    tested = group_folds(
        [groups[name] for name in slides],
        k,
        weights=[max(n_spots[name], 1) for name in slides] if by_spots else None,
        strata=None if strata is None else [strata[name] for name in slides],
        seed=seed,
    )
    # another group, such as the slide, must not pass for the patient
    patients = groups if PATIENT in columns else _patients(files, source)
    made = split_files(slides, tested.tolist(), [patients[name] for name in slides])
    before = _write(folder / "splits", made, overwrite)
    known = read_groups(source, columns) if source else {}
    return Split(
        folder / "splits",
        found,
        Dataset(folder.resolve().name, folder).folds(),
        n_spots,
        [name for name in known if name not in files],
        before,
    )


def _of_slides(
    files: Mapping[str, Path], source: Path | None, columns: Sequence[str]
) -> dict[str, str]:
    """Return what the columns say of each slide; every slide must be known."""
    found = _stated(files, source, columns)
    unknown = [name for name, group in found.items() if not group]
    if unknown:
        place = source or next(iter(files.values())).parent
        text = unquoted(f"none for {len(unknown)} of {len(files)} slides, such as {unknown[:3]}")
        fix = f"give a table of all slides with --table or as one of {', '.join(TABLES)}"
        raise BadInput(place, "/".join(columns), text, "a value for every slide", fix)
    return found


def _stated(
    files: Mapping[str, Path], source: Path | None, columns: Sequence[str]
) -> dict[str, str]:
    """Return the group of each slide, "" where it is not known."""
    if source is None:
        return {name: stored_group(file, columns) for name, file in files.items()}
    known = read_groups(source, columns)
    return {name: known.get(name, "") for name in files}


def _patients(files: Mapping[str, Path], source: Path | None) -> dict[str, str]:
    if source is not None and PATIENT not in read_text_columns(source):
        return dict.fromkeys(files, "")
    return _stated(files, source, [PATIENT])


def _write(folder: Path, made: Mapping[str, str], overwrite: bool) -> bool:
    """Write the files unless they are there; return whether they were."""
    there = {file.name: file.read_bytes() for file in folder.glob("*.csv")}
    if there == {name: text.encode() for name, text in made.items()}:
        return True
    if there and not overwrite:
        fix = "give --overwrite to replace them"
        raise BadInput(folder, "splits", unquoted(f"{len(there)} other files"), "no splits", fix)
    write_splits(folder, made)
    return False
