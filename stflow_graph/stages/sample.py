"""The sample stage: a checkpoint and embeddings to predictions; it has no access to the truth."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stflow_graph.config import Config
from stflow_graph.data.slide import Slide, slide_of, um_per_px
from stflow_graph.errors import BadConfig, BadInput, attempt_each, unquoted
from stflow_graph.graph.tiles import in_tiles
from stflow_graph.images.pictures import Picture, read_picture
from stflow_graph.inference.predict import (
    check_samples,
    check_spots,
    pick_device,
    predict,
    slide_data,
)
from stflow_graph.inference.stream import can_stream, stream
from stflow_graph.io.atomic import check_name, sha256
from stflow_graph.io.embeddings import EmbeddingFile, open_embeddings
from stflow_graph.io.patches import TOP_LEFT
from stflow_graph.io.predictions import Block, read_provenance, write_prediction_blocks
from stflow_graph.models.checkpoint import Checkpoint, load_checkpoint
from stflow_graph.stats.calibration import Calibration
from stflow_graph.version import __version__

logger = logging.getLogger(__name__)

_IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True)
class Sampled:
    """A slide's prediction on disk; ``complete_before`` if there was nothing to do."""

    slide: str
    n_spots: int
    fold: int | None
    held_out: bool
    path: Path
    complete_before: bool


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How to sample; None takes what the checkpoint was validated with.

    ``image`` is the H&E image that the prediction carries along, small, to be drawn on: a file, or
    a folder of ``<slide>.jpg`` (or .png, .tif, .tiff).
    """

    n_samples: int = 1
    seed: int = 0
    sampler: str | None = None
    n_sample_steps: int | None = None
    fold: int | None = None
    device: str = "auto"
    tile_size: int | None = None
    image: str | Path | None = None

    def image_of(self, slide: str) -> Path | None:
        """Return the file of the slide's image, None if none was asked for."""
        if self.image is None:
            return None
        file = Path(self.image)
        if file.is_dir():
            found = [file / f"{slide}{ending}" for ending in _IMAGES]
            file = next((each for each in found if each.is_file()), found[0])
        return file

    def picture(self, slide: str) -> Picture | None:
        """Return the slide's image made small, None if none was asked for.

        Raises:
            BadInput: not an image, or none of this slide in the folder.
        """
        file = self.image_of(slide)
        return None if file is None else read_picture(file)

    def flow(self, config: Config) -> Config:
        """Return the checkpoint's configuration with these settings in place."""
        changes: dict[str, Any] = {}
        if self.sampler is not None:
            changes["sampler"] = self.sampler
        if self.n_sample_steps is not None:
            changes["n_sample_steps"] = self.n_sample_steps
        return config.model_copy(update={"flow": config.flow.model_copy(update=changes)})


def sample(
    source: str | Path,
    embeddings: Sequence[str | Path],
    out: str | Path,
    settings: SampleSettings = SampleSettings(),
    *,
    overwrite: bool = False,
    report: Callable[[Sampled], None] | None = None,
) -> list[Sampled]:
    """Predict the expression of slides from their embeddings and write ``out/<slide>.h5ad``.

    Of a run with several folds, a slide takes the fold that held it out; a slide that no fold
    knows takes ``settings.fold``, or the first one.

    Args:
        source: a run folder of ``train``, a fold's folder or a checkpoint folder.
        embeddings: embedding files, or folders of them.
        out: folder of the predictions.
        settings: number of samples, seed, sampler, device.
        overwrite: write also what is already there as asked.
        report: called after every slide.

    Raises:
        BadInput: a file that cannot be used, when it is the only one.
        BadConfig: the embeddings do not fit the checkpoint.
        SomeFailed: some of several slides failed; the others are written.
    """
    loaded = _load_folds(source, settings.fold)
    files = _embedding_files(embeddings)

    def one(file: Path) -> Sampled:
        chosen = next((each for each in loaded if each.holds_out(file.stem)), loaded[0])
        result = _sample_slide(chosen, file, Path(out), settings, overwrite)
        if report:
            report(result)
        return result

    return attempt_each([(file.stem, partial(one, file)) for file in files])


