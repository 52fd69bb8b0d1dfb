"""HEST-bench roots on disk: data sets, folds, samples, and the paths of their files."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from stflow_graph.data.patients import PATIENT, find_table, read_groups
from stflow_graph.encoders.catalogue import spellings
from stflow_graph.errors import BadConfig, BadInput, unquoted
from stflow_graph.io.atomic import check_name, write_text
from stflow_graph.io.columns import read_text_columns
from stflow_graph.io.folders import FolderKind, atomic_folder
from stflow_graph.io.hdf5 import check_unique

_COLUMNS = ("sample_id", "patches_path", "expr_path")
# stands for one fold that trains on every slide, beside the numbers of those that test some
ALL = "all"
Folds = Sequence[int] | Literal["all"]
_SPLIT_FILE = re.compile(r"(train|test)_\d+\.csv")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One slide of a data set and the paths in its split file; patient "" if unknown."""

    id: str
    dataset: str
    patches_path: Path
    expr_path: Path
    patient: str = ""


@dataclasses.dataclass(frozen=True)
class Fold:
    """Training and test slides of one split; of all slides, none tested, the index is None."""

    index: int | None
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]

    @property
    def name(self) -> str:
        """The name of its folder, and of its gene list."""
        return ALL if self.index is None else f"fold{self.index}"

    @property
    def title(self) -> str:
        """The fold's name in messages."""
        return "all slides" if self.index is None else f"fold {self.index}"

    @property
    def shared_patients(self) -> list[str]:
        """The known patients on both sides."""
        sides = ({s.patient for s in side if s.patient} for side in (self.train, self.test))
        return sorted(set.intersection(*sides))

    @property
    def knows_patients(self) -> bool:
        """Whether the patient of every slide is known."""
        return all(sample.patient for sample in (*self.train, *self.test))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set folder: ``patches/``, ``adata/``, ``splits/`` and gene lists."""

    name: str
    path: Path

    def gene_list_path(self, gene_list: str, fold: Fold) -> Path:
        """Return the path of a fold's gene list.

        Args:
            gene_list: a file name in the folder, or a path; ``{fold}`` stands for the fold's
                number, or "all". Where ``<name>.json`` is absent, ``<name>_fold<i>.json`` is taken,
                or ``<name>_all.json`` of all slides.
            fold: the fold.
        """
        number = ALL if fold.index is None else str(fold.index)
        name = Path(gene_list.replace("{fold}", number))
        of_fold = name.with_name(f"{name.stem}_{fold.name}{name.suffix}")
        paths = [self.path / name, self.path / of_fold, name]
        return next((path for path in paths if path.exists()), paths[0])

    def gene_list_name(self, gene_list: str, folds: Sequence[Fold]) -> str:
        """Return the name of the gene lists that folds take, ``{fold}`` for the fold's number."""
        for fold in folds:
            path = self.gene_list_path(gene_list, fold)
            if path.exists():  # a fold that is not run may lack its list
                return path.name.replace(f"_fold{fold.index}.", "_fold{fold}.")
        return Path(gene_list).name

    def folds(self) -> list[Fold]:
        """Read every fold, ordered by its number.

        A slide's patient is in the column ``patient`` of the split files, or else in that of
        ``patients.csv``, ``metadata.csv`` or ``dataset.csv`` in the folder, or unknown.

        Raises:
            BadInput: no split files, a train file without its test file, missing columns, a slide
                on both sides or twice.
        """
        folder = self.path / "splits"
        numbers = sorted(
            int(match.group(1))
            for file in folder.glob("train_*.csv")
            if (match := re.fullmatch(r"train_(\d+)\.csv", file.name))
        )
        if not numbers:
            found, expected = unquoted("no train_<i>.csv"), "train_0.csv, test_0.csv"
            fix = f"stflow-graph split {self.path} --leave-one-out"
            raise BadInput(folder, "splits", found, expected, fix)
        patients = self._patients()
        return [self._fold(number, patients) for number in numbers]

    def _patients(self) -> Mapping[str, str]:
        table = find_table(self.path)
        return {} if table is None else read_groups(table)

    def all_slides(self) -> Fold:
        """Return every slide of ``adata/``, to train on; needs no ``splits/``.

        Raises:
            BadInput: no slides there.
        """
        files = sorted((self.path / "adata").glob("*.h5ad"))
        if not files:
            found, expected = unquoted("no .h5ad file"), "a data set's slides"
            raise BadInput(self.path / "adata", "folder", found, expected)
        patients = self._patients()
        return Fold(
            None,
            tuple(
                Sample(
                    check_name(file.stem, file),
                    self.name,
                    self.path / "patches" / f"{file.stem}.h5",
                    file,
                    patients.get(file.stem, ""),
                )
                for file in files
            ),
            (),
        )

    def training_folds(
        self, numbers: Folds = (), *, allow_patient_overlap: bool = False
    ) -> list[Fold]:
        """Read the folds to train on; see :meth:`folds` and :meth:`all_slides`.

        Args:
            numbers: numbers of folds; none means those of ``splits/``, ``"all"`` all slides as one.
            allow_patient_overlap: accept folds with a patient on both sides. Folds of unknown
                patients are always accepted.

        Raises:
            BadInput: a patient is on both sides, and that is not allowed.
            BadConfig: a fold that does not exist.
        """
        if numbers == ALL:
            return [self.all_slides()]
        folds = self.folds()
        indices = [fold.index for fold in folds]
        absent = sorted(number for number in map(int, numbers) if number not in indices)
        if absent:
            present = ", ".join(map(str, indices))
            raise BadConfig(f"folds: {absent} not in {self.name}, which has folds {present}")
        chosen = [fold for fold in folds if not numbers or fold.index in numbers]
        for fold in () if allow_patient_overlap else chosen:
            if fold.shared_patients:
                raise BadInput(
                    self.path / "splits" / f"test_{fold.index}.csv",
                    PATIENT,
                    unquoted(f"{fold.shared_patients[:3]} also in train_{fold.index}.csv"),
                    "patients on one side only",
                    "make folds with `stflow-graph split`, or give --allow-patient-overlap",
                )
        return chosen

    def _fold(self, number: int, patients: Mapping[str, str]) -> Fold:
        sides = {}
        for side in ("train", "test"):
            file = self.path / "splits" / f"{side}_{number}.csv"
            sides[side] = tuple(self._read(file, patients))
        both = {s.id for s in sides["train"]} & {s.id for s in sides["test"]}
        if both:
            raise BadInput(
                self.path / "splits" / f"test_{number}.csv",
                "sample_id",
                unquoted(f"{sorted(both)[:3]} also in train_{number}.csv"),
                "slides on one side only",
            )
        return Fold(number, sides["train"], sides["test"])

    def _read(self, file: Path, patients: Mapping[str, str]) -> list[Sample]:
        table = read_text_columns(file)
        if not set(_COLUMNS) <= table.keys():
            raise BadInput(file, "columns", list(table), ", ".join(_COLUMNS))
        ids, patches, expressions = (table[name] for name in _COLUMNS)
        if not ids or not all((*ids, *patches, *expressions)):
            raise BadInput(file, "rows", unquoted("none or empty cells"), "one slide a row")
        check_unique(ids, file, "sample_id")
        own = table.get(PATIENT, [""] * len(ids))
        return [
            Sample(
                check_name(name, file),
                self.name,
                self._inside(patch_file, file, "patches_path"),
                self._inside(expression, file, "expr_path"),
                patient or patients.get(name, ""),
            )
            for name, patch_file, expression, patient in zip(
                ids, patches, expressions, own, strict=True
            )
        ]

    def _inside(self, name: str, file: Path, column: str) -> Path:
        """Return a path of a split file, which must be below the folder; links there are followed.

        Raises:
            BadInput: it is elsewhere.
        """
        path = self.path / name
        root, normal = (Path(os.path.normpath(p.absolute())) for p in (self.path, path))
        if root not in normal.parents or not name.isprintable():
            raise BadInput(file, column, name, f"a path below {self.path}")
        return path

    def samples(self) -> list[Sample]:
        """Return every slide of every fold once, ordered by name."""
        samples = {s.id: s for fold in self.folds() for s in (*fold.train, *fold.test)}
        return [samples[name] for name in sorted(samples)]


