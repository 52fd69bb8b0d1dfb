"""Training on one fold's slides: the members, their ridges and flows, and the calibration."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from stflow_graph.config import Config
from stflow_graph.data.normalise import Normalisation, mean_level
from stflow_graph.data.slide import Slide
from stflow_graph.data.validation import split_validation
from stflow_graph.inference.inputs import SlideInputs, normalisation_of, slide_data, slide_inputs
from stflow_graph.inference.predict import predict
from stflow_graph.models.build import build_context, build_denoiser, pick_device
from stflow_graph.models.checkpoint import Checkpoint
from stflow_graph.models.precision import check_precision
from stflow_graph.models.warm_start import WarmStart
from stflow_graph.nn.expression_field import ExpressionField
from stflow_graph.nn.pretrained import join_weights
from stflow_graph.nn.two_stage import TwoStageDenoiser
from stflow_graph.parallel.group import Group
from stflow_graph.stats.calibration import Calibration, HeldOut
from stflow_graph.stats.metrics import mean_of_defined, none_if_nan
from stflow_graph.stats.panels import mean_of_spots
from stflow_graph.stats.ridge import fit_ridge_path
from stflow_graph.stats.training_range import TrainingRange
from stflow_graph.training.batches import Slides
from stflow_graph.training.expression_field import fit_expression_field
from stflow_graph.training.loop import EpochRecord, best_of, fit, stored_history
from stflow_graph.training.members import Training, n_processes, train_members
from stflow_graph.training.ridge import Paths, choose_input_dropout, fit_ridge_heads
from stflow_graph.training.slide_cache import MadeOnDemand, SlideCache
from stflow_graph.training.spot_flow import fit_spot_flow

# held-out slides that the field of the residuals is fitted to, evenly chosen: each is compared with
# all others, and more tell little that these do not
_OF_FIELD = 64
_CACHED = 2**29  # bytes of slides whose embeddings stay in their files
_CALIBRATION_SAMPLES = 19  # S + 1 = 20: the ends of the 50, 80 and 90% intervals are samples


@dataclasses.dataclass(frozen=True)
class FittedFold:
    """A fold's trained members.

    Attributes:
        config: the run's, completed by what training has set.
        weights: the members' state dicts, see ``nn.pretrained.join_weights``.
        normalisation: how input and output are scaled.
        calibration: per-gene results on the held-out slides.
        histories: of each member, an entry an epoch.
        held_out: names of the slides that each member chose it on.
        validation_pearson: mean PCC, over genes and held-out slides, of each slide's prediction by
            the member that held it out.
        field: of the residuals, if the configuration asks for it.
        training_range: what the slides' embeddings look like.
    """

    config: Config
    weights: dict[str, Tensor]
    normalisation: Normalisation
    calibration: Calibration
    histories: list[list[EpochRecord]]
    held_out: list[list[str]]
    validation_pearson: float
    field: ExpressionField | None
    training_range: TrainingRange

    @property
    def best(self) -> list[EpochRecord]:
        """The epoch that each member chose."""
        return [best_of(history) for history in self.histories]

    def checkpoint(
        self, genes: Sequence[str], in_channels: int, provenance: Mapping[str, Any]
    ) -> Checkpoint:
        """Return the fold's checkpoint.

        Args:
            genes: G names.
            in_channels: F, embedding channels.
            provenance: of the data; results of training are added.
        """
        results = {
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
            {**provenance, **results},
            len(self.best),
            self.calibration,
            self.field,
            self.training_range,
        )


@dataclasses.dataclass(frozen=True)
class _Member:
    """A network, the slides it learns from and those it holds out."""

    network: nn.Module
    normalisation: Normalisation
    learn: list[Slide]
    held_out: Sequence[SlideInputs]
    stream: int


class _FoldData:
    """Slides, and parts of slides, as networks read them.

    Each is prepared once; where embeddings stay in their files, again whenever it is no longer
    among those used last.
    """

    def __init__(
        self, slides: Sequence[Slide], config: Config, warm_start: WarmStart | None = None
    ) -> None:
        self.config, self.device = config, pick_device(config.train.device)
        check_precision(config.train.precision, self.device)
        self.normalisation = normalisation_of(slides, config.data)
        if warm_start is not None:
            self.normalisation = warm_start.scaling(self.normalisation)
        self.is_stored = any(slide.is_stored for slide in slides)
        limit = _CACHED if self.is_stored else None
        self.data = self._data if self.is_stored else SlideCache(self._data)
        self.with_context = SlideCache(self._with_context, limit)

    def _data(self, slide: Slide) -> Data:
        """Return a slide with its graph, scaled."""
        return slide_data(slide, self.config, self.normalisation)

    def _with_context(self, slide: Slide) -> Data:
        """Return a slide with its graph and the averages of its embeddings."""
        data: Data = build_context(self.config)(self.data(slide))
        return data

    def inputs(self, slide: Slide) -> SlideInputs:
        """Return a slide to predict, on the device; a large one in tiles."""
        max_spots = self.config.train.max_region_spots
        return slide_inputs(slide, self.data(slide), self.device, above=max_spots)

    def to_learn(self, slides: Sequence[Slide]) -> Sequence[Data] | Slides:
        """Return slides with context: all of them, or how they are read on demand."""
        if not self.is_stored:
            return [self.with_context(slide) for slide in slides]
        positions = [torch.from_numpy(slide.coords) for slide in slides]
        return Slides(MadeOnDemand(self.with_context, slides), self.device, positions)

    def to_predict(self, slides: Sequence[Slide]) -> Sequence[SlideInputs]:
        """Return slides as :meth:`inputs` gives them: all of them, or on demand."""
        if self.is_stored:
            return MadeOnDemand(self.inputs, slides)
        return [self.inputs(slide) for slide in slides]

    def n_numbers(self, slide: Slide) -> int:
        """Return about how many numbers of a spot a training step has in memory."""
        inputs = self.with_context(slide)
        n_inputs = inputs.x.size(1) + (inputs.context.size(1) if "context" in inputs else 0)
        # the inputs and those not dropped; estimates, targets and what the loss makes of them
        return 3 * n_inputs + 8 * slide.truth.shape[1]

    def targets(self, slide: Slide) -> np.ndarray:
        """Return a slide's expression as networks learn it, ``[N, G]``."""
        return self.normalisation.targets(slide.truth)

    def without_features(self, inputs: SlideInputs) -> SlideInputs:
        """Return a slide without its embeddings, if these are read as they are needed."""
        if not self.is_stored:
            return inputs
        data = copy.copy(inputs.data)
        data.x = data.x.new_empty((len(data.x), 0))
        max_spots = self.config.train.max_region_spots
        return slide_inputs(inputs.slide, data, self.device, above=max_spots)

    def features(self, slide: Slide) -> np.ndarray:
        """Return the first layer's input, ``[N, F]`` or with context wider."""
        data = self.with_context(slide)
        x: np.ndarray = data.x.numpy()
        return np.concatenate([x, data.context.numpy()], axis=1) if "context" in data else x


