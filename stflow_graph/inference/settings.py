"""How to sample."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from stflow_graph.config import FlowConfig
from stflow_graph.images.pictures import read_picture
from stflow_graph.io.picture import Picture

if TYPE_CHECKING:
    from anndata import AnnData

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
    """

    n_samples: int = 1
    seed: int = 0
    sampler: str | None = None
    n_sample_steps: int | None = None
    fold: int | None = None
    device: str = "auto"
    tile_size: int | None = None
    image: str | Path | None = None
    observed: str | Path | AnnData | None = None
    denoise_observed: bool = False
    gene_aliases: str | Path | None = None

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