def split_files(
    slides: Sequence[str], tested_in: Sequence[int], patients: Sequence[str] = ()
) -> dict[str, str]:
    """Return the split files of some folds, by name, in HEST-bench's columns.

    Args:
        slides: S names.
        tested_in: S folds that test each slide, numbered from 0; the others train on it.
        patients: S patients for a further column, which is left out if all are unknown.
    """
    paths = [f"patches/{name}.h5" for name in slides], [f"adata/{name}.h5ad" for name in slides]
    table = pd.DataFrame(dict(zip(_COLUMNS, (list(slides), *paths), strict=True)))
    if any(patients):
        table[PATIENT] = list(patients)
    folds = np.asarray(tested_in)
    return {
        f"{side}_{fold}.csv": table[(folds == fold) == (side == "test")].to_csv(
            index=False, lineterminator="\n"
        )
        for fold in range(max(tested_in) + 1)
        for side in ("train", "test")
    }


def _foreign_to_splits(folder: Path) -> str:
    files = sorted(folder.iterdir())
    foreign = [file.name for file in files if not _SPLIT_FILE.fullmatch(file.name)]
    for file in [] if foreign else files:
        try:
            with file.open("rb") as stream:
                columns = stream.readline(2**16).decode("utf-8-sig", "replace").strip().split(",")
        except OSError:  # a folder of such a name
            columns = []
        if not set(_COLUMNS) <= set(columns):
            foreign.append(file.name)
    return f"other entries, such as {foreign[:3]}" if foreign else ""