def find_checkpoints(source: str | Path) -> list[Path]:
    """Return the checkpoint folders of a run, a fold or a checkpoint folder itself.

    Raises:
        BadInput: there is none.
    """
    source = Path(source)
    for pattern in ("", "checkpoint/", "fold*/checkpoint/", "*/fold*/checkpoint/"):
        found = sorted(file.parent for file in source.glob(pattern + "config.json"))
        if found:
            return found
    fix = "give what `stflow-graph train --out` wrote"
    raise BadInput(source, "checkpoint", unquoted("none"), "a run or checkpoint folder", fix)


class _Loaded:
    """A checkpoint folder that is read, hashed and built once, when first needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint: Checkpoint = load_checkpoint(path)
        self.hash = sha256(path / "model.safetensors")
        self._models: dict[torch.device, nn.Module] = {}

    @property
    def fold(self) -> int | None:
        return self.checkpoint.provenance.get("fold")

    def holds_out(self, slide: str) -> bool:
        return slide in self.checkpoint.provenance.get("test_slides", [])

    def model(self, device: torch.device) -> nn.Module:
        if device not in self._models:
            self._models[device] = self.checkpoint.build(device)
        return self._models[device]


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


def _load_folds(source: str | Path, fold: int | None) -> list[_Loaded]:
    loaded = [_Loaded(path) for path in find_checkpoints(source)]
    wanted = [each for each in loaded if fold is None or each.fold == fold]
    if not wanted:
        known = ", ".join(str(each.fold) for each in loaded)
        raise BadConfig(f"{source}: fold {fold} is not there; it has {known}")
    return wanted


def _sample_slide(
    loaded: _Loaded,
    file: Path,
    out: Path,
    settings: SampleSettings,
    overwrite: bool,
) -> Sampled:
    checkpoint = loaded.checkpoint
    name, path = file.stem, out / f"{file.stem}.h5ad"
    device = pick_device(settings.device)
    with open_embeddings(file) as source:
        check_fit(checkpoint, source, settings)
        provenance = {
            **prediction_provenance(checkpoint, name, settings, device),
            "checkpoint_sha256": loaded.hash,
            "embeddings_sha256": sha256(file),
            "um_per_px": um_per_px(source.attrs),
            "um_per_px_estimated": bool(source.attrs.get("um_per_px_estimated", False)),
        }
        image = settings.image_of(name)
        if image is not None:
            provenance["image_sha256"] = sha256(image)
            if source.attrs.get("convention") == TOP_LEFT:
                logger.warning(
                    "%s: its coords are corners of patches: spots are drawn half a patch off", file
                )
        result = Sampled(name, len(source), loaded.fold, loaded.holds_out(name), path, False)
        if not overwrite and _is_there(path, provenance):
            return dataclasses.replace(result, complete_before=True)
        calibration, drawn = checkpoint.calibration, settings.n_samples
        write_prediction_blocks(
            path,
            prediction_blocks(checkpoint, loaded.model(device), source, settings, device),
            source.barcodes,
            checkpoint.genes,
            source.coords,
            provenance=provenance,
            n_samples=drawn if drawn > 1 else 0,
            expected_pearson=None if calibration is None else calibration.pearson,
            picture=settings.picture(name),
        )
    return result


def prediction_blocks(
    checkpoint: Checkpoint,
    model: nn.Module,
    source: EmbeddingFile | Slide,
    settings: SampleSettings,
    device: torch.device,
) -> Iterator[Block]:
    """Give a slide's prediction as the denoiser gives it, its samples calibrated.

    Args:
        checkpoint: what belongs to the denoiser.
        model: the checkpoint's denoiser, on the device.
        source: the slide, for which :func:`check_fit` has passed.
        settings: number of samples, seed, sampler.
        device: where to compute.

    Raises:
        BadInput: embeddings that cannot be read, or that make the prediction overflow.
    """
    blocks = _blocks(checkpoint, model, source, settings, device)
    return _calibrated(blocks, checkpoint.calibration, _name_and_file(source)[1])


def _name_and_file(source: EmbeddingFile | Slide) -> tuple[str, str]:
    if isinstance(source, Slide):
        return source.name, source.file or source.name
    return source.path.stem, str(source.path)


def _blocks(
    checkpoint: Checkpoint,
    model: nn.Module,
    source: EmbeddingFile | Slide,
    settings: SampleSettings,
    device: torch.device,
) -> Iterator[Block]:
    config, normalisation = settings.flow(checkpoint.config), checkpoint.normalisation
    drawing = {"n_samples": settings.n_samples, "seed": settings.seed}
    if can_stream(model):
        yield from stream(
            model,
            source,
            _name_and_file(source)[0],
            config,
            normalisation,
            device,
            tile_size=settings.tile_size,
            **drawing,
        )
        return
    slide = source if isinstance(source, Slide) else slide_of(source)
    data = slide_data(slide, config, normalisation).to(device)
    if settings.tile_size or device.type == "cpu":
        data = in_tiles(data, settings.tile_size)
    predicted = predict(model, data, slide, config, normalisation, **drawing)
    yield Block(slice(0, len(slide)), predicted.mean, predicted.samples)


def _calibrated(
    blocks: Iterable[Block], calibration: Calibration | None, file: str
) -> Iterator[Block]:
    """Give the blocks with their samples spread as they should."""
    for rows, mean, samples in blocks:
        finite = np.isfinite(mean).all() and (samples is None or np.isfinite(samples).all())
        if not finite:
            found = unquoted("values that make the prediction overflow")
            raise BadInput(file, "embeddings", found, "embeddings")
        if samples is not None and calibration is not None:
            samples = calibration.apply(mean, samples)
        yield Block(rows, mean, samples)


def check_fit(
    checkpoint: Checkpoint, source: EmbeddingFile | Slide, settings: SampleSettings
) -> None:
    """Refuse a slide or settings that do not fit a checkpoint.

    Raises:
        BadConfig: embeddings of another encoder or width, or samples of a regression.
        BadInput: too few spots.
    """
    config, (_, file) = checkpoint.config, _name_and_file(source)
    wanted = config.data.encoder
    encoder = source.encoder or wanted  # a foreign file need not say, nor a converted checkpoint
    if source.width != checkpoint.in_channels or (wanted and encoder != wanted):
        fix = f" Fix: embed the patches with --encoder {wanted}" if wanted else ""
        raise BadConfig(
            f"{file}: embeddings: found encoder {encoder!r} with {source.width} channels, "
            f"expected the checkpoint's {wanted!r} with {checkpoint.in_channels}.{fix}"
        )
    check_spots(len(source), config.graph.n_neighbors, file)
    check_samples(config, settings.n_samples)


def prediction_provenance(
    checkpoint: Checkpoint, slide: str, settings: SampleSettings, device: torch.device
) -> dict[str, Any]:
    """Return what a prediction says of its origin, but for the hashes of files."""
    trained, config = checkpoint.provenance, settings.flow(checkpoint.config)
    return {
        "slide": slide,
        "dataset": trained.get("dataset"),
        "target": config.data.target,
        "encoder": config.data.encoder,
        "denoiser": config.denoiser.name,
        "objective": config.train.objective,
        "fold": trained.get("fold"),
        "protocol": trained.get("protocol"),
        "train_slides": trained.get("train_slides", []),
        "source_dataroot": trained.get("source_dataroot"),
        "embed_dataroot": trained.get("embed_dataroot"),
        "gene_list": config.data.gene_list,
        "seed": settings.seed,
        "n_samples": settings.n_samples,
        "n_sample_steps": config.flow.n_sample_steps,
        "sampler": config.flow.sampler,
        "prior": config.flow.prior,
        "version": __version__,
        "torch": torch.__version__,
        "device": device.type,
        "threads": torch.get_num_threads(),
    }


def _is_there(path: Path, provenance: dict[str, Any]) -> bool:
    if not path.exists():
        return False
    try:
        stored = read_provenance(path)
    except BadInput:
        return False
    return {**stored, "format": None} == {**provenance, "format": None}
