"""A run's models applied to embedding files, each prediction written with its provenance."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from stflow_graph.data.load import um_per_px
from stflow_graph.data.observed import Observed
from stflow_graph.errors import BadConfig, BadInput, unquoted
from stflow_graph.inference.in_range import IN_RANGE, OBS_COLUMNS, InRange
from stflow_graph.inference.predictor import Predictor, of_genes
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.io.embeddings import EmbeddingFile, open_embeddings
from stflow_graph.io.h5ad import is_h5ad
from stflow_graph.io.patches import TOP_LEFT
from stflow_graph.io.predictions import (
    WARNINGS,
    Block,
    Late,
    n_spots_of,
    read_provenance,
    warnings_of,
    write_prediction_blocks,
)
from stflow_graph.io.versions import Versions, unchanged
from stflow_graph.models.checkpoint import Checkpoint, find_checkpoints, load_checkpoint

logger = logging.getLogger(__name__)

NO_ORIGIN: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Sampled:
    """A slide's prediction on disk; ``up_to_date`` if there was nothing to do.

    ``in_range`` says how far the slide lies from those of training; None: the model does not know.
    ``replaced``: one of other settings, model or inputs was there. ``warnings`` are those that its
    image and spots met, stored with it.
    """

    slide: str
    n_spots: int
    fold: int | None
    held_out: bool
    path: Path
    up_to_date: bool
    in_range: InRange | None = None
    replaced: bool = False
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class FoldModel:
    """A fold's checkpoint, its hash, and its device; the predictor is built when first needed."""

    checkpoint: Checkpoint
    sha256: str
    device: str

    @classmethod
    def load(cls, path: Path, device: str, allow_code: bool) -> FoldModel:
        """Read a checkpoint folder; see ``models.checkpoint.load_checkpoint``."""
        file = path / "config.json"  # it holds the hashes of the other files
        with unchanged(file) as version:
            checkpoint = load_checkpoint(path, allow_code=allow_code)
            return cls(checkpoint, version.sha256(file), device)

    @property
    def number(self) -> int | None:
        """The fold's number, None of a model of all slides."""
        return self.checkpoint.provenance.get("fold")

    def holds_out(self, slide: str) -> bool:
        """Return whether the slide is one of the fold's test slides."""
        return slide in self.checkpoint.provenance.get("test_slides", [])

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The checkpoint on its device."""
        return Predictor(self.checkpoint, self.device)


def load_models(
    source: str | Path, number: int | None, device: str, allow_code: bool
) -> list[FoldModel]:
    """Read the checkpoints of a run, the model of all slides first.

    Args:
        source: run, fold or checkpoint folder.
        number: of the fold to take; None takes all.
        device: of the predictors.
        allow_code: see ``models.checkpoint.load_checkpoint``.

    Raises:
        BadInput: no checkpoint there, or a damaged one.
        BadConfig: no fold of that number, or a checkpoint that names code.
    """
    folds = [FoldModel.load(path, device, allow_code) for path in find_checkpoints(source)]
    chosen = [fold for fold in folds if number is None or fold.number == number]
    if not chosen:
        present = ", ".join(str(fold.number) for fold in folds)
        raise BadConfig(f"{source}: fold {number} is not there; it has {present}")
    return chosen


def model_for(slide: str, models: Sequence[FoldModel]) -> FoldModel:
    """Return the model that holds a slide out, else the first."""
    return next((model for model in models if model.holds_out(slide)), models[0])


def sample_file(
    fold: FoldModel,
    file: Path,
    out: Path,
    settings: SampleSettings,
    *,
    origin: Mapping[str, Any] = NO_ORIGIN,
    warnings: Sequence[str] = (),
    overwrite: bool = False,
) -> Sampled:
    """Predict a slide from its embedding file and write ``out/<slide>.h5ad``.

    Args:
        fold: the model.
        file: the embeddings.
        out: folder of the prediction.
        settings: number of samples, seed, measured spots.
        origin: further provenance, of what the embeddings were made of.
        warnings: of how they were made, to be stored.
        overwrite: replace an existing prediction.

    Raises:
        BadInput: embeddings that cannot be used, were replaced meanwhile, or the output is there
            and is no prediction.
        BadConfig: embeddings that do not fit the model.
        StorageFailed: the disk is full.
    """
    predictor = fold.predictor
    name, path = file.stem, out / f"{file.stem}.h5ad"
    with (
        unchanged(file) as versions,
        open_embeddings(file) as source,
        ThreadPoolExecutor(1) as threads,
    ):
        predictor.check(source, settings)
        columns = settings.columns(fold.checkpoint.genes)
        observed = predictor.observed(source, settings)
        meter = predictor.meter(source)
        if meter is not None:
            source = dataclasses.replace(source, watch=meter.see)
        provenance = {**_provenance(fold, source, settings, observed, versions), **origin}
        if warnings:
            provenance[WARNINGS] = list(warnings)
        hashed = threads.submit(versions.sha256, file)  # large: takes its time beside the rest
        held_out = fold.holds_out(name)
        result = Sampled(
            name, len(source), fold.number, held_out, path, False, warnings=tuple(warnings)
        )

        def digest() -> dict[str, str]:
            return {"embeddings_sha256": hashed.result()}

        stored = _stored(path, overwrite)
        if stored is not None:
            same = _is_same(stored, {**provenance, **digest()})
            if same and not overwrite:
                return dataclasses.replace(result, up_to_date=True, **_measured(stored))
            result = dataclasses.replace(result, replaced=not same)

        def late() -> Late:
            if meter is None:
                return Late(digest(), {})
            return Late({**digest(), IN_RANGE: meter.result().record()}, meter.columns())

        settings.check_disk(out, len(source), len(columns))
        info = predictor.info(provenance, settings, columns, observed)
        info["late"], info["late_obs"] = late, {} if meter is None else OBS_COLUMNS
        blocks = of_genes(predictor.blocks(source, settings, observed, out), columns)
        write_prediction_blocks(
            path,
            _then(blocks, digest, versions.check),
            source.barcodes,
            [fold.checkpoint.genes[i] for i in columns],
            source.coords,
            **info,
        )
    return result if meter is None else dataclasses.replace(result, in_range=meter.result())


def predicted(
    path: Path, fold: FoldModel, settings: SampleSettings, origin: Mapping[str, Any]
) -> Sampled | None:
    """Return a prediction that is there, None where none is or it is of other inputs.

    Unlike :func:`sample_file` it does not need the embeddings, only what they are made of.

    Args:
        path: of the prediction.
        fold: the model.
        settings: number of samples, seed.
        origin: what the embeddings are made of, as :func:`sample_file` took it.
    """
    name, held_out = path.stem, fold.holds_out(path.stem)
    expected = {
        "genes": None,  # of a prediction of all genes, which does not name them
        **fold.predictor.provenance(name, settings),
        "checkpoint_sha256": fold.sha256,
        **origin,
    }
    with contextlib.suppress(BadInput):
        if path.is_file():
            stored, n = read_provenance(path), n_spots_of(path)
            if all(stored.get(key) == value for key, value in expected.items()):
                return Sampled(name, n, fold.number, held_out, path, True, **_measured(stored))
    return None


def _measured(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a prediction's provenance states that was not asked for."""
    return {
        "in_range": InRange.of_record(stored.get(IN_RANGE)),
        "warnings": warnings_of(stored),
    }


