"""How to sample."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from stflow_graph.config import MAX_SAMPLE_STEPS, MAX_SEED, FlowConfig, Precision
from stflow_graph.errors import BadConfig, StorageFailed, count, short_repr
from stflow_graph.images.pictures import read_picture
from stflow_graph.io.gene_names import places_of, similar_genes
from stflow_graph.io.picture import Picture

if TYPE_CHECKING:
    from anndata import AnnData

MAX_SAMPLES = 10_000
PRECISIONS: tuple[str, ...] = get_args(Precision)
SAMPLERS: tuple[str, ...] = get_args(FlowConfig.model_fields["sampler"].annotation)
_BOUNDS = {
    "n_samples": (1, MAX_SAMPLES),
    "seed": (0, MAX_SEED),
    "n_sample_steps": (1, MAX_SAMPLE_STEPS),
    "tile_size": (1, 2**31 - 1),
}
_IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How to sample; None takes what the checkpoint was validated with.

    ``image`` is the H&E image that the prediction carries along, small, to be drawn on: a file, or
    a folder of ``<slide>.jpg`` (or .png, .tif, .tiff). ``observed`` are counts measured at some of
    the spots, which inform the others: an .h5ad, a folder of ``<slide>.h5ad``, of which a slide may
    have none, or an AnnData (``data.observed``). They are given back as measured, unless
    ``denoise_observed`` asks for the model's estimate there. ``gene_aliases`` is a table for genes
    that they name otherwise; that of training, which the checkpoint names, is not opened.
    ``allow_patch_size`` accepts patches of another physical size than in training. ``genes`` are
    those to write, in this order and in letters of any case; none means all of the model.
    ``n_samples`` is at most 10,000. ``precision`` is that of the messages and the first layer (of a
    flow that passes messages, of the network); what is read out, samples and scores stay float32.
    """

    n_samples: int = 1
    seed: int = 0
    sampler: str | None = None
    n_sample_steps: int | None = None
    fold: int | None = None
    device: str = "auto"
    precision: str = "float32"
    tile_size: int | None = None
    image: str | Path | None = None
    observed: str | Path | AnnData | None = None
    denoise_observed: bool = False
    gene_aliases: str | Path | None = None
    allow_patch_size: bool = False
    genes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the numbers and names.

        Raises:
            BadConfig: one is out of range, or unknown.
        """
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise BadConfig(f"{name} = {short_repr(value)}: expected {low} to {high}")
        choices = {"sampler": (None, *SAMPLERS), "precision": PRECISIONS}
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                expected = ", ".join(filter(None, known))
                raise BadConfig(f"{name} = {short_repr(value)}: expected {expected}")

    def check_disk(self, out: Path, n_spots: int, n_genes: int) -> None:
        """Refuse a prediction that is larger than the free disk.

        Args:
            out: its folder, or one that does not exist yet.
            n_spots: of the slide.
            n_genes: of the model.

        Raises:
            StorageFailed: the mean, the samples and their deviation need more than is free.
        """
        if self.n_samples == 1:
            return  # a mean is small
        needed = (self.n_samples + 2) * n_spots * n_genes * np.dtype(np.float32).itemsize
        place = next(path for path in (out, *out.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(place).free
        if needed > free:
            raise StorageFailed(
                f"{out}: n_samples = {self.n_samples} of {count(n_spots, 'spot')} and "
                f"{count(n_genes, 'gene')} need {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are "
                "free. Fix: fewer samples, or another disk"
            )

    def columns(self, genes: Sequence[str]) -> np.ndarray:
        """Return which of a model's genes to write.

        Raises:
            BadConfig: the model lacks one, or one is asked for twice.
        """
        if not self.genes:
            return np.arange(len(genes))
        places = places_of(self.genes, genes)
        unknown = [gene for gene, i in zip(self.genes, places, strict=True) if i is None]
        if unknown:
            shown = ", ".join(map(short_repr, unknown[:5]))
            raise BadConfig(
                f"genes: the model, of {count(len(genes), 'gene')}, does not have {shown}; "
                f"{similar_genes(unknown[0], genes)}"
            )
        if len({*places}) < len(places):
            raise BadConfig("genes: one is asked for twice")
        return np.array(places, dtype=np.int64)

    def image_of(self, slide: str) -> Path | None:
        """Return the file of the slide's image, None if none was asked for."""
        if self.image is None:
            return None
        file = Path(self.image)
        if file.is_dir():
            candidates = [file / f"{slide}{ending}" for ending in _IMAGES]
            file = next((path for path in candidates if path.is_file()), candidates[0])
        return file

    def observed_of(self, slide: str) -> Path | AnnData | None:
        """Return what is measured of the slide: a file or an AnnData; None: nothing."""
        if self.observed is None or not isinstance(self.observed, str | Path):
            return self.observed
        file = Path(self.observed)
        if file.is_dir():
            file = file / f"{slide}.h5ad"
            return file if file.is_file() else None
        return file

    def picture(self, slide: str) -> Picture | None:
        """Return the slide's image made small, None if none was asked for.

        Raises:
            BadInput: not an image, or none of this slide in the folder.
        """
        file = self.image_of(slide)
        return None if file is None else read_picture(file)

    def flow(self, flow: FlowConfig) -> FlowConfig:
        """Return a checkpoint's flow with these settings in place."""
        changes = {"sampler": self.sampler, "n_sample_steps": self.n_sample_steps}
        return flow.model_copy(update={k: v for k, v in changes.items() if v is not None})
