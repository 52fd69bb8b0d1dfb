"""The sample stage: a checkpoint and embeddings to predictions; it has no access to the truth."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from stflow_graph.data.load import um_per_px
from stflow_graph.data.observed import Observed
from stflow_graph.errors import BadConfig, BadInput, attempt_each, unquoted
from stflow_graph.inference.predictor import Predictor
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.io.atomic import check_name
from stflow_graph.io.embeddings import EmbeddingFile, open_embeddings
from stflow_graph.io.h5ad import is_h5ad
from stflow_graph.io.outputs import check_output_folder
from stflow_graph.io.patches import TOP_LEFT
from stflow_graph.io.predictions import Block, read_provenance, write_prediction_blocks
from stflow_graph.io.versions import Versions, unchanged
from stflow_graph.models.build import pick_device
from stflow_graph.models.checkpoint import Checkpoint, find_checkpoints, load_checkpoint
from stflow_graph.models.precision import check_precision

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Sampled:
    """A slide's prediction on disk; ``up_to_date`` if there was nothing to do."""

    slide: str
    n_spots: int
    fold: int | None
    held_out: bool
    path: Path
    up_to_date: bool


def sample(
    source: str | Path,
    embeddings: Sequence[str | Path],
    out: str | Path,
    settings: SampleSettings | None = None,
    *,
    overwrite: bool = False,
    allow_code: bool = False,
    report: Callable[[Sampled], None] | None = None,
) -> list[Sampled]:
    """Predict the expression of slides from their embeddings and write ``out/<slide>.h5ad``.

    Of a run with several folds, a slide takes the fold that held it out; a slide of none of the
    folds takes ``settings.fold``, or the first one.

    Args:
        source: a run folder of ``train``, a fold's folder or a checkpoint folder.
        embeddings: embedding files, or folders of them.
        out: folder of the predictions.
        settings: number of samples, seed, device, measured spots; None: the mean alone.
        overwrite: overwrite existing predictions.
        allow_code: run the code of a layer that is neither ours nor PyG's.
        report: called after every slide.

    Raises:
        BadInput: a file that cannot be used, when it is the only one.
        BadConfig: an unknown device, one that lacks the precision, embeddings that do not fit the
            checkpoint, or it names code and ``allow_code`` is not set.
        SomeFailed: some of several slides failed; the others are written.
    """
    settings = settings or SampleSettings()
    check_output_folder(out)
    # refused once, not for every slide
    check_precision(settings.precision, pick_device(settings.device))
    folds = _load_folds(source, settings.fold, settings.device, allow_code)
    files = _embedding_files(embeddings)
    _check_observed(settings, [file.stem for file in files])

    def one(file: Path) -> Sampled:
        fold = next((fold for fold in folds if fold.holds_out(file.stem)), folds[0])
        result = _sample_slide(fold, file, Path(out), settings, overwrite)
        if report:
            report(result)
        return result

    return attempt_each([(file.stem, functools.partial(one, file)) for file in files])


@dataclasses.dataclass(frozen=True, eq=False)
class _Fold:
    """A fold's checkpoint, its hash, and its device; the predictor is built when first needed."""

    checkpoint: Checkpoint
    sha256: str
    device: str

    @classmethod
    def load(cls, path: Path, device: str, allow_code: bool) -> _Fold:
        file = path / "config.json"  # it holds the hashes of the other files
        with unchanged(file) as version:
            checkpoint = load_checkpoint(path, allow_code=allow_code)
            return cls(checkpoint, version.sha256(file), device)

    @property
    def number(self) -> int | None:
        return self.checkpoint.provenance.get("fold")

    def holds_out(self, slide: str) -> bool:
        return slide in self.checkpoint.provenance.get("test_slides", [])

    @functools.cached_property
    def predictor(self) -> Predictor:
        return Predictor(self.checkpoint, self.device)


