"""The predict stage: from H&E images to predictions, without patches on the disk.

It does what ``prepare``, ``embed`` and ``sample`` do, slide by slide.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stflow_graph.encoders import Encoder
from stflow_graph.errors import BadConfig, BadInput, SomeFailed, count, unquoted
from stflow_graph.evaluation.prediction_page import read_reported_slide, render_predictions
from stflow_graph.images.open import check_image
from stflow_graph.images.overlay import overlay_path
from stflow_graph.images.reader import ImageReader
from stflow_graph.inference.in_range import InRange
from stflow_graph.inference.sampling import (
    FoldModel,
    Sampled,
    load_models,
    model_for,
    predicted,
    sample_file,
)
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.io.atomic import check_slide_names, write_text
from stflow_graph.io.embeddings import read_attrs
from stflow_graph.io.outputs import check_output_folder
from stflow_graph.io.predictions import read_provenance
from stflow_graph.io.versions import Versions, unchanged
from stflow_graph.models.build import pick_device
from stflow_graph.models.precision import check_precision
from stflow_graph.parallel.parts import Part, size_of
from stflow_graph.parallel.ranks import Ranks
from stflow_graph.parallel.share import Share, attempt_shared
from stflow_graph.preparation.cut_patches import Progress, cut_patches, patch_reader
from stflow_graph.preparation.embedding import embed_patches
from stflow_graph.preparation.engine import DEFAULT_SETTINGS, EmbedSettings, Engine
from stflow_graph.preparation.image_embedding import image_patches, write_overlay
from stflow_graph.preparation.patch_sources import ImagePatches
from stflow_graph.preparation.places import Layout, Places
from stflow_graph.preparation.slide_places import GridOptions, SlideImage

Model = str | Path | Sequence[FoldModel]

_MAX_UM = 1e5
_MAX_SLIDES = 50  # of a page, but for those of its command
_PICTURES = 5_000_000  # bytes of a slide's overlay, small image and maps
_PATCH_UM, _PITCH_UM = 112.0, 100.0  # where the model does not state those of its training


@dataclasses.dataclass(frozen=True)
class PredictSettings:
    """How to predict slides from their images.

    Attributes:
        sample: number of samples, seed, device.
        embed: batch size, device, precision, workers, engine.
        pitch_um: from one spot to the next where a grid is laid, µm; None: as in training.
        layout: of such a grid, ``"hexagonal"`` or ``"square"``.
        min_tissue: share of a patch that must be tissue, on such a grid.
        patch_px: edge of a patch as the encoder gets it, px.
        patch_um: edge of the area that it shows, µm; None: as in training.
        keep_patches: write ``out/patches/<slide>.h5``.
        keep_embeddings: keep ``out/embeddings/<slide>.h5``.
    """

    sample: SampleSettings = SampleSettings()
    embed: EmbedSettings = DEFAULT_SETTINGS
    pitch_um: float | None = None
    layout: Layout = "hexagonal"
    min_tissue: float = 0.25
    patch_px: int = 224
    patch_um: float | None = None
    keep_patches: bool = False
    keep_embeddings: bool = False


DEFAULT = PredictSettings()


@dataclasses.dataclass(frozen=True)
class PredictedSlide:
    """A slide's outputs.

    Attributes:
        slide: its name.
        n_spots: of the prediction.
        fold: the fold of the model, None of a model of all slides.
        path: the prediction.
        overlay: a picture of where the spots lie.
        up_to_date: both existed, made from the same inputs; nothing was done.
        in_range: how far the slide lies from those of training; None: the model does not know.
        replaced: a prediction with other settings, model or inputs was there.
        warnings: of its image and spots.
    """

    slide: str
    n_spots: int
    fold: int | None
    path: Path
    overlay: Path
    up_to_date: bool
    in_range: InRange | None
    replaced: bool = False
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class PlannedSlide:
    """A slide to predict: spots, scale of its image, edge of a patch, the prediction's file."""

    slide: str
    n_spots: int
    um_per_px: float
    patch_um: float
    path: Path


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What :func:`predict` would do.

    Attributes:
        slides: those to predict.
        patches_per_second: of the encoder.
        device: of the encoder.
        n_bytes: of the outputs, about.
        n_bytes_meanwhile: of files that are removed again.
    """

    slides: list[PlannedSlide]
    patches_per_second: float
    device: str
    n_bytes: int
    n_bytes_meanwhile: int

    @property
    def n_spots(self) -> int:
        """Number of spots of all slides."""
        return sum(slide.n_spots for slide in self.slides)

    @property
    def seconds(self) -> float:
        """Time that the encoder takes."""
        return self.n_spots / self.patches_per_second

    def lines(self) -> list[str]:
        """Return it for a reader."""
        return [
            *(
                f"{slide.slide}: {count(slide.n_spots, 'spot')}, {slide.um_per_px:.4g} µm/px, "
                f"patches of {slide.patch_um:.4g} µm: {slide.path}"
                for slide in self.slides
            ),
            f"{count(self.n_spots, 'patch', 'patches')} at {self.patches_per_second:,.0f} a "
            f"second: about {self.seconds / 60:,.1f} minutes on {self.device}",
            f"about {self.n_bytes / 1e6:,.1f} MB for outputs, and "
            f"{self.n_bytes_meanwhile / 1e6:,.1f} MB meanwhile",
        ]


def predict(
    slides: Sequence[SlideImage],
    model: Model,
    out: str | Path,
    encoder: Encoder,
    settings: PredictSettings = DEFAULT,
    *,
    overwrite: bool = False,
    allow_code: bool = False,
    progress: Progress | None = None,
    report: Callable[[PredictedSlide], None] | None = None,
    share: Share | None = None,
) -> list[PredictedSlide]:
    """Predict the expression of slides from their images; write ``out/<slide>.h5ad``.

    Patches go from the image through the encoder without touching the disk; embeddings are in
    ``out/embeddings`` until the slide is predicted. ``out/overlays/<slide>.png`` shows where the
    spots lie, ``out/report.html`` what is predicted, with the model's other predictions there.
    Slides that are complete are skipped.

    Args:
        slides: see ``preparation.slide_places.slides_of``.
        model: run, fold or checkpoint folder, or what :func:`models_of` returned of it.
        out: folder of the outputs.
        encoder: of the model's embeddings.
        settings: spots, samples, device, what to keep.
        overwrite: overwrite existing predictions.
        allow_code: run the code of a layer that is neither ours nor PyG's.
        progress: called with (slide, spots embedded, spots in all).
        report: called after every slide.
        share: of a part of an array's jobs, which has a page of its own, or of a rank; None: all
            slides.

    Raises:
        BadInput: the only slide cannot be used: no scale, no tissue, spots outside the image.
        BadConfig: the encoder is not the model's, or a device lacks the precision.
        SomeFailed: some of several slides failed; the others are written.
    """
    check_slide_names([(slide.name, slide.image) for slide in slides])
    n_slides = len(slides)
    out = check_output_folder(out)
    sample = settings.sample
    check_precision(sample.precision, pick_device(sample.device))
    models = models_of(model, sample, allow_code=allow_code)
    _check_models(models, encoder, settings)

    engines: list[Engine] = []

    def engine(n_spots: int) -> Engine:
        if not engines:
            engines.append(Engine(encoder, settings.embed, lambda: n_spots * n_slides))
        return engines[0]

    finished: list[PredictedSlide] = []
    failed: Sequence[tuple[str, str]] = ()

    def one(slide: SlideImage) -> PredictedSlide:
        fold = model_for(slide.name, models)
        work = _Work(slide, fold, out, encoder, settings, overwrite)
        return work.run(engine, progress)

    def take(result: PredictedSlide) -> None:
        finished.append(result)
        if report:
            report(result)

    try:
        return attempt_shared(slides, one, name=_name, n_bytes=_n_bytes, share=share, report=take)
    except SomeFailed as error:
        failed = error.failed
        raise
    finally:
        alone = isinstance(share, Part)  # other jobs may be about to write there
        if not alone and (not isinstance(share, Ranks) or share.rank == 0):
            with contextlib.suppress(OSError):  # it is not empty, or not there
                (out / "embeddings").rmdir()
        if finished or failed:
            write_report(report_file(out, share), finished, models, failed, alone=alone)


def report_file(out: Path, share: Share | None) -> Path:
    """Return the page of a command's slides; parts have pages of their own."""
    which = f"-{share.number}-of-{share.count}" if isinstance(share, Part) else ""
    return out / f"report{which}.html"


