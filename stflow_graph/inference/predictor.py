"""A checkpoint on a device, applied to slides of any size: the one engine of prediction."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from stflow_graph.data.load import patch_um, same_patch_size, slide_of, stain_of
from stflow_graph.data.observed import Observed, read_observed
from stflow_graph.data.slide import Slide
from stflow_graph.errors import BadConfig, BadInput, unquoted
from stflow_graph.inference.in_range import RangeMeter
from stflow_graph.inference.inputs import (
    check_enough_spots,
    slide_data,
    slide_inputs,
)
from stflow_graph.inference.predict import check_samples, predict
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.inference.stream import stream
from stflow_graph.io.embeddings import EmbeddingFile
from stflow_graph.io.gene_aliases import gene_matching
from stflow_graph.io.predictions import Block, PredictionInfo
from stflow_graph.models.build import pick_device
from stflow_graph.models.checkpoint import Checkpoint
from stflow_graph.models.precision import check_precision, computing_in
from stflow_graph.nn.ensemble import DenoiserEnsemble
from stflow_graph.nn.two_stage import TwoStageDenoiser
from stflow_graph.stats.training_range import LEVELS
from stflow_graph.version import __version__


class Predictor:
    """Predicts expression from embeddings, in memory or on disk, whole or by tiles.

    Args:
        checkpoint: the trained model.
        device: where to compute: ``"auto"``, ``"cpu"``, ``"cuda"``, ...

    Raises:
        BadConfig: an unknown device, or weights that do not fit their configuration.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "auto") -> None:
        self.checkpoint, self.device = checkpoint, pick_device(device)
        self.members = checkpoint.build(self.device)
        self.field = copy.deepcopy(checkpoint.field)
        if self.field is not None:
            self.field.to(self.device)

    def check(self, source: EmbeddingFile | Slide, settings: SampleSettings) -> None:
        """Refuse a slide or settings that do not fit the checkpoint.

        Raises:
            BadConfig: embeddings of another encoder or width, samples of a regression,
                of patches of another physical size, measured spots for a model that they do not
                inform, or a precision that the device lacks.
            BadInput: too few spots.
        """
        checkpoint, config = self.checkpoint, self.checkpoint.config
        file, expected = _file_of(source), config.data.encoder
        encoder = source.encoder or expected  # foreign files and converted checkpoints lack it
        if source.width != checkpoint.in_channels or (expected and encoder != expected):
            fix = f" Fix: embed the patches with --encoder {expected}" if expected else ""
            raise BadConfig(
                f"{file}: embeddings: found encoder {encoder!r} with {source.width} channels, "
                f"expected the checkpoint's {expected!r} with {checkpoint.in_channels}.{fix}"
            )
        if not settings.allow_patch_size:
            self._check_patch_size(source)
        check_enough_spots(len(source), config.graph.n_neighbors, file)
        check_precision(settings.precision, self.device)
        check_samples(config.flow, settings.n_samples)
        if config.flow.kind == "field" and checkpoint.field is None and settings.n_samples > 1:
            raise BadConfig("n_samples: the checkpoint has no field to draw samples from")
        asked = {"sampler": settings.sampler, "n_sample_steps": settings.n_sample_steps}
        for name, value in asked.items():
            if config.flow.kind == "field" and value is not None:
                raise BadConfig(f"{name} = {value!r}: samples of this checkpoint have no steps")

    def _check_patch_size(self, source: EmbeddingFile | Slide) -> None:
        stored = self.checkpoint.provenance
        trained = stored.get("patch_um_all") or [stored.get("patch_um")]
        size = source.patch_um if isinstance(source, Slide) else patch_um(source.attrs)
        known = [each for each in trained if isinstance(each, int | float) and each > 0]
        if not known or any(same_patch_size(size, each) for each in known):
            return
        sizes = ", ".join(f"{each:.4g}" for each in known)
        raise BadConfig(
            f"{_file_of(source)}: patches show {size:.4g} µm, those of training {sizes}. "
            f"Fix: cut patches of such a size, or give --allow-patch-size"
        )

    def meter(self, source: EmbeddingFile | Slide) -> RangeMeter | None:
        """Return what measures how far a slide lies from those of training, None if unknown."""
        known = self.checkpoint.training_range
        if known is None:
            return None
        stain = source.stain if isinstance(source, Slide) else stain_of(source.attrs)
        return RangeMeter(known, len(source), stain)

    def info(
        self,
        provenance: Mapping[str, Any],
        settings: SampleSettings,
        columns: np.ndarray,
        observed: Observed | None,
    ) -> PredictionInfo:
        """Return what is stored with the values of a prediction.

        Args:
            provenance: its origin, with the slide's name.
            settings: number of samples, image.
            columns: which of the model's genes it has.
            observed: from :meth:`observed`.
        """
        calibration, known = self.checkpoint.calibration, self.checkpoint.training_range
        two_stage = all(isinstance(member, TwoStageDenoiser) for member in self.members)
        places = None
        if observed is not None:
            places = observed.rows, np.flatnonzero(np.isin(columns, observed.genes))
        return {
            "provenance": provenance,
            "n_samples": settings.n_samples if settings.n_samples > 1 else 0,
            "has_spread": two_stage and len(self.members) > 1,
            "expected_pearson": None if calibration is None else calibration.pearson[columns],
            "quantiles": None if known is None else (known.expression[columns], LEVELS),
            "gene_names": self._gene_names(columns),
            "picture": settings.picture(str(provenance["slide"])),
            "observed": places,
        }

    def _gene_names(self, columns: np.ndarray) -> dict[str, list[str]]:
        """Return columns of some genes: Ensembl IDs and symbols, nothing where they are unknown."""
        genes, trained = self.checkpoint.genes, self.checkpoint.provenance
        names = {key: trained.get(key) for key in ("gene_ids", "gene_symbols")}
        if not all(isinstance(v, list) and len(v) == len(genes) for v in names.values()):
            return {}
        return {key: [str(values[i]) for i in columns] for key, values in names.items() if values}

    def observed(self, source: EmbeddingFile | Slide, settings: SampleSettings) -> Observed | None:
        """Read what is measured of a slide, None where nothing is.

        Raises:
            BadConfig: the model's samples are not of a field, which alone can be informed.
            BadInput: see ``data.observed.read_observed``.
        """
        given = settings.observed_of(_name_of(source))
        checkpoint, data = self.checkpoint, self.checkpoint.config.data
        if settings.denoise_observed and settings.observed is None:
            raise BadConfig("denoise_observed: nothing is observed. Fix: give observed spots too")
        if settings.observed is not None and checkpoint.field is None:
            raise BadConfig(
                f"observed: measured spots do not inform a checkpoint of "
                f"flow.kind = {checkpoint.config.flow.kind!r}. Fix: train one with 'field'"
            )
        if given is None:
            return None
        return read_observed(
            given,
            source.barcodes,
            source.coords,
            checkpoint.genes,
            slide=_file_of(source),
            target=data.target,
            matching=gene_matching(settings.gene_aliases, data.duplicate_genes),
        )

    def blocks(
        self,
        source: EmbeddingFile | Slide,
        settings: SampleSettings | None = None,
        observed: Observed | None = None,
        scratch: Path | None = None,
    ) -> Iterator[Block]:
        """Yield a slide's prediction block by block, its samples calibrated.

        Args:
            source: the slide, which :meth:`check` has accepted.
            settings: number of samples, seed, sampler; None: the mean alone.
            observed: from :meth:`observed`.
            scratch: folder for the arrays of a slide of more than half a million spots, which are
                gone afterwards; None: they are in memory.

        Raises:
            BadInput: embeddings that cannot be read, or that make the prediction overflow.
            StorageFailed: the folder's disk is full.
        """
        settings, calibration = settings or SampleSettings(), self.checkpoint.calibration
        for rows, mean, samples, between in self._blocks(source, settings, observed, scratch):
            if not (np.isfinite(mean).all() and (samples is None or np.isfinite(samples).all())):
                overflow = unquoted("values that make the prediction overflow")
                raise BadInput(_file_of(source), "embeddings", overflow, "embeddings")
            if samples is not None and calibration is not None:
                samples = calibration.apply(mean, samples)
            yield Block(rows, mean, samples, between)

    def _blocks(
        self,
        source: EmbeddingFile | Slide,
        settings: SampleSettings,
        observed: Observed | None,
        scratch: Path | None,
    ) -> Iterator[Block]:
        config, scaling = self.checkpoint.config, self.checkpoint.normalisation
        flow = settings.flow(config.flow)
        draws: dict[str, Any] = {"n_samples": settings.n_samples, "seed": settings.seed}
        if all(isinstance(member, TwoStageDenoiser) for member in self.members):
            members = cast("list[TwoStageDenoiser]", self.members)
            tile_size, name = settings.tile_size, _name_of(source)
            draws |= {"field": self.field, "tile_size": tile_size, "observed": observed}
            draws |= {"precision": settings.precision, "as_measured": not settings.denoise_observed}
            draws |= {"scratch": scratch}
            yield from stream(members, source, name, config, flow, scaling, **draws)
            return
        slide = source if isinstance(source, Slide) else slide_of(source)
        whole = self.device.type == "cuda" and not settings.tile_size
        inputs = slide_inputs(
            slide,
            slide_data(slide, config, scaling),
            self.device,
            tile_size=settings.tile_size,
            above=len(slide) if whole else 0,
        )
        with computing_in(settings.precision, self.device):
            predicted = predict(DenoiserEnsemble(self.members), inputs, flow, scaling, **draws)
        yield Block(slice(0, len(slide)), predicted.mean, predicted.samples)

    def provenance(
        self, slide: str, settings: SampleSettings, observed: Observed | None = None
    ) -> dict[str, Any]:
        """Return the origin of a slide's prediction, without the hashes of files."""
        trained, config = self.checkpoint.provenance, self.checkpoint.config
        flow = settings.flow(config.flow)
        steps = {
            "n_sample_steps": flow.n_sample_steps,
            "sampler": flow.sampler,
            "prior": flow.prior,
        }
        return {
            "slide": slide,
            "dataset": trained.get("dataset"),
            "target": config.data.target,
            "encoder": config.data.encoder,
            "denoiser": config.denoiser.name,
            "flow": flow.kind,
            "fold": trained.get("fold"),
            "protocol": trained.get("protocol"),
            "train_slides": trained.get("train_slides", []),
            "source_dataroot": trained.get("source_dataroot"),
            "embed_dataroot": trained.get("embed_dataroot"),
            "gene_list": trained.get("gene_list", config.data.gene_list),
            "missing_genes": config.data.missing_genes,
            "seed": settings.seed,
            "precision": settings.precision,
            "n_samples": settings.n_samples,
            **self._chosen_genes(settings),
            **({} if flow.kind == "field" else steps),
            **_evidence(observed, settings),
            "version": __version__,
            "torch": torch.__version__,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
        }

    def _chosen_genes(self, settings: SampleSettings) -> dict[str, list[str]]:
        """Return the names of the genes to write, as the model has them; nothing of all."""
        genes = self.checkpoint.genes
        return {"genes": [genes[i] for i in settings.columns(genes)]} if settings.genes else {}


def of_genes(blocks: Iterator[Block], columns: np.ndarray) -> Iterator[Block]:
    """Yield blocks with some of the genes."""
    for rows, mean, samples, between in blocks:
        yield Block(
            rows,
            mean[:, columns],
            None if samples is None else samples[:, :, columns],
            None if between is None else between[:, columns],
        )


def _evidence(observed: Observed | None, settings: SampleSettings) -> dict[str, Any]:
    if observed is None:
        return {}
    return {
        "observed_spots": len(observed.rows),
        "observed_genes": len(observed.genes),
        "observed_values": observed.digest(),
        "denoise_observed": settings.denoise_observed,
    }


def _name_of(source: EmbeddingFile | Slide) -> str:
    return source.name if isinstance(source, Slide) else source.path.stem


def _file_of(source: EmbeddingFile | Slide) -> str:
    return source.file or source.name if isinstance(source, Slide) else str(source.path)