def _load_folds(
    source: str | Path, number: int | None, device: str, allow_code: bool
) -> list[_Fold]:
    folds = [_Fold.load(path, device, allow_code) for path in find_checkpoints(source)]
    chosen = [fold for fold in folds if number is None or fold.number == number]
    if not chosen:
        present = ", ".join(str(fold.number) for fold in folds)
        raise BadConfig(f"{source}: fold {number} is not there; it has {present}")
    return chosen


def _embedding_files(paths: Sequence[str | Path]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        inside = [path]
        if path.is_dir():
            inside = sorted(path.glob("*.h5")) or sorted(path.glob("*.pt"))
        if not inside:
            raise BadInput(path, "folder", unquoted("no .h5 or .pt file"), "embedding files")
        files += inside
    names = [check_name(file.stem, file, "slide name") for file in files]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInput(
            files[names.index(twice[0])], "slide name", unquoted(f"{twice[:3]} twice"), "each once"
        )
    return files


def _check_observed(settings: SampleSettings, slides: Sequence[str]) -> None:
    """Refuse one file of measured spots for several slides, and a folder with none for any."""
    observed = settings.observed
    if not isinstance(observed, str | Path):
        if observed is not None and len(slides) > 1:
            raise BadConfig("observed: one AnnData for several slides. Fix: one slide at a time")
        return
    folder = Path(observed)
    if not folder.is_dir():
        if len(slides) > 1:
            raise BadConfig(
                f"observed: one file for {len(slides)} slides. Fix: give a folder of <slide>.h5ad"
            )
    elif all(settings.observed_of(slide) is None for slide in slides):
        found = unquoted(f"no file of {', '.join(slides[:3])}")
        raise BadInput(folder, "observed", found, "<slide>.h5ad of one or more of the slides")


def _sample_slide(
    fold: _Fold, file: Path, out: Path, settings: SampleSettings, overwrite: bool
) -> Sampled:
    predictor, calibration = fold.predictor, fold.checkpoint.calibration
    name, path = file.stem, out / f"{file.stem}.h5ad"
    with (
        unchanged(file) as versions,
        open_embeddings(file) as source,
        ThreadPoolExecutor(1) as threads,
    ):
        predictor.check(source, settings)
        observed = predictor.observed(source, settings)
        provenance = _provenance(fold, source, settings, observed, versions)
        hashed = threads.submit(versions.sha256, file)  # large: takes its time beside the rest
        result = Sampled(name, len(source), fold.number, fold.holds_out(name), path, False)

        def late() -> dict[str, str]:
            return {"embeddings_sha256": hashed.result()}

        if not overwrite and _is_there(path, provenance, late):
            return dataclasses.replace(result, up_to_date=True)
        settings.check_disk(out, len(source), len(fold.checkpoint.genes))
        write_prediction_blocks(
            path,
            _then(predictor.blocks(source, settings, observed, out), late, versions.check),
            source.barcodes,
            fold.checkpoint.genes,
            source.coords,
            provenance=provenance,
            late_provenance=late,
            n_samples=settings.n_samples if settings.n_samples > 1 else 0,
            expected_pearson=None if calibration is None else calibration.pearson,
            picture=settings.picture(name),
            observed=None if observed is None else (observed.rows, observed.genes),
        )
    return result


def _then(blocks: Iterator[Block], *work: Callable[[], Any]) -> Iterator[Block]:
    """Yield blocks, and do something before the output takes its place."""
    yield from blocks
    for each in work:
        each()


def _provenance(
    fold: _Fold,
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


def _is_there(path: Path, provenance: dict[str, Any], late: Callable[[], dict[str, str]]) -> bool:
    if not path.exists():
        return False
    try:
        stored = read_provenance(path)
    except BadInput as error:
        if not is_h5ad(path):
            return False
        found = unquoted("an .h5ad that is no prediction")
        fix = "give another --out, or --overwrite to replace it"
        raise BadInput(path, "output", found, "a free name or a prediction", fix) from error
    return {**stored, "format": None} == {**provenance, **late(), "format": None}
