"""How to sample."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from stflow_graph.config import FlowConfig
from stflow_graph.images.pictures import read_picture
from stflow_graph.io.picture import Picture

_IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


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
            candidates = [file / f"{slide}{ending}" for ending in _IMAGES]
            file = next((path for path in candidates if path.is_file()), candidates[0])
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
