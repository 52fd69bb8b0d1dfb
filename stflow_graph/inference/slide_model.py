"""A trained model in memory: slides in, AnnData out."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from torch import nn

from stflow_graph.data.slide import Slide
from stflow_graph.errors import BadInput, count, unquoted
from stflow_graph.inference.in_range import IN_RANGE
from stflow_graph.inference.predictor import Predictor, of_genes
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.io.predictions import prediction_anndata
from stflow_graph.io.pretrained import HubOptions, PushOptions, fetch, push
from stflow_graph.models.checkpoint import (
    Checkpoint,
    find_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from stflow_graph.nn.ensemble import DenoiserEnsemble

if TYPE_CHECKING:
    from anndata import AnnData


class SlideModel:
    """A trained network or ensemble with its genes, scaling and calibration.

    Args:
        checkpoint: the trained model.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.predictor = functools.cache(functools.partial(Predictor, checkpoint))

    def __repr__(self) -> str:
        data = self.checkpoint.config.data
        return (
            f"SlideModel({len(self.genes)} genes, {data.target}, encoder {data.encoder!r}, "
            f"{self.checkpoint.n_members} members)"
        )

    @classmethod
    def from_pretrained(
        cls, path_or_repo: str | Path, *, allow_code: bool = False, **options: Unpack[HubOptions]
    ) -> SlideModel:
        """Return a trained model of a folder or a repository of the hub.

        Args:
            path_or_repo: what ``save_pretrained``, ``push_to_hub`` or ``train`` wrote; see
                ``io.pretrained.fetch``.
            allow_code: run the code of a layer that is neither ours nor PyG's, which the model
                names and this machine has; read it first.
            **options: of the hub, see ``io.pretrained.HubOptions``.

        Raises:
            BadInput: no model there, several folds, or damaged files.
            BadConfig: another format, a configuration that this version does not know, or one that
                names code and ``allow_code`` is not set.
        """
        archive = Path(path_or_repo).suffix == ".zip" and Path(path_or_repo).is_file()
        folder = Path(path_or_repo) if archive else fetch(path_or_repo, **options)
        checkpoints = find_checkpoints(folder)
        if len(checkpoints) > 1:
            n_folds = unquoted(f"{count(len(checkpoints), 'fold')}")
            raise BadInput(folder, "model", n_folds, f"one, as {checkpoints[0]}")
        return cls(load_checkpoint(checkpoints[0], allow_code=allow_code))

    def save_pretrained(self, folder: str | Path, *, licence: str | None = None) -> None:
        """Write a checkpoint folder, which ``stflow-graph sample`` takes too, with a model card.

        Args:
            folder: an old one is replaced; anything else there is refused.
            licence: of the weights, as the hub spells it (``"mit"``, ``"cc-by-nc-4.0"``).
        """
        save_checkpoint(folder, self.checkpoint, licence=licence)

    def push_to_hub(
        self, repo_id: str, *, licence: str | None = None, **options: Unpack[PushOptions]
    ) -> str:
        """Push what ``save_pretrained`` writes to the hub; see ``io.pretrained.push``."""
        return push(functools.partial(self.save_pretrained, licence=licence), repo_id, **options)

    @property
    def genes(self) -> list[str]:
        """G names, the columns of a prediction."""
        return self.checkpoint.genes

    def network(self, device: str = "cpu") -> nn.Module:
        """Return the denoiser in eval mode on a device: ``(y_t, t, data) -> y_1``."""
        members = self.predictor(device).members
        return members[0] if len(members) == 1 else DenoiserEnsemble(members)

    def predict(self, slide: Slide, settings: SampleSettings | None = None) -> AnnData:
        """Predict a slide's expression as ``stflow-graph sample`` does, in memory.

        Args:
            slide: with embeddings; its counts are not used.
            settings: number of samples, seed, sampler, device; None takes the mean alone.

        Returns:
            N spots x G genes: ``X`` expected expression in log1p units, with several samples also
            ``layers["sample_0"]`` ... and ``"std"``; the picture of ``settings.image``, or else
            those of ``slide.adata``, if any.

        Raises:
            BadConfig: embeddings of another encoder or width, samples of a regression, or measured
                spots for a model that they do not inform.
            BadInput: too few spots, or measured counts that cannot be used.
        """
        settings = settings or SampleSettings()
        predictor = self.predictor(settings.device)
        predictor.check(slide, settings)
        observed = predictor.observed(slide, settings)
        provenance = predictor.provenance(slide.name, settings, observed)
        columns, meter = settings.columns(self.genes), predictor.meter(slide)
        if meter is not None:
            meter.see(slice(0, len(slide)), slide.x)
            provenance[IN_RANGE] = meter.result().record()
        prediction = prediction_anndata(
            of_genes(predictor.blocks(slide, settings, observed), columns),
            slide.barcodes,
            [self.genes[i] for i in columns],
            slide.coords,
            **predictor.info(
                {**provenance, "um_per_px": slide.um_per_px}, settings, columns, observed
            ),
        )
        for name, values in ({} if meter is None else meter.columns()).items():
            prediction.obs[name] = values
        if settings.image is None and slide.adata is not None and "spatial" in slide.adata.uns:
            prediction.uns["spatial"] = slide.adata.uns["spatial"]
        return prediction
