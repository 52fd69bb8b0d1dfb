"""A trained model in LazySlide: expression of tiles from their features and positions.

Importing this module registers the model; it needs the extra ``lazyslide``. LazySlide gives a model
that sets ``needs_coords`` and ``whole_slide`` all tiles of a slide at once, as a graph needs them.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from stflow_graph.data.slide import Slide
from stflow_graph.encoders.catalogue import canonical_name
from stflow_graph.encoders.torchvision_shim import import_timm
from stflow_graph.errors import BadConfig, MissingDependency
from stflow_graph.inference.in_range import InRange
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.inference.slide_model import SlideModel

try:
    import_timm()  # which LazySlide imports; beside a CPU build of torch this way alone works
    from lazyslide_models import MODEL_REGISTRY, FeaturePredictionModel, ModelTask, register
except ImportError as error:
    fix = "pip install 'stflow-graph[lazyslide]'"
    raise MissingDependency(f"LazySlide: {error}. Fix: {fix}") from None

logger = logging.getLogger(__name__)

KEY = "stflow-graph"
_CARD = {
    "task": ModelTask.feature_prediction,
    "license": "MIT",
    "description": "Spatial gene expression from tile features by a graph neural network.",
}


@register(key=KEY, **_CARD)
class SlideExpression(FeaturePredictionModel):
    """Predicts the expected expression of all tiles of a slide, as ``stflow-graph sample`` does.

    Args:
        model: a trained model, its folder, or its repository on the hub.
        genes: the genes to predict; none means all.

    Raises:
        BadConfig: no model is given, or it does not have the genes.
        BadInput: no model there, several folds, or damaged files.

    Attributes:
        model: the trained model.
        encoder: name of the encoder whose features it takes, "" if unknown.
        features_model_name: LazySlide's key of that encoder, None if it has no model of this name;
            then ``feature_key`` of ``feature_prediction`` is needed.
        in_range: whether the last slide was like those of training; None if that is unknown.
    """

    needs_coords = True
    whole_slide = True
    source: str | Path | SlideModel | None = None
    key = KEY

    def __init__(
        self, model: str | Path | SlideModel | None = None, *, genes: Sequence[str] = ()
    ) -> None:
        model = self.source if model is None else model
        if model is None:
            raise BadConfig(
                f"{self.key}: no model. Fix: SlideExpression('RUN/all'), or register_model(key, "
                "'RUN/all') and its key"
            )
        self.model = model if isinstance(model, SlideModel) else SlideModel.from_pretrained(model)
        self._settings = SampleSettings(device="cpu", genes=tuple(genes))
        self._settings.columns(self.model.genes)  # refused here, not after hours of features
        self.encoder = self.model.checkpoint.config.data.encoder
        self.features_model_name = _lazyslide_key(self.encoder)
        self.in_range: InRange | None = None

    @property
    def name(self) -> str:
        """The key under which the model is registered."""
        return self.key

    def to(self, device: str | torch.device) -> SlideExpression:
        """Compute on a device; the networks are made there now."""
        self._settings = dataclasses.replace(self._settings, device=str(device))
        self.model.predictor(self._settings.device)
        return self

    def try_compile(self, **compile_kws: Any) -> None:
        """Do nothing: graphs differ in size from slide to slide."""

    def tiles(self, px: int = 224) -> dict[str, float | int]:
        """Return arguments of ``lazyslide.pp.tile_tissues`` for tiles as in training.

        Args:
            px: width of a tile; 224 is that of the patches that this package cuts.

        Raises:
            BadConfig: the checkpoint does not state the size of its patches and their distance.
        """
        record = self.model.checkpoint.provenance
        sizes = [record.get(name) for name in ("patch_um", "pitch_um")]
        patch_um, pitch_um = (
            float(size) if isinstance(size, int | float) and size > 0 else 0.0 for size in sizes
        )
        if not patch_um or not pitch_um:
            raise BadConfig(f"{self.key}: the checkpoint does not state the size of its patches")
        mpp = patch_um / px
        return {"tile_px": px, "stride_px": max(round(pitch_um / mpp), 1), "mpp": mpp}

    def predict(self, features: Any, coords: Any = None) -> dict[str, np.ndarray]:
        """Predict the expected expression of all tiles of one slide.

        Args:
            features: ``[N, F]`` embeddings of the model's encoder.
            coords: ``[N, 2]`` level-0 pixels (x, y) of the tiles, of the same corner of each.

        Returns:
            Each gene's ``[N]`` expression, in units of the model's target.

        Raises:
            BadConfig: no coordinates, or features of another width.
            BadInput: too few tiles, or values that are not finite.
        """
        if coords is None:
            raise BadConfig(f"{self.key}: coordinates are needed, as feature_prediction gives them")
        features = features.toarray() if hasattr(features, "toarray") else features
        tiles = AnnData(obs=pd.DataFrame(index=[str(i) for i in range(len(features))]))
        tiles.obsm["spatial"] = np.asarray(coords, np.float64)
        slide = Slide.from_anndata(
            tiles, name="slide", embeddings=np.asarray(features, np.float32), encoder=self.encoder
        )
        # LazySlide computes in its own mode and precision, ours are the settings'
        kind = torch.device(self._settings.device).type
        with torch.inference_mode(False), torch.autocast(kind, enabled=False):
            prediction = self.model.predict(slide, self._settings)
        self._note_range(slide)
        expression = np.asarray(prediction.X, np.float32)
        return {gene: expression[:, i] for i, gene in enumerate(prediction.var_names)}

    def _note_range(self, slide: Slide) -> None:
        meter = self.model.predictor(self._settings.device).meter(slide)
        self.in_range = None
        if meter is not None:
            meter.see(slice(0, len(slide)), slide.x)
            self.in_range = meter.result()
            if not self.in_range.slide:
                logger.warning("out of range of the model: %s", self.in_range.warning())


def register_model(key: str, model: str | Path | SlideModel) -> type[SlideExpression]:
    """Register a trained model under a key of its own, for ``feature_prediction(wsi, key)``.

    Args:
        key: names the model in LazySlide, and its table ``<key>_tiles``.
        model: as of :class:`SlideExpression`; a folder is read when the model is first used.
    """
    attributes = {"source": model, "key": key, "__doc__": SlideExpression.__doc__}
    return register(key=key, **_CARD)(type("SlideExpression", (SlideExpression,), attributes))


def _lazyslide_key(encoder: str) -> str | None:
    keys = (key for key in MODEL_REGISTRY if encoder and canonical_name(key) == encoder)
    return next(keys, None)