def _name(slide: SlideImage) -> str:
    return slide.name


def _n_bytes(slide: SlideImage) -> int:
    return sum(map(size_of, slide.inputs.values()))


def write_report(
    file: Path,
    slides: Sequence[PredictedSlide],
    models: Sequence[FoldModel],
    failed: Sequence[tuple[str, str]] = (),
    *,
    alone: bool = False,
) -> None:
    """Write the page that shows predictions, unless there are none.

    Args:
        file: the page.
        slides: the slides of a command, which come first.
        models: of these, one or more.
        failed: the command's other slides, with their errors.
        alone: leave out what else the page's folder has; otherwise predictions of the same models
            there are shown, and the rest is named.
    """
    mine = {slide.path for slide in slides}
    others = [] if alone else [p for p in sorted(file.parent.glob("*.h5ad")) if p not in mine]
    shown = [read_reported_slide(slide.path, slide.overlay) for slide in slides]
    left_out, hashes = list[tuple[str, str]](), {model.sha256 for model in models}
    for path in others:
        reason = _not_shown(path, hashes)
        if not reason and len(shown) >= _MAX_SLIDES:
            reason = f"beyond {_MAX_SLIDES} slides"
        if not reason:
            try:
                shown.append(read_reported_slide(path, overlay_path(file.parent, path.stem)))
            except BadInput:
                reason = "damaged"
        if reason:
            left_out.append((path.name, reason))
    if shown:
        write_text(file, render_predictions(shown, failed, left_out))


