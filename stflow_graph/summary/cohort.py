"""The predictions that are summarised together: which they are, and whether they may be."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stflow_graph.data.normalise import TARGETS
from stflow_graph.errors import BadInput, count, unquoted
from stflow_graph.io.atomic import check_name
from stflow_graph.io.cells import printable
from stflow_graph.io.predictions import read_provenance
from stflow_graph.io.versions import Versions

_N_NAMED = 5


@dataclasses.dataclass(frozen=True)
class Source:
    """A prediction on disk.

    Attributes:
        path: its file.
        slide: the slide's name.
        provenance: as stored in it.
        sha256: hash of the file.
    """

    path: Path
    slide: str
    provenance: dict[str, Any]
    sha256: str

    @classmethod
    def read(cls, path: Path, versions: Versions) -> Source:
        """Read the origin of a prediction, and note the file's version.

        Raises:
            BadInput: not a prediction, or one whose slide cannot be a file's name.
        """
        digest = versions.sha256(path)
        provenance = read_provenance(path)
        slide, target = provenance["slide"], provenance["target"]
        if not isinstance(slide, str):
            raise BadInput(path, "slide", slide, "text")
        if target not in TARGETS:
            raise BadInput(path, "target", target, " or ".join(TARGETS))
        return cls(path, check_name(slide, path, "slide"), provenance, digest)

    @property
    def target(self) -> str:
        """The unit of the values."""
        return str(self.provenance["target"])

    @property
    def dataset(self) -> str:
        """The data set of the model, "" if unknown."""
        return str(self.provenance.get("dataset") or "")

    @property
    def in_training(self) -> bool:
        """Whether the model was trained on this slide."""
        names = self.provenance.get("train_slides")
        return isinstance(names, list) and self.slide in names


def prediction_files(paths: Iterable[str | Path]) -> list[Path]:
    """Return prediction files, those of folders by name.

    Raises:
        BadInput: a folder without any, none at all, or a file twice.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.glob("*.h5ad")) if path.is_dir() else [path]
        if not inside:
            raise BadInput(path, "folder", unquoted("no .h5ad file"), "predictions")
        files += inside
    if not files:
        raise BadInput("predictions", "list", unquoted("none"), "at least one prediction")
    places = [file.resolve() for file in files]
    for file, place in zip(files, places, strict=True):
        if places.count(place) > 1:
            raise BadInput(file, "predictions", unquoted("this file twice"), "each file once")
    return files


def check_cohort(sources: Sequence[Source], reference: Sequence[Source] = ()) -> None:
    """Check that predictions are of one target, and each of another slide.

    Args:
        sources: the predictions.
        reference: others of the same target, which may be of the same slides.

    Raises:
        BadInput: they are not.
    """
    first, seen = sources[0], dict[str, Source]()
    for source in (*sources, *reference):
        if source.target != first.target:
            fix = "summarise each target by a command of its own"
            expected = f"{first.target!r} as in {first.path}"
            raise BadInput(source.path, "target", source.target, expected, fix)
    for source in sources:
        if source.slide in seen:
            found = unquoted(f"{source.slide!r} also in {seen[source.slide].path}")
            raise BadInput(source.path, "slide", found, "one prediction a slide")
        seen[source.slide] = source


def cohort_notes(sources: Sequence[Source]) -> list[str]:
    """Return warnings: predictions of several models, and of slides that a model has seen."""
    notes = []
    models = {source.provenance.get("checkpoint_sha256") for source in sources}
    if len(models) > 1:
        notes.append(
            f"predictions of {len(models)} checkpoints: levels of slides may differ by model, as "
            "those of a run's folds do"
        )
    if trained := [source.slide for source in sources if source.in_training]:
        notes.append(
            f"{len(trained)} of {count(len(sources), 'slide')} were in their model's training "
            f"({first_names(trained)}): their values are fitted, not predicted"
        )
    return notes


def first_names(names: Sequence[str]) -> str:
    """Return the first of many names, which may come from files, for messages."""
    return printable(", ".join(names[:_N_NAMED])) + (", ..." if len(names) > _N_NAMED else "")
