"""The training loop of one network: regions of slides, moving average, exact resume."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch_geometric.data import Batch, Data

from stflow_graph.config import Config, TrainConfig
from stflow_graph.data.normalise import Normalisation
from stflow_graph.errors import BadInput, Diverged, as_bad_input
from stflow_graph.flow.loss import flow_loss, pearson_loss, squared_error, without_missing
from stflow_graph.flow.noise import open_uniform
from stflow_graph.flow.path import linear_path
from stflow_graph.flow.prior import Prior
from stflow_graph.inference.inputs import SlideInputs
from stflow_graph.inference.predict import predict
from stflow_graph.io.freed_memory import freed_memory_kept
from stflow_graph.models.build import build_prior
from stflow_graph.models.precision import computing_in
from stflow_graph.nn.two_stage import TwoStageDenoiser
from stflow_graph.parallel.group import Group
from stflow_graph.stats.metrics import mean_of_defined, pearson_per_gene
from stflow_graph.training.batches import Slides
from stflow_graph.training.shared_step import StepShare, check_same_state
from stflow_graph.training.state_file import STATE_FIX, read_state, write_state

# seconds of training that an interrupted run may lose; epochs of small cohorts take less time than
# writing the state
_SAVE_EVERY = 10.0
_STATE = ("content", "the state of this run", STATE_FIX)


# of the learning rate, in training that starts from a model
_WARM_RATE = 0.25


@dataclasses.dataclass(frozen=True)
class EpochRecord:
    """One epoch: training loss, validation scores and the best so far; seconds of wall time.

    Epoch 0, of training that starts from a model, is the model before the first step.
    """

    epoch: int
    loss: float
    validation_mse: float
    validation_pearson: float
    best_epoch: int
    best_pearson: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The averaged weights of the best epoch and the history that chose them."""

    weights: dict[str, Tensor]
    history: list[EpochRecord]

    @property
    def best(self) -> EpochRecord:
        """The epoch chosen."""
        return best_of(self.history)


def best_of(history: Sequence[EpochRecord]) -> EpochRecord:
    """Return the best epoch of a history that begins with epoch 0 or 1."""
    return history[history[-1].best_epoch - history[0].epoch]


@dataclasses.dataclass
class _State:
    network: nn.Module
    average: AveragedModel
    optimizer: torch.optim.AdamW
    best: dict[str, Tensor]
    history: list[EpochRecord]


def fit(
    network: nn.Module,
    learn: Sequence[Data] | Slides,
    validate: Sequence[SlideInputs],
    config: Config,
    normalisation: Normalisation,
    *,
    stream: int,
    state_file: Path,
    warm: bool = False,
    report: Callable[[list[EpochRecord]], None] | None = None,
    group: Group | None = None,
) -> Fitted:
    """Train until the validation score no longer improves; resumes from ``state_file``.

    Of a two-stage denoiser the encoder is trained, as a regression; other networks are trained by
    flow matching, with one flow time per region. Validation scores the moving average of the
    weights, whose best epoch is returned. Random numbers of an epoch follow from ``stream`` and
    the epoch alone, so a run that was interrupted and resumed gives the same weights.

    Args:
        network: with the weights to start from, on the device to use.
        learn: scaled slides with their graphs and context, to draw regions from; or how they are
            read.
        validate: slides held out of training, on the network's device.
        config: the run's configuration.
        normalisation: scaling of the output, for the validation scores in log1p units.
        stream: seed of this network's random numbers.
        state_file: where the state of the loop is kept: after the first and the last epoch, and
            after one in every ten seconds between.
        warm: the network starts from a model. Then the weights before the first step are a
            candidate too, as epoch 0, and the learning rate is a quarter of ``train.lr``.
        report: called after every epoch with the history up to it.
        group: the processes that train this network together, each with the same arguments: they
            share the regions of every step and the validation slides; the first one keeps the
            state. Gradients are those of one process with all regions but for rounding, dropout.

    Raises:
        Diverged: a loss or a gradient is not finite; the state kept last stays.
        RankFailed: another process of the group is lost.
    """
    device = next(network.parameters()).device
    slides = learn if isinstance(learn, Slides) else Slides(learn, device)
    state, prior = _start(network, config.train, warm), build_prior(config.flow)
    if state_file.exists():
        _restore(state, state_file)
    if group is not None:
        check_same_state(group, len(state.history))
    saved = -math.inf
    with freed_memory_kept():
        while not _finished(state.history, config.train):
            start = time.perf_counter()
            epoch = state.history[-1].epoch + 1 if state.history else int(not warm)
            mean_loss = _epoch(state, slides, prior, config, stream, epoch, group)
            mse, pearson = validation_score(
                state.average.module, validate, config, normalisation, seed=stream, group=group
            )
            _record(state, epoch, mean_loss, mse, pearson, start)
            due = _finished(state.history, config.train) or time.monotonic() - saved >= _SAVE_EVERY
            if due and (group is None or group.rank == 0):
                _save(state, state_file)
                saved = time.monotonic()
            if report:
                report(state.history)
    return Fitted(state.best, state.history)


