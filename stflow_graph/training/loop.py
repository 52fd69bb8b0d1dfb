"""The training loop: one denoiser, flow matching on regions of slides, exact resume."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch_geometric.data import Batch, Data

from stflow_graph.config import Config
from stflow_graph.data.normalise import Normalisation
from stflow_graph.data.slide import Slide
from stflow_graph.errors import BadInput, Diverged
from stflow_graph.flow.loss import flow_loss
from stflow_graph.flow.noise import open_uniform
from stflow_graph.flow.path import linear_path
from stflow_graph.graph.regions import cover_slide, cut_region, join_regions, random_region
from stflow_graph.graph.tiles import in_tiles
from stflow_graph.inference.predict import predict
from stflow_graph.io.atomic import atomic_path
from stflow_graph.models.build import build_graph, build_prior
from stflow_graph.nn.spot_flow import conditional
from stflow_graph.stats.metrics import pearson_per_gene

# seconds of training that a run which is stopped may lose; epochs of small cohorts take less
# time than writing the state
_SAVE_EVERY = 10.0


@dataclasses.dataclass(frozen=True)
class EpochRecord:
    """One epoch: training loss, validation scores and the best so far; seconds of wall time."""

    epoch: int
    loss: float
    validation_mse: float
    validation_pearson: float
    best_epoch: int
    best_pearson: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The weights of the best epoch (averaged over steps) and the history that chose them."""

    weights: dict[str, Tensor]
    history: list[EpochRecord]

    @property
    def best(self) -> EpochRecord:
        """The epoch chosen."""
        return self.history[self.history[-1].best_epoch - 1]


@dataclasses.dataclass
class _State:
    model: nn.Module
    average: AveragedModel
    optimizer: torch.optim.AdamW
    best: dict[str, Tensor]
    history: list[EpochRecord]


def fit(
    model: nn.Module,
    learn: Sequence[Data],
    validate: Sequence[tuple[Slide, Data]],
    config: Config,
    normalisation: Normalisation,
    *,
    stream: int,
    state_file: Path,
    report: Callable[[list[EpochRecord]], None] | None = None,
) -> Fitted:
    """Train until the validation score no longer improves; goes on from ``state_file``.

    Every epoch's random numbers follow from ``stream`` and the epoch alone, so a run that was
    stopped and resumed gives the weights of one that was not.

    Args:
        model: the denoiser, with new weights, on the device to use.
        learn: scaled slides with their graphs and context, to draw regions from.
        validate: slides held out of training, with their graphs, on the model's device.
        config: the run's configuration.
        normalisation: scaling of the output, for the validation scores in log1p units.
        stream: seed of this fold's random numbers.
        state_file: where the state of the loop is kept: after the first and the last epoch, and
            after one in every ten seconds between.
        report: called after every epoch with the history up to it.

    Raises:
        Diverged: a loss or a gradient is not finite; the state kept last stays.
    """
    settings, device = config.train, next(model.parameters()).device
    graph, prior = build_graph(config), build_prior(config.flow)
    state = _start(model, config)
    if state_file.exists():
        _restore(state, state_file)
    saved = -math.inf
    while not _finished(state.history, config):
        epoch, began = len(state.history) + 1, time.perf_counter()
        generator = torch.Generator().manual_seed(_mix(stream, epoch))
        losses = []
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(_mix(stream, epoch))  # dropout draws from the global generator
            model.train()
            for step, regions in enumerate(_batches(learn, config, generator), start=1):
                batch = join_regions(
                    [region if "edge_index" in region else graph(region) for region in regions]
                )
                t = torch.rand(len(regions), generator=generator)
                y_0 = prior(open_uniform(batch.y.shape, generator))
                batch, t, y_0 = batch.to(device), t.to(device), y_0.to(device)
                if settings.tile_size and len(regions) == 1:
                    batch = in_tiles(batch, settings.tile_size)
                y_1 = _estimate(model, batch, t, y_0, settings.objective)
                loss = region_loss(y_1, batch, settings.pcc_weight)
                state.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
                if not (torch.isfinite(loss) and torch.isfinite(norm)):
                    raise Diverged(
                        f"epoch {epoch}, step {step}: loss {loss.item():g}, gradient norm "
                        f"{norm.item():g}. Fix: lower the learning rate (train.lr)"
                    )
                state.optimizer.step()
                state.average.update_parameters(model)
                losses.append(loss.item())
        mse, pearson = validation_score(
            state.average.module, validate, config, normalisation, seed=stream
        )
        _record(state, epoch, float(np.mean(losses)), mse, pearson, began)
        if _finished(state.history, config) or time.monotonic() - saved >= _SAVE_EVERY:
            _save(state, state_file)
            saved = time.monotonic()
        if report:
            report(state.history)
    return Fitted(state.best, state.history)


def region_loss(y_1_hat: Tensor, batch: Data, pcc_weight: float = 0.0) -> Tensor:
    """Return :func:`flow_loss` of the regions' own spots: those of halos do not count.

    Args:
        y_1_hat: ``[N, G]`` estimate of all spots.
        batch: regions with ``y``, ``batch`` and, where they have halos, ``inner [N]``.
        pcc_weight: as of :func:`flow_loss`.
    """
    y_1, of_slide = batch.y, batch.batch
    if "inner" in batch:
        inner = batch.inner
        y_1_hat, y_1, of_slide = y_1_hat[inner], y_1[inner], of_slide[inner]
    return flow_loss(y_1_hat, y_1, of_slide, pcc_weight=pcc_weight)