def _not_shown(path: Path, hashes: Container[str]) -> str:
    """Return why a file has no place on a page of these models, "" if it has one."""
    try:
        stored = read_provenance(path)
    except BadInput:
        return "no prediction"
    if stored.get("slide") != path.stem:
        return "a copy"
    return "" if stored.get("checkpoint_sha256") in hashes else "of another model"


def models_of(
    model: Model, settings: SampleSettings, *, allow_code: bool = False
) -> list[FoldModel]:
    """Return the models to predict new slides with: the one of all slides, or else the folds'.

    Args:
        model: run, fold or checkpoint folder.
        settings: of which ``fold`` chooses one, and ``device`` is where they run.
        allow_code: see ``models.checkpoint.load_checkpoint``.

    Raises:
        BadInput: no checkpoint there.
        BadConfig: no such fold.
    """
    if not isinstance(model, str | Path):
        return list(model)
    models = load_models(model, settings.fold, settings.device, allow_code)
    return [fold for fold in models if fold.number is None] or models


def encoder_of(models: Sequence[FoldModel]) -> str:
    """Return the name of the encoder whose embeddings models take.

    Raises:
        BadConfig: the checkpoint does not state it.
    """
    name = models[0].checkpoint.config.data.encoder
    if not name:
        fix = "name it with --encoder"
        raise BadConfig(f"model: the checkpoint states no encoder. Fix: {fix}")
    return name