def _epoch(
    state: _State,
    slides: Slides,
    prior: Prior,
    config: Config,
    stream: int,
    epoch: int,
    group: Group | None = None,
) -> float:
    """Train on every region of an epoch, in epoch 0 without steps; return the mean loss.

    Raises:
        Diverged: a loss or a gradient is not finite.
    """
    network = state.network
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(_mix(stream, epoch))
    losses, norms = list[Tensor](), list[Tensor]()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # dropout draws from the global generator, and each process of a group from its own
        own = [group.rank] if group is not None and group.rank else []
        torch.manual_seed(_mix(stream, epoch, *own))
        network.train()
        for batch, n_regions in slides.batches(config, generator, group):
            share = None if group is None else StepShare(batch, n_regions, group, device)
            loss = torch.zeros((), device=device)
            if batch is not None:
                with computing_in(config.train.precision, device):
                    y_1 = _estimate(network, batch.to(device), prior, generator, share)
                loss = region_loss(y_1.float(), batch, config.train.pcc_weight, share)
            if epoch:
                norm, loss = _descend(state, loss, config.train, (epoch, len(norms) + 1), share)
                norms.append(norm)
            elif group is not None:
                loss = group.add(loss.detach())
            losses.append(loss.detach())
    return _mean_loss(losses, norms or losses, epoch)


def _estimate(
    network: nn.Module,
    batch: Batch,
    prior: Prior,
    generator: torch.Generator,
    share: StepShare | None = None,
) -> Tensor:
    """Return the estimate of y₁ that the loss is about, ``[N, G]``."""
    if isinstance(network, TwoStageDenoiser):
        mean: Tensor = network.encoder(batch).mean
        return mean
    n_regions, n_spots = (batch.num_graphs, len(batch.y)) if share is None else share.shape
    t = torch.rand(n_regions, generator=generator)
    noise = open_uniform((n_spots, batch.y.size(1)), generator)
    if share is not None:  # the noise of a spot does not depend on who has it
        t, noise = t[share.regions], noise[share.rows]
    t, y_0 = t.to(batch.y.device), prior(noise).to(batch.y.device)
    path = linear_path(y_0, batch.y, t, batch.batch)
    # a gene that the slide does not measure is constant, so it tells spots nothing of each other
    estimate: Tensor = network(without_missing(path.y_t, batch.y), t, batch)
    return estimate


def region_loss(
    y_1_hat: Tensor, batch: Data, pcc_weight: float, share: StepShare | None = None
) -> Tensor:
    """Return :func:`flow_loss` of the regions' own spots: those of halos do not count.

    Args:
        y_1_hat: ``[N, G]`` estimate of all spots.
        batch: regions with ``y``, ``batch`` and, where they have halos, ``inner [N]``.
        pcc_weight: as of :func:`flow_loss`.
        share: of a step that several processes take: their losses add up to that of all regions.
    """
    y_1, of_slide = batch.y, batch.batch
    if "inner" in batch:
        inner = batch.inner
        y_1_hat, y_1, of_slide = y_1_hat[inner], y_1[inner], of_slide[inner]
    if share is not None:
        of_pairs = pearson_loss(y_1_hat, y_1, of_slide) if pcc_weight else 0.0
        weights = share.weights
        return weights[0] * squared_error(y_1_hat, y_1) + pcc_weight * weights[1] * of_pairs
    return flow_loss(y_1_hat, y_1, of_slide, pcc_weight=pcc_weight)


def _descend(
    state: _State,
    loss: Tensor,
    settings: TrainConfig,
    when: tuple[int, int],
    share: StepShare | None = None,
) -> tuple[Tensor, Tensor]:
    """Take an optimiser step and update the average; return the gradient's norm and the loss."""
    state.optimizer.zero_grad(set_to_none=True)
    if loss.requires_grad:
        loss.backward()
    loss = loss.detach()
    if share is not None:
        loss = share.add_gradients(state.network, loss)
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), settings.clip_norm)
    if loss.device.type == "cpu":  # a GPU would wait in every step: it is asked once an epoch
        _check_finite(loss.item(), norm.item(), when)
    state.optimizer.step()
    state.average.update_parameters(state.network)
    return norm, loss


