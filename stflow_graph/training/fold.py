"""Training on one fold's slides: several members, their ridges and flows, their calibration."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from stflow_graph.config import Config
from stflow_graph.data.normalise import Normalisation
from stflow_graph.data.slide import Slide
from stflow_graph.data.validation import split_validation
from stflow_graph.graph.tiles import in_tiles
from stflow_graph.inference.predict import pick_device, predict, slide_data
from stflow_graph.models.build import build_context, build_denoiser
from stflow_graph.models.checkpoint import Checkpoint
from stflow_graph.nn.denoiser import GraphDenoiser
from stflow_graph.nn.ridge_head import LinearPart
from stflow_graph.stats.calibration import Calibration, HeldOut
from stflow_graph.stats.metrics import mean_of_defined, none_if_nan
from stflow_graph.stats.ridge import RidgePath
from stflow_graph.training.loop import EpochRecord, fit
from stflow_graph.training.ridge import choose_input_dropout, fit_linear_parts
from stflow_graph.training.spot_flow import fit_spot_flow

_CALIBRATION_SAMPLES = 19  # S + 1 = 20: the ends of the 50, 80 and 90% intervals are samples


@dataclasses.dataclass(frozen=True)
class FittedFold:
    """A fold's trained members.

    Attributes:
        config: the run's, with what was left to training set.
        weights: the state dict of what ``build_ensemble`` makes for as many members.
        normalisation: how input and output are scaled.
        calibration: what the held-out slides say.
        best: the epoch that each member chose.
        held_out: names of the slides that each member chose it on.
        validation_pearson: mean PCC, over genes and held-out slides, of what is predicted of a
            slide by the member that held it out.
    """

    config: Config
    weights: dict[str, Tensor]
    normalisation: Normalisation
    calibration: Calibration
    best: list[EpochRecord]
    held_out: list[list[str]]
    validation_pearson: float

    def checkpoint(
        self, genes: Sequence[str], in_channels: int, provenance: Mapping[str, Any]
    ) -> Checkpoint:
        """Return what is kept of the fold.

        Args:
            genes: G names.
            in_channels: F, embedding channels.
            provenance: what is known of the data; how training went is added.
        """
        learned = {
            "held_out_slides": sorted({name for names in self.held_out for name in names}),
            "best_epochs": [record.epoch for record in self.best],
            "validation_pearson": none_if_nan(self.validation_pearson),
        }
        return Checkpoint(
            self.config,
            list(genes),
            in_channels,
            self.normalisation,
            self.weights,
            {**provenance, **learned},
            len(self.best),
            self.calibration,
        )


@dataclasses.dataclass(frozen=True)
class _Member:
    """A denoiser, the slides it learns from and those it holds out."""

    model: nn.Module
    normalisation: Normalisation
    learn: list[tuple[Slide, Data]]
    held_out: list[tuple[Slide, Data]]
    stream: int


class _Inputs:
    """Slides, and parts of slides, as the denoiser reads them, each made once."""

    def __init__(self, slides: Sequence[Slide], config: Config) -> None:
        self.config = config
        self.normalisation = _normalisation(slides, config)
        self._context = build_context(config)
        self._made: dict[Slide, tuple[Data, Data]] = {}

    def data(self, slide: Slide) -> Data:
        """Return a slide with its graph, scaled."""
        return self._make(slide)[0]

    def with_context(self, slide: Slide) -> Data:
        """Return a slide with its graph and the averages of its embeddings."""
        return self._make(slide)[1]

    def _make(self, slide: Slide) -> tuple[Data, Data]:
        if slide not in self._made:
            data = slide_data(slide, self.config, self.normalisation)
            self._made[slide] = data, self._context(data)
        return self._made[slide]

    def features(self, slide: Slide) -> np.ndarray:
        """Return what a denoiser's first layer sees, ``[N, F]`` or with context wider."""
        data = self.with_context(slide)
        x: np.ndarray = data.x.numpy()
        return np.concatenate([x, data.context.numpy()], axis=1) if "context" in data else x


