"""Sources of raw slides: the files of each, and how to read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeAlias

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.images.open import open_image
from stflow_graph.images.reader import ImageReader
from stflow_graph.io.atomic import sha256
from stflow_graph.io.expression import Expression
from stflow_graph.platforms.tables import SpotTable, check_orientation, read_counts, read_spots


@dataclasses.dataclass(frozen=True)
class SlideData:
    """One slide's tables.

    Attributes:
        spots: the spots' places, level-0 pixels of the H&E image.
        expression: raw counts; its barcodes are matched with those of ``spots``.
        um_per_px: micrometres per pixel of the H&E image, None if not in the files.
    """

    spots: SpotTable
    expression: Expression
    um_per_px: float | None


@dataclasses.dataclass(frozen=True)
class SlideSource:
    """One slide on disk, not read yet.

    Attributes:
        name: the slide's name.
        inputs: every file that is read, by role. ``image`` is the H&E image at full resolution,
            ``patches`` a HEST patch file already cut from it; ``counts`` is always there.
        read: reads the tables.
        open_image: opens an H&E image that is no file of its own.
        hash_input: returns the SHA-256 of an input.
        platform: its name, for people; "" if the user named the files one by one.
        unit: of the rows, for people.
        settings: options that affect ``read``.
        um_per_px: micrometres per pixel from the user; overrides the files.
        patient: the patient's name, "" if unknown.
    """

    name: str
    inputs: Mapping[str, Path]
    read: Callable[[], SlideData]
    open_image: Callable[[], AbstractContextManager[ImageReader]] | None = None
    hash_input: Callable[[Path], str] = sha256
    platform: str = ""
    unit: str = "spots"
    settings: Mapping[str, str | float] = dataclasses.field(default_factory=dict)
    um_per_px: float | None = None
    patient: str = ""

    def image(self) -> AbstractContextManager[ImageReader]:
        """Open the H&E image.

        Raises:
            BadInput: there is none.
        """
        if self.open_image is not None:
            return self.open_image()
        return open_image(self.image_input())

    def image_input(self) -> Path:
        """Return the file of the H&E image.

        Raises:
            BadInput: there is none.
        """
        if "image" not in self.inputs:
            fix = "give --image; a reduced copy such as tissue_hires_image.png will not do"
            raise BadInput(
                self.spots_file, "image", unquoted("nothing"), "the full-size H&E image", fix
            )
        return self.inputs["image"]

    @property
    def image_file(self) -> Path:
        """The file to name in messages about the scale: the image, if there is one."""
        return self.inputs.get("image", self.inputs["counts"])

    @property
    def spots_file(self) -> Path:
        """The file with the spots' places."""
        return self.inputs.get("spots", self.inputs["counts"])


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """Options of the user for a raw slide.

    Attributes:
        name: the slide's name, or the one of several to take; None takes the folder's, or all.
        image: the H&E image at full resolution.
        um_per_px: its micrometres per pixel; overrides the files.
        gene_names: ``"symbols"`` or ``"ids"``, for files with both.
        bin_um: Visium HD's bins, µm.
        alignment: Xenium's matrix that maps pixels of the H&E image to the morphology image.
        array: kind of a legacy array, a key of ``array_scale.LEGACY_ARRAYS``; None detects it.
    """

    name: str | None = None
    image: Path | None = None
    um_per_px: float | None = None
    gene_names: str = "symbols"
    bin_um: int | None = None
    alignment: Path | None = None
    array: str | None = None


NO_OPTIONS = SourceOptions()
# the slides of a folder by name, each with the function that returns it
Sources: TypeAlias = Mapping[str, Callable[[], SlideSource]]


def tables_source(
    name: str,
    image: str | Path,
    spots: str | Path | None,
    counts: str | Path,
    um_per_px: float | None = None,
    patient: str = "",
) -> SlideSource:
    """Return the source of a slide whose files are named one by one.

    Args:
        name: the slide's name.
        image: H&E image at full resolution.
        spots: spot table, see ``platforms.tables.read_spots``; None takes the places in ``counts``.
        counts: table of spots x genes, or .h5ad with raw counts.
        um_per_px: micrometres per pixel; None takes that of the .h5ad.
        patient: the patient's name, "" if unknown.
    """
    inputs = {"image": Path(image), "counts": Path(counts)}
    if spots is not None:
        inputs["spots"] = Path(spots)
    return SlideSource(
        name, inputs, lambda: _read_tables(inputs), um_per_px=um_per_px, patient=patient
    )


def _read_tables(inputs: Mapping[str, Path]) -> SlideData:
    expression = read_counts(inputs["counts"])
    if "spots" in inputs:
        spots = read_spots(inputs["spots"])
        check_orientation(spots, expression, inputs["counts"])
        return SlideData(spots, expression, expression.um_per_px)
    return SlideData(places_of(expression, inputs["counts"]), expression, expression.um_per_px)


def places_of(expression: Expression, file: Path) -> SpotTable:
    """Return the spot table that an .h5ad holds itself.

    Raises:
        BadInput: it has no ``obsm["spatial"]``.
    """
    if expression.coords is None:
        fix = "give a spot table"
        raise BadInput(file, "obsm['spatial']", unquoted("nothing"), "the spots' places", fix)
    return SpotTable(expression.barcodes, expression.coords)