_SPLITS = FolderKind("split files", _foreign_to_splits)


def write_splits(folder: str | Path, files: Mapping[str, str]) -> None:
    """Write the files of :func:`split_files` as a folder ``splits/``, replacing an existing one.

    Raises:
        BadInput: the folder holds anything but split files.
    """
    with atomic_folder(folder, _SPLITS) as temporary:
        for name, text in files.items():
            write_text(temporary / name, text)


def find_datasets(root: str | Path, names: Sequence[str] = ()) -> list[Dataset]:
    """Find the data sets of a HEST-bench root, or the one data set that ``root`` itself is.

    A data set is a folder with ``patches/`` or ``adata/``, as ``prepare`` writes them, or
    ``splits/``.

    Args:
        root: a folder with data set folders, or a data set folder.
        names: names of data sets; none means all.

    Raises:
        BadInput: no data set, or an unknown name (lists the known ones).
    """
    root = Path(root)
    if not root.is_dir():
        raise BadInput(root, "root", unquoted("no folder"), "a HEST-bench root or data set folder")
    if _is_dataset(root):
        dataset = Dataset(root.resolve().name, root)
        if names and list(names) != [dataset.name]:
            raise BadInput(root, "datasets", list(names), f"{dataset.name!r}, the folder itself")
        return [dataset]
    datasets = {d.name: Dataset(d.name, d) for d in sorted(root.iterdir()) if _is_dataset(d)}
    if not datasets:
        expected = "folders with patches/, adata/, splits/"
        raise BadInput(root, "root", unquoted("no data set"), expected)
    absent = [name for name in names if name not in datasets]
    if absent:
        raise BadInput(root, "datasets", absent, f"names among {sorted(datasets)}")
    return [datasets[name] for name in names or datasets]


def _is_dataset(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in ("splits", "patches", "adata"))


def embedding_path(root: str | Path, dataset: str, encoder: str, sample: str) -> Path:
    """Return the path of a slide's embeddings in the layout of STFlow, HEST and ``embed``."""
    return Path(root) / dataset / encoder / "fp32" / f"{sample}.h5"


def existing_embedding(root: str | Path, dataset: str, encoder: str, sample: str) -> Path | None:
    """Return a slide's embedding file in any supported layout, None if there is none.

    An encoder's folder may have its own name or an alias (STFlow's ``uni_v1_official``).
    """
    paths = []
    for name in spellings(encoder):
        paths += [
            embedding_path(root, dataset, name, sample),
            Path(root) / dataset / name / f"{sample}.h5",
            Path(root) / name / "fp32" / f"{sample}.h5",
            Path(root) / name / f"{sample}.h5",
        ]
    paths.append(Path(root) / f"{sample}.h5")
    return next((path for path in paths if path.is_file()), None)


def find_embedding(root: str | Path, dataset: str, encoder: str, sample: str) -> Path:
    """Return a slide's embedding file in any supported layout.

    Raises:
        BadInput: there is none; names the path where ``embed`` writes it.
    """
    file = existing_embedding(root, dataset, encoder, sample)
    if file is None:
        first = embedding_path(root, dataset, encoder, sample)
        fix = f"run `stflow-graph embed` with --encoder {encoder}"
        raise BadInput(first, "file", unquoted("no file"), f"embeddings of slide {sample}", fix)
    return file