def fit_fold(
    slides: Sequence[Slide],
    config: Config,
    folder: Path,
    *,
    fold: int,
    report: Callable[[list[list[EpochRecord]]], None] | None = None,
) -> FittedFold:
    """Train ``config.train.members`` denoisers on a fold's training slides.

    Every member holds another part of the slides out, on which it chooses its epoch; predictions
    of those parts, by the members that did not see them, choose the penalty of the ridges and
    calibrate the samples.

    Args:
        slides: the training slides, with expression.
        config: the run's configuration.
        folder: where the state of each member is kept, so that training goes on from there.
        fold: the fold's number, a part of the seed.
        report: called after every epoch with the history of each member so far.

    Raises:
        Diverged: a loss is not finite.
    """
    inputs = _Inputs(slides, config)
    splits = split_validation(slides, _stream(config, fold), config.train.members)
    choice = getattr(config.denoiser, "input_dropout", None) == "auto"
    paths: list[RidgePath] = []
    if choice or getattr(config.denoiser, "ridge_rank", 0):
        paths = [
            RidgePath.fit([inputs.features(s) for s in learn], [s.truth for s in learn])
            for learn, _ in splits
        ]
    if choice:
        rate = choose_input_dropout(splits, inputs.features, paths)
        chosen = config.denoiser.model_copy(update={"input_dropout": rate})
        config = config.model_copy(update={"denoiser": chosen})
    members: list[_Member] = []
    histories: list[list[EpochRecord]] = []
    for i, (learn, validate) in enumerate(splits):
        member = _new_member(inputs, config, learn, validate, _stream(config, fold, i))
        members.append(member)
        histories.append([])

        def on_epoch(history: list[EpochRecord], i: int = i) -> None:
            histories[i] = list(history)
            if report:
                report(histories)

        fitted = fit(
            member.model,
            [inputs.with_context(slide) for slide in learn],
            member.held_out,
            config,
            member.normalisation,
            stream=member.stream,
            state_file=folder / f"state-{i}.safetensors",
            report=on_epoch,
        )
        histories[i] = fitted.history
        member.model.load_state_dict(fitted.weights)
        member.model.eval()
    _fit_ridges(members, splits, inputs, paths)
    parts = [part for member in members for part in _finish(member, config)]
    weights = {
        (f"members.{i}.{key}" if len(members) > 1 else key): value.cpu()
        for i, member in enumerate(members)
        for key, value in member.model.state_dict().items()
    }
    calibration = Calibration.fit(parts)
    return FittedFold(
        config,
        weights,
        inputs.normalisation,
        calibration,
        [history[history[-1].best_epoch - 1] for history in histories],
        [sorted({slide.name for slide in validate}) for _, validate in splits],
        mean_of_defined(calibration.pearson),
    )


def _new_member(
    inputs: _Inputs,
    config: Config,
    learn: Sequence[Slide],
    validate: Sequence[Slide],
    stream: int,
) -> _Member:
    device = pick_device(config.train.device)
    # the level of the prediction must not come from the slides held out
    level = _normalisation(learn, config).y_mean
    with torch.random.fork_rng():
        torch.manual_seed(stream)
        model = build_denoiser(config, learn[0].x.shape[1], len(level)).to(device)

    def held_out(slide: Slide) -> Data:
        data = copy.copy(inputs.data(slide)).to(device)  # .to moves the object's own tensors
        return in_tiles(data, above=config.train.max_region_spots)

    return _Member(
        model,
        dataclasses.replace(inputs.normalisation, y_mean=level),
        [(slide, inputs.data(slide)) for slide in learn],
        [(slide, held_out(slide)) for slide in validate],
        stream,
    )


def _fit_ridges(
    members: Sequence[_Member],
    splits: Sequence[tuple[list[Slide], list[Slide]]],
    inputs: _Inputs,
    paths: Sequence[RidgePath],
) -> None:
    """Give the members their linear parts, where they have one."""
    found = [getattr(member.model, "linear_part", None) for member in members]
    linear = [part for part in found if isinstance(part, LinearPart)]
    if not linear:
        return
    means = {}
    with torch.inference_mode():
        for member in members:
            assert isinstance(member.model, GraphDenoiser)
            for slide, data in member.held_out:
                means[slide] = member.model.condition(data).mean.double().cpu().numpy()
    level = [
        np.concatenate([data.y.numpy() for _, data in member.learn]).mean(axis=0, dtype=np.float64)
        for member in members
    ]
    fit_linear_parts(linear, splits, inputs.features, means, paths, level)


def _finish(member: _Member, config: Config) -> list[HeldOut]:
    """Train a member's flow, if it has one; return what it predicts of the slides it holds out."""
    model, n_samples = member.model, 1
    if isinstance(model, GraphDenoiser) and model.conditions and config.train.objective == "flow":
        learn, held_out = ([d for _, d in part] for part in (member.learn, member.held_out))
        fit_spot_flow(model, learn, held_out, config, stream=member.stream)
        n_samples = _CALIBRATION_SAMPLES
    model.eval()
    parts = []
    for slide, data in member.held_out:
        found = predict(
            model,
            data,
            slide,
            config,
            member.normalisation,
            n_samples=n_samples,
            seed=config.train.seed,
        )
        parts.append(HeldOut(found.mean, found.samples, slide.truth))
    return parts


def _normalisation(slides: Sequence[Slide], config: Config) -> Normalisation:
    return Normalisation.fit(
        [slide.x for slide in slides],
        [slide.truth for slide in slides],
        config.data.standardize,
        config.data.center_targets,
    )


def _stream(config: Config, *numbers: int) -> int:
    return int(np.random.SeedSequence([config.train.seed, *numbers]).generate_state(1)[0])
