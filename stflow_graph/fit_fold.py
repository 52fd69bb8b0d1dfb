"""Training on one fold's slides: several members, their flows, and the calibration of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from stflow_graph.build import build_context, build_denoiser
from stflow_graph.calibration import Calibration, HeldOut
from stflow_graph.config import Config
from stflow_graph.data.normalise import Normalisation
from stflow_graph.data.regions import split_validation
from stflow_graph.data.slide import Slide
from stflow_graph.fit import EpochRecord, fit
from stflow_graph.fit_flow import fit_spot_flow
from stflow_graph.nn.denoiser import GraphDenoiser
from stflow_graph.predict import pick_device, predict, slide_data
from stflow_graph.ridge import ALPHAS, Features, held_out_scores

_CALIBRATION_SAMPLES = 19  # S + 1 = 20: the ends of the 50, 80 and 90% intervals are samples


@dataclasses.dataclass(frozen=True)
class FittedFold:
    """A fold's trained members.

    Attributes:
        config: the run's, with what was left to training set.
        weights: the state dict of what ``build_denoiser`` makes for as many members.
        normalisation: how input and output are scaled.
        calibration: what the held-out slides say.
        best: the epoch that each member chose.
        held_out: names of the slides that each member chose it on.
    """

    config: Config
    weights: dict[str, Tensor]
    normalisation: Normalisation
    calibration: Calibration
    best: list[EpochRecord]
    held_out: list[list[str]]


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
    of those parts, by members that did not see them, calibrate the samples.

    Args:
        slides: the training slides, with expression.
        config: the run's configuration.
        folder: where the state of each member is kept, so that training goes on from there.
        fold: the fold's number, a part of the seed.
        report: called after every epoch with the history of each member so far.

    Raises:
        Diverged: a loss is not finite.
    """
    device = pick_device(config.train.device)
    shared = _normalisation(slides, config)
    splits = split_validation(slides, _stream(config, fold), config.train.members)
    histories: list[list[EpochRecord]] = []
    weights: dict[str, Tensor] = {}
    parts: list[HeldOut] = []
    data = {id(slide): slide_data(slide, config, shared) for slide in slides}
    context = build_context(config)

    def data_of(slide: Slide) -> Data:  # parts of few slides are made anew
        return data[id(slide)] if id(slide) in data else slide_data(slide, config, shared)

    if getattr(config.denoiser, "input_dropout", None) == "auto":
        rate = choose_input_dropout(splits, lambda slide: _wide(context(data_of(slide))))
        chosen = config.denoiser.model_copy(update={"input_dropout": rate})
        config = config.model_copy(update={"denoiser": chosen})

    for member, (learn, validate) in enumerate(splits):
        stream = _stream(config, fold, member)
        # only the level of the prediction, which the held-out slides must not have set
        scaling = dataclasses.replace(shared, y_mean=_normalisation(learn, config).y_mean)
        with torch.random.fork_rng():
            torch.manual_seed(stream)
            model = build_denoiser(config, slides[0].x.shape[1], len(scaling.y_mean)).to(device)
        held_out = [(slide, data_of(slide).to(device)) for slide in validate]
        learned = [data_of(slide) for slide in learn]
        histories.append([])

        def on_epoch(history: list[EpochRecord], member: int = member) -> None:
            histories[member] = list(history)
            if report:
                report(histories)

        fitted = fit(
            model,
            [context(each) for each in learned],
            held_out,
            config,
            scaling,
            stream=stream,
            state_file=folder / f"state-{member}.safetensors",
            report=on_epoch,
        )
        histories[member] = fitted.history
        model.load_state_dict(fitted.weights)
        samples = 1
        if (
            isinstance(model, GraphDenoiser)
            and model.conditions
            and config.train.objective == "flow"
        ):
            fit_spot_flow(model, learned, [d for _, d in held_out], config, stream=stream)
            samples = _CALIBRATION_SAMPLES
        model.eval()
        for slide, each in held_out:
            found = predict(
                model, each, slide, config, scaling, n_samples=samples, seed=config.train.seed
            )
            parts.append(HeldOut(found.mean, found.samples, slide.truth))
        prefix = f"members.{member}." if len(splits) > 1 else ""
        weights |= {f"{prefix}{k}": v.cpu() for k, v in model.state_dict().items()}
    return FittedFold(
        config,
        weights,
        shared,
        Calibration.fit(parts),
        [history[history[-1].best_epoch - 1] for history in histories],
        [sorted({slide.name for slide in validate}) for _, validate in splits],
    )


def choose_input_dropout(
    splits: Sequence[tuple[Sequence[Slide], Sequence[Slide]]], features: Features
) -> float:
    r"""Return the dropout of the first layer's input that the training slides ask for.

    Dropping a share p of the features of a linear model acts as the penalty
    :math:`\frac{p}{1 - p} \sum_i x_{if}^2` on the weight of feature f (Wager et al., NeurIPS
    2013), so a ridge regression, whose best penalty α takes a second to find on held-out slides,
    tells :math:`\frac{p}{1 - p} = α / (2 N \overline{x^2})`. The 2 leaves the other half to weight
    decay and the dropout of later layers. At most .98.

    Args:
        splits: pairs of slides to learn from and slides held out.
        features: what the first layer sees of a slide, ``[N, F]``.
    """
    scores = held_out_scores(splits, features)[:, 0]
    if not np.isfinite(scores).any():
        return 0.5
    alpha = ALPHAS[int(np.nanargmax(scores))]
    x = [features(slide) for slide in splits[0][0]] + [features(s) for s in splits[0][1]]
    squares = sum(float(np.square(each, dtype=np.float64).sum()) for each in x)
    odds = alpha * x[0].shape[1] / (2 * max(squares, 1e-12))
    return round(min(0.98, float(odds / (1 + odds))), 4)


def _wide(data: Data) -> np.ndarray:
    x: np.ndarray = data.x.numpy()
    return np.concatenate([x, data.context.numpy()], axis=1) if "context" in data else x


def _normalisation(slides: Sequence[Slide], config: Config) -> Normalisation:
    return Normalisation.fit(
        [slide.x for slide in slides],
        [slide.truth for slide in slides],
        config.data.standardize,
        config.data.center_targets,
    )


def _stream(config: Config, *numbers: int) -> int:
    return int(np.random.SeedSequence([config.train.seed, *numbers]).generate_state(1)[0])