def _estimate(model: nn.Module, batch: Batch, t: Tensor, y_0: Tensor, objective: str) -> Tensor:
    """Return the estimate of y₁ that the loss is about, ``[N, G]``."""
    halves = conditional(model)
    if halves is not None:
        # the estimate at t = 0; fit_spot_flow learns the way on from there
        return halves.condition(batch).mean
    if objective == "regression":
        return model(torch.zeros_like(y_0), torch.zeros_like(t), batch)
    path = linear_path(y_0, batch.y, t, batch.batch)
    return model(path.y_t, t, batch)


def validation_score(
    model: nn.Module,
    slides: Sequence[tuple[Slide, Data]],
    config: Config,
    normalisation: Normalisation,
    seed: int,
) -> tuple[float, float]:
    """Return the mean squared error and the mean PCC over genes, averaged over slides."""
    model.eval()
    errors, scores = [], []
    for slide, data in slides:
        predicted = predict(model, data, slide, config, normalisation, seed=seed).mean
        errors.append(float(np.mean((predicted - slide.truth) ** 2)))
        pearson = pearson_per_gene(predicted, slide.truth)
        scores.append(float(np.nanmean(pearson)) if np.isfinite(pearson).any() else 0.0)
    return float(np.mean(errors)), float(np.mean(scores))


def _start(model: nn.Module, config: Config) -> _State:
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.train.lr,
        weight_decay=config.train.weight_decay,
        fused=True,  # a small network's step is mostly the optimiser's overhead
    )
    decay = get_ema_multi_avg_fn(config.train.ema_decay)
    average = AveragedModel(model, multi_avg_fn=decay, use_buffers=True)
    return _State(model, average, optimizer, {}, [])


def _finished(history: Sequence[EpochRecord], config: Config) -> bool:
    if not history:
        return False
    waited = history[-1].epoch - history[-1].best_epoch
    return len(history) >= config.train.epochs or waited >= config.train.patience


def _batches(
    learn: Sequence[Data], config: Config, generator: torch.Generator
) -> Iterator[list[Data]]:
    settings = config.train
    most, n_hops = settings.max_region_spots, getattr(config.denoiser, "n_layers", 0)
    whole = settings.smallest_region == 1
    plan: list[tuple[Data, Tensor]] = []
    for data in learn:
        for _ in range(settings.regions_per_slide):
            if whole and data.num_nodes > most:
                parts = cover_slide(data.pos, generator, most)
            else:
                parts = [
                    random_region(
                        data.pos, generator, smallest_share=settings.smallest_region, most=most
                    )
                    for _ in range(math.ceil(data.num_nodes / most))
                ]
            plan += [(data, rows) for rows in parts]
    # a region is cut when its turn comes, so that only those of one step are in memory
    order = torch.randperm(len(plan), generator=generator)
    for part in order.split(settings.batch_size):
        yield [cut_region(data, rows, n_hops) for data, rows in (plan[i] for i in part.tolist())]


def _mix(stream: int, epoch: int) -> int:
    return int(np.random.SeedSequence([stream, epoch]).generate_state(1, np.uint64)[0] >> 1)


def _record(
    state: _State, epoch: int, loss: float, mse: float, pearson: float, began: float
) -> None:
    best = (state.history[-1].best_epoch, state.history[-1].best_pearson) if state.history else None
    if best is None or pearson > best[1]:
        best = (epoch, pearson)
        weights = state.average.module.state_dict()
        state.best = {key: value.detach().clone() for key, value in weights.items()}
    seconds = time.perf_counter() - began
    state.history.append(EpochRecord(epoch, loss, mse, pearson, *best, seconds))


def _save(state: _State, file: Path) -> None:
    """Write the loop's state as one safetensors file; names say what each tensor belongs to."""
    tensors = {f"model/{k}": v for k, v in state.model.state_dict().items()}
    tensors |= {f"average/{k}": v for k, v in state.average.state_dict().items()}
    tensors |= {f"best/{k}": v for k, v in state.best.items()}
    for i, values in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{i}/{k}": v for k, v in values.items()}
    history = json.dumps([dataclasses.asdict(record) for record in state.history])
    with atomic_path(file) as temporary:
        copies = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file({k: v.clone() for k, v in copies.items()}, temporary, {"history": history})


def _restore(state: _State, file: Path) -> None:
    try:
        with safe_open(file, "pt") as stored:
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}
            history = json.loads(stored.metadata()["history"])
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = value
        state.model.load_state_dict(parts["model"])
        state.average.load_state_dict(parts["average"])
        optimizer: dict[int, dict[str, Tensor]] = {}
        for key, value in parts["optimizer"].items():
            i, _, name = key.partition("/")
            optimizer.setdefault(int(i), {})[name] = value
        groups = state.optimizer.state_dict()["param_groups"]
        state.optimizer.load_state_dict({"state": optimizer, "param_groups": groups})
        state.best = parts["best"]
        state.history = [EpochRecord(**record) for record in history]
    except (SafetensorError, KeyError, RuntimeError, ValueError, TypeError) as error:
        fix = "remove it to train this fold anew"
        text = " ".join(str(error).split())
        raise BadInput(file, "content", text, "the state of this run", fix) from None
    if not all(math.isfinite(record.loss) for record in state.history):
        raise BadInput(file, "history", "a loss that is not finite", "finite losses")