def _then(blocks: Iterator[Block], *work: Callable[[], Any]) -> Iterator[Block]:
    """Yield blocks, and do something before the output takes its place."""
    yield from blocks
    for each in work:
        each()


def _provenance(
    fold: FoldModel,
    source: EmbeddingFile,
    settings: SampleSettings,
    observed: Observed | None,
    versions: Versions,
) -> dict[str, Any]:
    """Return the origin of a prediction with the hashes of files behind it but the embeddings'."""
    file = source.path
    provenance = {
        **fold.predictor.provenance(file.stem, settings, observed),
        "checkpoint_sha256": fold.sha256,
        "um_per_px": um_per_px(source.attrs),
        "um_per_px_estimated": bool(source.attrs.get("um_per_px_estimated", False)),
    }
    image = settings.image_of(file.stem)
    if image is not None:
        provenance["image_sha256"] = versions.sha256(image)
        if source.attrs.get("convention") == TOP_LEFT:
            logger.warning(
                "%s: its coords are corners of patches: spots are drawn half a patch off", file
            )
    return provenance


def _stored(path: Path, overwrite: bool) -> dict[str, Any] | None:
    """Return the provenance of a prediction that is there, None where there is none.

    Raises:
        BadInput: another .h5ad is there, which is not to be overwritten.
    """
    if not path.exists():
        return None
    try:
        return read_provenance(path)
    except BadInput as error:
        if overwrite or not is_h5ad(path):
            return None
        found = unquoted("an .h5ad that is no prediction")
        fix = "give another --out, or --overwrite to replace it"
        raise BadInput(path, "output", found, "a free name or a prediction", fix) from error


def _is_same(stored: Mapping[str, Any], provenance: Mapping[str, Any]) -> bool:
    """Return whether a prediction is of these settings, model and inputs."""
    measured = {"format": None, IN_RANGE: None, WARNINGS: None}
    return {**stored, **measured} == {**provenance, **measured}
