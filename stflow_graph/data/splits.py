"""A HEST-bench style root on disk: data sets, folds, samples, and where their files are."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from stflow_graph.errors import BadInput, plain
from stflow_graph.io.atomic import check_name


@dataclasses.dataclass(frozen=True)
class Sample:
    """One slide of a data set and the paths that its split file gives."""

    id: str
    dataset: str
    patches_path: Path
    expr_path: Path


@dataclasses.dataclass(frozen=True)
class Fold:
    """Training and test slides of one split."""

    index: int
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set folder: ``patches/``, ``adata/``, ``splits/`` and gene lists."""

    name: str
    path: Path

    def gene_list_path(self, gene_list: str, fold: int) -> Path:
        """Return the path of a fold's gene list.

        Args:
            gene_list: a file name in the folder, or a path; ``{fold}`` stands for the fold's
                number. Where ``<name>.json`` is absent, ``<name>_fold<i>.json`` is taken.
            fold: the fold's number.
        """
        name = Path(gene_list.replace("{fold}", str(fold)))
        of_fold = name.with_name(f"{name.stem}_fold{fold}{name.suffix}")
        places = [self.path / name, self.path / of_fold, name]
        return next((place for place in places if place.exists()), places[0])

    def folds(self) -> list[Fold]:
        """Read every fold, ordered by its number.

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
            raise BadInput(folder, "splits", plain("no train_<i>.csv"), "train_0.csv, test_0.csv")
        return [self._fold(number) for number in numbers]

    def _fold(self, number: int) -> Fold:
        sides = {}
        for side in ("train", "test"):
            sides[side] = tuple(self._read(self.path / "splits" / f"{side}_{number}.csv"))
        both = {s.id for s in sides["train"]} & {s.id for s in sides["test"]}
        if both:
            raise BadInput(
                self.path / "splits" / f"test_{number}.csv",
                "sample_id",
                plain(f"{sorted(both)[:3]} also in train_{number}.csv"),
                "slides on one side only",
            )
        return Fold(number, sides["train"], sides["test"])

    def _read(self, file: Path) -> list[Sample]:
        try:
            table = pd.read_csv(file, dtype=str)
        except OSError as error:
            raise BadInput(file, "file", error.strerror, "a split file") from None
        except (ValueError, UnicodeDecodeError) as error:
            raise BadInput(file, "content", str(error), "a csv table") from None
        columns = ["sample_id", "patches_path", "expr_path"]
        if not set(columns) <= set(table.columns):
            raise BadInput(file, "columns", list(table.columns), ", ".join(columns))
        if table.empty or table[columns].isna().any(axis=None):
            raise BadInput(file, "rows", plain("none or empty cells"), "one slide a row")
        if table["sample_id"].duplicated().any():
            raise BadInput(file, "sample_id", plain("duplicates"), "each slide once")
        return [
            Sample(
                check_name(row.sample_id, file),
                self.name,
                self.path / row.patches_path,
                self.path / row.expr_path,
            )
            for row in table.itertuples()
        ]

    def samples(self) -> list[Sample]:
        """Return every slide of every fold once, ordered by name."""
        found = {s.id: s for fold in self.folds() for s in (*fold.train, *fold.test)}
        return [found[key] for key in sorted(found)]


def find_datasets(root: str | Path, names: Sequence[str] = ()) -> list[Dataset]:
    """Find the data sets of a HEST-bench root, or the one data set that ``root`` itself is.

    Args:
        root: a folder with data set folders, or a data set folder (has ``splits/``).
        names: the data sets wanted; none means all.

    Raises:
        BadInput: no data set there, or a name that is not there (lists those that are).
    """
    root = Path(root)
    if not root.is_dir():
        raise BadInput(root, "root", plain("no folder"), "a HEST-bench root or data set folder")
    if (root / "splits").is_dir():
        found = [Dataset(root.resolve().name, root)]
        if names and list(names) != [found[0].name]:
            raise BadInput(root, "datasets", list(names), f"{found[0].name!r}, the folder itself")
        return found
    found = [Dataset(d.name, d) for d in sorted(root.iterdir()) if (d / "splits").is_dir()]
    if not found:
        raise BadInput(root, "root", plain("no data set"), "folders with splits/, patches/, adata/")
    known = {d.name: d for d in found}
    absent = [name for name in names if name not in known]
    if absent:
        raise BadInput(root, "datasets", absent, f"names among {sorted(known)}")
    return [known[name] for name in names] if names else found


def embedding_path(root: str | Path, dataset: str, encoder: str, sample: str) -> Path:
    """Return where STFlow and HEST keep a slide's embeddings (where ``embed`` writes them)."""
    return Path(root) / dataset / encoder / "fp32" / f"{sample}.h5"


def known_embedding(root: str | Path, dataset: str, encoder: str, sample: str) -> Path | None:
    """Return a slide's embedding file in any layout that users have, None if there is none."""
    places = [
        embedding_path(root, dataset, encoder, sample),
        Path(root) / dataset / encoder / f"{sample}.h5",
        Path(root) / encoder / "fp32" / f"{sample}.h5",
        Path(root) / encoder / f"{sample}.h5",
        Path(root) / f"{sample}.h5",
    ]
    return next((place for place in places if place.is_file()), None)


def find_embedding(root: str | Path, dataset: str, encoder: str, sample: str) -> Path:
    """Find a slide's embedding file in any layout that users have.

    Raises:
        BadInput: it is in none of the places looked at; the message names the first.
    """
    found = known_embedding(root, dataset, encoder, sample)
    if found is None:
        first = embedding_path(root, dataset, encoder, sample)
        fix = f"run `stflow-graph embed` with --encoder {encoder}"
        raise BadInput(first, "file", plain("no file"), f"embeddings of slide {sample}", fix)
    return found