def estimate(
    slides: Sequence[SlideImage],
    model: Model,
    out: str | Path,
    encoder: Encoder,
    settings: PredictSettings = DEFAULT,
    *,
    allow_code: bool = False,
    share: Share | None = None,
) -> Estimate:
    """Return what :func:`predict` would do: slides, spots, time, disk.

    The time is that of the encoder, measured on a batch.

    Raises:
        BadInput: a slide cannot be used.
    """
    if isinstance(share, Part):
        slides = share.choose(slides, _name, _n_bytes)
    models = models_of(model, settings.sample, allow_code=allow_code)
    _check_models(models, encoder, settings)
    engine = Engine(encoder, dataclasses.replace(settings.embed, engine="torch"), lambda: 0)
    patches = np.zeros((settings.embed.batch_size, *2 * [settings.patch_px], 3), np.uint8)
    engine(patches)
    began = time.perf_counter()
    engine(patches)
    seconds = (time.perf_counter() - began) / len(patches)
    planned, n_bytes = list[PlannedSlide](), 0
    for slide in slides:
        fold = model_for(slide.name, models)
        work = _Work(slide, fold, Path(out), encoder, settings, overwrite=False)
        with slide.open() as image:
            places = work.places(image)
        n = len(places)
        path = Path(out) / f"{slide.name}.h5ad"
        planned.append(PlannedSlide(slide.name, n, places.um_per_px, work.patch_um, path))
        n_genes = len(settings.sample.columns(fold.checkpoint.genes))
        # with samples also their standard deviation and its two parts
        n_layers = settings.sample.n_samples + 3 if settings.sample.n_samples > 1 else 0
        kept = settings.keep_embeddings * 4 * encoder.width
        kept += settings.keep_patches * 3 * settings.patch_px**2
        n_bytes += n * (4 * n_genes * (1 + n_layers) + kept)
    n_bytes += _PICTURES * len(planned)
    meanwhile = 4 * max((slide.n_spots for slide in planned), default=0) * encoder.width
    return Estimate(planned, 1 / seconds, settings.embed.device, n_bytes, meanwhile)


def _check_models(models: Sequence[FoldModel], encoder: Encoder, settings: PredictSettings) -> None:
    for fold in models:
        settings.sample.columns(fold.checkpoint.genes)  # refused before hours of embedding
        expected = fold.checkpoint.config.data.encoder
        if expected and expected != encoder.name:
            raise BadConfig(f"encoder: found {encoder.name!r}, expected the model's {expected!r}")