def _mean_loss(losses: Sequence[Tensor], norms: Sequence[Tensor], epoch: int) -> float:
    """Return the mean loss of an epoch's steps.

    Raises:
        Diverged: one of the losses or gradients is not finite.
    """
    values, lengths = (torch.stack(list(parts)).tolist() for parts in (losses, norms))
    for step, (loss, norm) in enumerate(zip(values, lengths, strict=True), start=1):
        _check_finite(loss, norm, (epoch, step))
    return float(np.mean(values))


def _check_finite(loss: float, norm: float, when: tuple[int, int]) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise Diverged(
            f"epoch {when[0]}, step {when[1]}: loss {loss:g}, gradient norm {norm:g}. "
            "Fix: lower the learning rate (train.lr)"
        )


def validation_score(
    network: nn.Module,
    slides: Sequence[SlideInputs],
    config: Config,
    normalisation: Normalisation,
    seed: int,
    *,
    group: Group | None = None,
) -> tuple[float, float]:
    """Return the mean squared error and the mean PCC over genes, averaged over slides.

    Of each slide the genes that it measures count. The processes of a group share the slides.
    """
    network.eval()
    errors, scores = [], []
    for inputs in slides if group is None else group.own(slides):
        truth = inputs.slide.truth
        predicted = predict(network, inputs, config.flow, normalisation, seed=seed).mean
        errors.append(float(np.mean(((predicted - truth) ** 2)[~np.isnan(truth)])))
        score = mean_of_defined(pearson_per_gene(predicted, truth))
        scores.append(score if math.isfinite(score) else 0.0)
    if group is not None:
        errors, scores = (group.of_all(values, len(slides)) for values in (errors, scores))
    return float(np.mean(errors)), float(np.mean(scores))


def _start(network: nn.Module, settings: TrainConfig, warm: bool) -> _State:
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=settings.lr * (_WARM_RATE if warm else 1.0),
        weight_decay=settings.weight_decay,
        fused=True,  # a small network's step is mostly the optimiser's overhead
    )
    decay = get_ema_multi_avg_fn(settings.ema_decay)
    average = AveragedModel(network, multi_avg_fn=decay, use_buffers=True)
    return _State(network, average, optimizer, {}, [])


def _finished(history: Sequence[EpochRecord], settings: TrainConfig) -> bool:
    if not history:
        return False
    waited = history[-1].epoch - history[-1].best_epoch
    return history[-1].epoch >= settings.epochs or waited >= settings.patience


def _mix(stream: int, *numbers: int) -> int:
    return int(np.random.SeedSequence([stream, *numbers]).generate_state(1, np.uint64)[0] >> 1)


def _record(
    state: _State, epoch: int, loss: float, mse: float, pearson: float, start: float
) -> None:
    best = (state.history[-1].best_epoch, state.history[-1].best_pearson) if state.history else None
    if best is None or pearson > best[1]:
        best = (epoch, pearson)
        weights = state.average.module.state_dict()
        state.best = {key: value.detach().clone() for key, value in weights.items()}
    seconds = time.perf_counter() - start
    state.history.append(EpochRecord(epoch, loss, mse, pearson, *best, seconds))


def _save(state: _State, file: Path) -> None:
    """Write the loop's state; prefixes of names state what a tensor belongs to."""
    tensors = {f"network/{k}": v for k, v in state.network.state_dict().items()}
    tensors |= {f"average/{k}": v for k, v in state.average.state_dict().items()}
    tensors |= {f"best/{k}": v for k, v in state.best.items()}
    for i, values in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{i}/{k}": v for k, v in values.items()}
    write_state(file, tensors, [dataclasses.asdict(record) for record in state.history])


def stored_history(file: Path) -> list[EpochRecord]:
    """Return the history in the state of a loop; none where there is no state.

    Raises:
        BadInput: the file is not as it was written.
    """
    if not file.exists():
        return []
    with as_bad_input(file, *_STATE):
        return [EpochRecord(**record) for record in read_state(file)[1]]


def _restore(state: _State, file: Path) -> None:
    with as_bad_input(file, *_STATE):
        tensors, history = read_state(file)
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = value
        state.network.load_state_dict(parts["network"])
        state.average.load_state_dict(parts["average"])
        optimizer: dict[int, dict[str, Tensor]] = {}
        moments = parts["optimizer"] if history[-1]["epoch"] else {}  # none before the first step
        for key, value in moments.items():
            i, _, name = key.partition("/")
            optimizer.setdefault(int(i), {})[name] = value
        groups = state.optimizer.state_dict()["param_groups"]
        state.optimizer.load_state_dict({"state": optimizer, "param_groups": groups})
        state.best = parts["best"]
        state.history = [EpochRecord(**record) for record in history]
    if not all(math.isfinite(record.loss) for record in state.history):
        raise BadInput(file, "history", "a loss that is not finite", "finite losses", STATE_FIX)