class FoldTraining:
    """Training of ``config.train.members`` networks on a fold's training slides.

    Every member holds another part of the slides out, on which it chooses its epoch; predictions
    for those parts, by the members that did not see them, choose the penalty of the ridges and
    give the field of the residuals, or calibrate the samples of the flow of single spots.

    Args:
        slides: the training slides, with expression; genes that one does not measure are NaN, and
            every gene is measured by some.
        config: the run's configuration.
        folder: where the state of each member is kept, to resume from.
        fold: the fold's number, a part of the seed.
        warm_start: the model to start from; None starts from nothing.
        report: called after every epoch with the history of each member so far, and the member.

    Attributes:
        n_members: number of networks: of few slides less than the configuration's.

    Raises:
        BadConfig: the device does not exist or lacks the precision.
    """

    def __init__(
        self,
        slides: Sequence[Slide],
        config: Config,
        folder: Path,
        *,
        fold: int,
        warm_start: WarmStart | None = None,
        report: Callable[[list[list[EpochRecord]], int], None] | None = None,
    ) -> None:
        if warm_start is not None:
            config = warm_start.adapt(config)
        self._slides, self._fold, self._report = slides, fold, report
        self._data = _FoldData(slides, config, warm_start)
        self._splits = split_validation(slides, _stream(config, fold), config.train.members)
        self._paths = _ridge_paths(self._splits, self._data)
        self._config = config = _with_input_dropout(config, self._splits, self._data, self._paths)
        self._members = [
            _new_member(self._data, config, learn, validate, _stream(config, fold, i))
            for i, (learn, validate) in enumerate(self._splits)
        ]
        self._is_warm, self._fixed = warm_start is not None, list[np.ndarray | None]()
        if warm_start is not None:
            self._fixed = [
                _start_from(warm_start, i, member, self._data)
                for i, member in enumerate(self._members)
            ]
        self.n_members = len(self._members)
        self._states = [folder / f"state-{i}.safetensors" for i in range(self.n_members)]
        self._histories = [stored_history(state) for state in self._states]

    def train(self, i: int, group: Group | None = None) -> None:
        """Train a member alone, or with others of a group; its state is kept.

        Raises:
            Diverged: a loss is not finite.
            RankFailed: another process of the group is lost.
        """

        def report(history: list[EpochRecord]) -> None:
            if group is None or group.rank == 0:
                self._on_epoch(i, history)

        self._training(i, group)(report)

    def finish(self) -> FittedFold:
        """Train the members that are not yet, from their states; fit all that follows.

        Raises:
            Diverged: a loss is not finite.
        """
        members, data, config = self._members, self._data, self._config
        histories = self._train()
        _fit_ridges(members, self._splits, data, self._paths, self._fixed or None)
        n_parts = sum(len(member.held_out) for member in members)
        every = -(-n_parts // _OF_FIELD)
        held_out, some = list[HeldOut](), list[tuple[SlideInputs, HeldOut]]()
        for member in members:
            for inputs, part in _finish(member, data, config):
                if len(held_out) % every == 0:
                    some.append((inputs, part))
                held_out.append(part)
        calibration = Calibration.fit(held_out)
        field = None
        if config.flow.kind == "field":
            stream = _stream(config, self._fold)
            field = fit_expression_field(some, data.normalisation, stream=stream)
        return FittedFold(
            config,
            join_weights([member.network for member in members]),
            data.normalisation,
            calibration,
            histories,
            [sorted({slide.name for slide in validate}) for _, validate in self._splits],
            mean_of_defined(calibration.pearson),
            field,
            TrainingRange.fit(
                (slide.x for slide in self._slides),
                [part.mean for _, part in some],
                [slide.stain for slide in self._slides],
                len(self._slides),
            ),
        )

    def _train(self) -> list[list[EpochRecord]]:
        """Train all networks, which get the weights of their best epochs; return histories."""
        members, data, settings = self._members, self._data, self._config.train
        largest = max(len(slide) for member in members for slide in member.learn)
        n_spots = min(largest * settings.batch_size, settings.max_spots_per_batch)
        n_numbers = data.n_numbers(members[0].learn[0])
        fitted = train_members(
            [self._training(i) for i in range(self.n_members)],
            self._on_epoch,
            n_processes(self.n_members, n_spots, n_numbers, data.device),
        )
        for member, result in zip(members, fitted, strict=True):
            member.network.load_state_dict(result.weights)
            member.network.eval()
        return [result.history for result in fitted]

    def _on_epoch(self, member: int, history: list[EpochRecord]) -> None:
        self._histories[member] = list(history)
        if self._report:
            self._report(self._histories, member)

    def _training(self, i: int, group: Group | None = None) -> Training:
        member = self._members[i]
        learn = self._data.to_learn(member.learn)
        return lambda report: fit(
            member.network,
            learn,
            member.held_out,
            self._config,
            member.normalisation,
            stream=member.stream,
            state_file=self._states[i],
            warm=self._is_warm,
            report=report,
            group=group,
        )


def _ridge_paths(splits: Sequence[tuple[list[Slide], list[Slide]]], data: _FoldData) -> Paths:
    """Return ridge regressions on what each member learns from, if the configuration uses any."""
    denoiser = data.config.denoiser
    if denoiser.name != "graph":
        return []
    if denoiser.input_dropout != "auto" and not (
        denoiser.ridge_rank and data.config.flow.kind != "graph"
    ):
        return []
    return [
        fit_ridge_path(MadeOnDemand(data.features, learn), [s.truth for s in learn])
        for learn, _ in splits
    ]


def _with_input_dropout(
    config: Config,
    splits: Sequence[tuple[list[Slide], list[Slide]]],
    data: _FoldData,
    paths: Paths,
) -> Config:
    """Return the configuration with the input dropout that ``"auto"`` stands for."""
    if getattr(config.denoiser, "input_dropout", None) != "auto":
        return config
    rate = choose_input_dropout(splits, data.features, paths)
    chosen = config.denoiser.model_copy(update={"input_dropout": rate})
    return config.model_copy(update={"denoiser": chosen})


def _new_member(
    data: _FoldData,
    config: Config,
    learn: list[Slide],
    validate: Sequence[Slide],
    stream: int,
) -> _Member:
    # the level of the prediction must not come from the slides held out
    level = mean_level(slide.truth for slide in learn)
    # by default all devices' states are kept, with a warning where there are several
    with torch.random.fork_rng(devices=[data.device] if data.device.type == "cuda" else []):
        torch.manual_seed(stream)
        network = build_denoiser(config, learn[0].width, len(level)).to(data.device)
    return _Member(
        network,
        dataclasses.replace(data.normalisation, y_mean=level),
        learn,
        data.to_predict(validate),
        stream,
    )


def _start_from(
    warm_start: WarmStart, number: int, member: _Member, data: _FoldData
) -> np.ndarray | None:
    """Give a member's network the weights of a model; return those of the model's ridge.

    Returns:
        As ``fixed`` of :func:`fit_ridge_heads`; None where the model has no ridge.
    """
    warm_start.load(member.network, number)
    if warm_start.has_new_genes:
        scaling = member.normalisation
        member.network.eval()
        inputs = data.to_predict(member.learn)
        means = [predict(member.network, part, data.config.flow, scaling).mean for part in inputs]
        warm_start.start_new_genes(
            member.network,
            [scaling.targets(mean) for mean in means],
            [scaling.targets(slide.truth) for slide in member.learn],
        )
    return warm_start.ridge(number)


def _fit_ridges(
    members: Sequence[_Member],
    splits: Sequence[tuple[list[Slide], list[Slide]]],
    data: _FoldData,
    paths: Paths,
    fixed: Sequence[np.ndarray | None] | None,
) -> None:
    """Fit the members' ridge heads, where they have one."""
    networks = [m.network for m in members if isinstance(m.network, TwoStageDenoiser)]
    heads = [network.encoder.ridge_head for network in networks]
    fitted = [head for head in heads if head is not None]
    if not fitted:
        return
    with torch.no_grad():
        means = {
            inputs.slide: network.encoder(inputs.data, inputs.graph).mean.cpu().numpy()
            for network, member in zip(networks, members, strict=True)
            for inputs in member.held_out
        }
    level = [mean_of_spots(map(data.targets, member.learn)) for member in members]
    fit_ridge_heads(fitted, splits, data.features, means, paths, level, fixed)


def _finish(
    member: _Member, data: _FoldData, config: Config
) -> Iterator[tuple[SlideInputs, HeldOut]]:
    """Train a member's flow, if it has one; yield its predictions for the slides it holds out."""
    network, n_samples = member.network, 1
    if isinstance(network, TwoStageDenoiser) and network.flow is not None:
        learn = data.to_predict(member.learn)
        fit_spot_flow(network, learn, member.held_out, config, stream=member.stream)
        n_samples = _CALIBRATION_SAMPLES
    network.eval()
    for inputs in member.held_out:
        predicted = predict(
            network,
            inputs,
            config.flow,
            member.normalisation,
            n_samples=n_samples,
            seed=config.train.seed,
        )
        held_out = HeldOut(predicted.mean, predicted.samples, inputs.slide.truth)
        yield data.without_features(inputs), held_out


def _stream(config: Config, *numbers: int) -> int:
    return int(np.random.SeedSequence([config.train.seed, *numbers]).generate_state(1)[0])