@dataclasses.dataclass(frozen=True)
class _Work:
    """One slide to predict."""

    slide: SlideImage
    fold: FoldModel
    out: Path
    encoder: Encoder
    settings: PredictSettings
    overwrite: bool

    @property
    def grid(self) -> GridOptions:
        settings = self.settings
        pitch_um = settings.pitch_um or self._as_trained("pitch_um", _PITCH_UM)
        return GridOptions(pitch_um, settings.layout, settings.min_tissue)

    @property
    def patch_um(self) -> float:
        return self.settings.patch_um or self._as_trained("patch_um", _PATCH_UM)

    def places(self, image: ImageReader) -> Places:
        """Return the slide's spots.

        Raises:
            BadInput: see ``SlideImage.places``; or a grid of too few, which a wrong scale makes.
        """
        places = self.slide.places(image, self.patch_um, self.grid)
        n, k = len(places), self.fold.checkpoint.config.graph.n_neighbors
        if self.slide.read_spots is None and n <= k:
            width, height = (1e-3 * places.um_per_px * length for length in image.size)
            found = unquoted(
                f"{count(n, 'spot')}, as the image is {width:.3g} x {height:.3g} mm at "
                f"{places.um_per_px:.4g} µm/px"
            )
            expected = f"more than the {k} neighbours of each spot"
            fix = "check the scale (--um-per-px), or lay a finer grid (--pitch-um)"
            raise BadInput(self.slide.image, "spots", found, expected, fix)
        return places

    def _as_trained(self, name: str, default: float) -> float:
        stored = self.fold.checkpoint.provenance.get(name)
        if isinstance(stored, int | float) and 0 < stored < _MAX_UM:
            return float(stored)
        return default

    def origin(self) -> dict[str, Any]:
        """Return what the embeddings are made of, for the provenance."""
        origin: dict[str, Any] = {
            **self.slide.hashes(),
            "encoder_sha256": self.encoder.weights_sha256,
            "patch_px": self.settings.patch_px,
            "patch_um": self.patch_um,
        }
        if self.slide.read_spots is None:
            origin |= {"grid": dataclasses.asdict(self.grid)}
        if self.slide.um_per_px is not None:
            origin |= {"um_per_px_given": self.slide.um_per_px}
        return origin

    def run(self, engine: Callable[[int], Engine], progress: Progress | None) -> PredictedSlide:
        slide, out = self.slide, self.out
        path, overlay = out / f"{slide.name}.h5ad", overlay_path(out, slide.name)
        embeddings = out / "embeddings" / f"{slide.name}.h5"
        sample = dataclasses.replace(self.settings.sample, image=self._picture())
        if "image" in slide.inputs:
            check_image(slide.image)  # before it is hashed, which takes its time
        with unchanged(*slide.inputs.values()) as versions, _warnings_of(slide) as warnings:
            origin = self.origin()
            done = None if self.overwrite else predicted(path, self.fold, sample, origin)
            if done is not None and overlay.is_file():
                return self._result(done, overlay)
            with slide.open() as image:
                places = self.places(image)
                write_overlay(slide, image, places, overlay)
                if self.settings.keep_patches:
                    self._write_patches(image, places, origin, versions)
                size, settings = self.settings.patch_px, self.settings.embed
                source = image_patches(slide, image, places, size, origin, settings)
                embed_patches(
                    source,
                    embeddings,
                    self.encoder,
                    settings,
                    overwrite=self.overwrite or self._is_stale(embeddings, source),
                    progress=progress,
                    engine=engine(len(places)),
                    check=versions.check,
                )
            done = sample_file(
                self.fold,
                embeddings,
                out,
                sample,
                origin=origin,
                warnings=tuple(warnings),
                overwrite=self.overwrite,
            )
        if not self.settings.keep_embeddings:
            embeddings.unlink()
        return self._result(done, overlay)

    def _is_stale(self, embeddings: Path, source: ImagePatches) -> bool:
        """Return whether embeddings of an interrupted run are of other spots or another image."""
        if self.settings.keep_embeddings or not embeddings.is_file():
            return False  # those that a user keeps are not replaced unasked
        try:
            stored = read_attrs(embeddings)
        except BadInput:
            return True
        return any(stored.get(name) != value for name, value in source.hashes.items())

    def _result(self, done: Sampled, overlay: Path) -> PredictedSlide:
        numbers = done.n_spots, done.fold
        return PredictedSlide(
            done.slide,
            *numbers,
            done.path,
            overlay,
            done.up_to_date,
            done.in_range,
            done.replaced,
            done.warnings,
        )

    def _picture(self) -> Path | None:
        """Return the image file for the prediction to carry along, None where it is none."""
        return self.slide.image if "image" in self.slide.inputs else None

    def _write_patches(
        self, image: ImageReader, places: Places, origin: Mapping[str, Any], versions: Versions
    ) -> None:
        settings, name = self.settings, self.slide.name
        attrs = {key: value for key, value in origin.items() if not isinstance(value, dict)}
        record = {**attrs, "slide": name, "um_per_px": places.um_per_px}
        cut_patches(
            self.out / "patches" / f"{name}.h5",
            patch_reader(image, places.coords, places.edge, settings.patch_px),
            places.barcodes,
            places.coords,
            places.edge,
            record,
            check=versions.check,
        )


class _Collector(logging.Handler):
    """Keeps the warnings that are logged, besides what else becomes of them.

    Args:
        files: with whose names they begin, which are left away.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self._files = list(files)

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        for file in self._files:
            text = text.removeprefix(f"{file}: ")
        self.messages.append(text)
        if not logging.getLogger().handlers and logging.lastResort is not None:
            logging.lastResort.handle(record)  # as it is without this handler


@contextlib.contextmanager
def _warnings_of(slide: SlideImage) -> Iterator[list[str]]:
    """Collect the warnings that are logged in the body."""
    collector = _Collector([slide.image, *slide.inputs.values()])
    package = logging.getLogger(__name__.partition(".")[0])
    package.addHandler(collector)
    try:
        yield collector.messages
    finally:
        package.removeHandler(collector)
