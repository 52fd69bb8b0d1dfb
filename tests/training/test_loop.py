from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from linear import configured, linear_slide, optimiser_steps, prepared, same_weights
from looped import NO_DROPOUT, STREAM, TRANSFORMER_NO_DROPOUT, Loop
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.stats import kstest
from torch_geometric.data import Data

from stflow_graph.errors import BadInput, Diverged
from stflow_graph.flow.loss import flow_loss
from stflow_graph.nn.two_stage import TwoStageDenoiser
from stflow_graph.training import loop
from stflow_graph.training.loop import Fitted, region_loss, validation_score

# weights that do not move: what differs between steps is then not the optimiser's doing
FROZEN = {"train__lr": 1e-30}


class Stopped(Exception):
    pass


@dataclasses.dataclass
class Step:
    """A pass of the network in training: its weights before it, its input and its estimate."""

    weights: dict[str, torch.Tensor]
    arguments: tuple[Any, ...]
    estimate: torch.Tensor

    @property
    def batch(self) -> Data:
        return self.arguments[-1]


def recorded(network: Any) -> list[Step]:
    """Return the list to which every pass of the network itself, not of its average, is added."""
    steps: list[Step] = []
    trained = network.encoder if isinstance(network, TwoStageDenoiser) else network

    def record(module: torch.nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if module is trained:
            weights = {key: value.clone() for key, value in network.state_dict().items()}
            estimate = output.mean if isinstance(output, tuple) else output
            steps.append(Step(weights, arguments, estimate.detach()))

    trained.register_forward_hook(record)
    return steps


def plain(fitted: Fitted) -> list[dict[str, float]]:
    """Return the history without what the clock adds."""
    rows = [dataclasses.asdict(record) for record in fitted.history]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


# region_loss


@pytest.mark.parametrize("pcc_weight", [0.0, 0.7])
def test_halo_spots_do_not_count(pcc_weight):
    generator = torch.Generator().manual_seed(0)
    y_hat, y = torch.randn(2, 20, 3, generator=generator)
    slide_of_spot = (torch.arange(20) >= 12).long()
    inner = torch.arange(20) % 3 != 0
    batch = Data(y=y, batch=slide_of_spot, inner=inner)
    own = flow_loss(y_hat[inner], y[inner], slide_of_spot[inner], pcc_weight=pcc_weight)
    torch.testing.assert_close(region_loss(y_hat, batch, pcc_weight), own)
    y_hat.requires_grad_()
    region_loss(y_hat, batch, pcc_weight).backward()
    assert (y_hat.grad[~inner] == 0).all()
    assert (y_hat.grad[inner] != 0).all()
    del batch.inner
    every = flow_loss(y_hat, y, slide_of_spot, pcc_weight=pcc_weight)
    torch.testing.assert_close(region_loss(y_hat, batch, pcc_weight), every)
    assert not torch.isclose(every, own)


# validation_score


def test_validation_averages_over_slides_in_log1p_units():
    loop_ = Loop(configured())
    network = loop_.network.train()
    found = validation_score(network, loop_.validate, loop_.config, loop_.scaling, seed=0)
    assert not network.training
    errors, scores = [], []
    for inputs in loop_.validate:
        predicted = network.encoder(inputs.data).mean.detach().numpy() + loop_.scaling.y_mean
        truth = inputs.slide.truth
        errors.append(((predicted - truth) ** 2).mean())
        scores.append(np.diag(np.corrcoef(predicted.T, truth.T)[:4, 4:]).mean())
    assert found == pytest.approx((np.mean(errors), np.mean(scores)), rel=1e-5)


def test_a_slide_whose_scores_are_undefined_counts_as_0():
    loop_ = Loop(configured())
    expected = loop_.score(loop_.network.state_dict())[1]
    flat = linear_slide("F", 12)
    flat.y[:] = 8
    loop_.validate.append(prepared(flat, loop_.config, loop_.scaling))
    assert loop_.score(loop_.network.state_dict())[1] == pytest.approx(expected * 2 / 3)


# fit


def test_a_linear_truth_is_learned(tmp_path):
    loop_ = Loop(configured(train__epochs=12, train__lr=0.02, **NO_DROPOUT), (49, 36, 36))
    fitted = loop_.fit(tmp_path)
    first, last = fitted.history[0], fitted.history[-1]
    assert last.loss < 0.5 * first.loss
    assert fitted.best.validation_pearson > 0.75 > first.validation_pearson + 0.2
    assert fitted.best.validation_mse < 0.7 * first.validation_mse


def averages_of(steps: list[Step], network: Any, decay: float, n_epochs: int) -> list[Any]:
    """Return the moving average of the weights after every epoch, computed from its definition."""
    raw = [step.weights for step in steps[1:]] + [network.state_dict()]
    average, averages = raw[0], []
    for i, weights in enumerate(raw, start=1):
        average = {key: decay * average[key] + (1 - decay) * weights[key] for key in average}
        if i % (len(raw) // n_epochs) == 0:
            averages.append(average)
    return averages


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.parametrize("kind", ["two-stage", "graph", "transformer"])
def test_validation_scores_the_moving_average_and_chooses_what_it_scored(tmp_path, kind):
    loop_ = Loop(configured(kind, train__epochs=3, train__lr=0.02, train__ema_decay=0.6))
    steps = recorded(loop_.network)
    fitted = loop_.fit(tmp_path)
    averages = averages_of(steps, loop_.network, 0.6, 3)
    mse, pearson = zip(*map(loop_.score, averages), strict=True)
    assert [r.validation_mse for r in fitted.history] == pytest.approx(mse, rel=1e-4)
    assert [r.validation_pearson for r in fitted.history] == pytest.approx(pearson, abs=1e-4)
    assert fitted.best.epoch == np.argmax(pearson) + 1
    assert loop_.score(fitted.weights)[1] == fitted.history[-1].best_pearson
    assert_close(fitted.weights, averages[fitted.best.epoch - 1])
    if kind == "graph":  # validation draws the noise of the network's own stream
        assert loop_.score(fitted.weights, seed=STREAM + 1) != loop_.score(fitted.weights)


@pytest.mark.parametrize(
    ("scores", "best"),
    [([0.2, 0.5, 0.5, 0.1], [1, 2, 2, 2]), ([-0.3, -0.4, 0.0, 0.3], [1, 1, 3, 4])],
)
def test_the_first_of_the_best_epochs_is_kept(tmp_path, monkeypatch, scores, best):
    given = iter(scores)
    monkeypatch.setattr(loop, "validation_score", lambda *_, **__: (1.0, next(given)))
    loop_ = Loop(configured(train__epochs=4, train__lr=0.02, train__ema_decay=0.6))
    steps = recorded(loop_.network)
    fitted = loop_.fit(tmp_path)
    assert [record.best_epoch for record in fitted.history] == best
    assert [r.best_pearson for r in fitted.history] == [scores[epoch - 1] for epoch in best]
    assert fitted.best == fitted.history[best[-1] - 1]
    assert_close(fitted.weights, averages_of(steps, loop_.network, 0.6, 4)[best[-1] - 1])


@pytest.mark.parametrize("kind", ["two-stage", "regression", "graph", "transformer"])
def test_the_loss_recorded_is_the_mean_over_an_epochs_steps(tmp_path, kind):
    loop_ = Loop(configured(kind, train__pcc_weight=0.5, train__regions_per_slide=2))
    steps = recorded(loop_.network)
    fitted = loop_.fit(tmp_path)
    losses = [region_loss(step.estimate, step.batch, 0.5).item() for step in steps]
    n = len(steps) // 2
    expected = [np.mean(losses[:n]), np.mean(losses[n:])]
    assert [record.loss for record in fitted.history] == pytest.approx(expected, rel=1e-5)
    assert [record.epoch for record in fitted.history] == [1, 2]


def test_of_two_stages_the_encoder_alone_is_trained(tmp_path):
    loop_ = Loop(configured(train__lr=0.1))
    before = {key: value.clone() for key, value in loop_.network.state_dict().items()}
    after = loop_.fit(tmp_path).weights
    for key, value in before.items():
        moved = key.startswith("encoder.") and "ridge_head" not in key
        # the last read-out's keys and biases that softmax cancels may get no gradient
        assert moved or torch.equal(after[key], value), key
    assert not torch.equal(before["encoder.embed_x.weight"], after["encoder.embed_x.weight"])


@pytest.mark.parametrize(("kind", "prior"), [("graph", "gaussian"), ("transformer", "zero")])
def test_other_networks_learn_by_flow_matching(tmp_path, kind, prior):
    many = {"train__regions_per_slide": 30, "train__batch_size": 9}
    loop_ = Loop(configured(kind, flow__prior=prior, train__epochs=2, **many, **FROZEN))
    steps = recorded(loop_.network)
    loop_.fit(tmp_path)
    times, noise = [], []
    for step in steps:
        y_t, t, batch = step.arguments
        assert t.shape == (batch.num_graphs,)
        times += t.tolist()
        t = t[batch.batch][:, None]
        if prior == "zero":
            torch.testing.assert_close(y_t, t * batch.y)
            continue
        early = t[:, 0] < 0.9
        noise.append(((y_t - t * batch.y) / (1 - t))[early].flatten())
    assert len(set(times)) == len(times) == 180  # a time for each region
    assert kstest(times, "uniform").pvalue > 0.01
    if noise:
        values = torch.cat(noise).numpy()
        assert kstest(values, "norm").pvalue > 0.01
        assert len(np.unique(values)) > 0.99 * len(values)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("two-stage", {"denoiser__dropout": 0.5}),
        ("two-stage", {"denoiser__input_dropout": 0.5}),
        ("two-stage", {"denoiser__conv_options": {"dropout": 0.9}}),
        ("graph", {"denoiser__dropout": 0.5}),
        ("transformer", {"denoiser__dropout": 0.5}),
        ("transformer", {"denoiser__attn_dropout": 0.5}),
    ],
)
def test_dropout_is_on_in_training_and_off_in_validation(tmp_path, kind, changes):
    off = TRANSFORMER_NO_DROPOUT if kind == "transformer" else NO_DROPOUT
    quiet = {**FROZEN, **off, "flow__prior": "zero", "train__epochs": 3}
    histories = []
    for name, more in (("with", changes), ("without", {})):
        loop_ = Loop(configured(kind, **{**quiet, **more}))
        (tmp_path / name).mkdir()
        histories.append(loop_.fit(tmp_path / name).history)
    dropped, whole = ([record.loss for record in history] for history in histories)
    assert all(abs(a - b) > 1e-5 for a, b in zip(dropped, whole, strict=True))
    assert len({round(loss, 6) for loss in dropped}) == 3  # other masks in every epoch
    scores = [[record.validation_mse for record in history] for history in histories]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)


def test_training_ends_after_patience_epochs_without_a_better_one(tmp_path):
    loop_ = Loop(configured(train__epochs=9, train__patience=3, **FROZEN))
    fitted = loop_.fit(tmp_path)
    assert [record.best_epoch for record in fitted.history] == [1, 1, 1, 1]  # a tie is no better
    assert fitted.best == fitted.history[0]


@pytest.mark.parametrize("kind", ["two-stage", "graph", "transformer"])
def test_a_resumed_loop_gives_the_same_weights_to_the_bit(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(loop, "_SAVE_EVERY", 0)
    (tmp_path / "whole").mkdir()
    whole = Loop(configured(kind, train__epochs=4)).fit(tmp_path / "whole")

    def stop(history: list[loop.EpochRecord]) -> None:
        if len(history) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        Loop(configured(kind, train__epochs=4)).fit(tmp_path, report=stop)
    # epochs may be added afterwards
    Loop(configured(kind, train__epochs=3)).fit(tmp_path)
    epochs: list[int] = []
    resumed = Loop(configured(kind, train__epochs=4)).fit(
        tmp_path, report=lambda history: epochs.append(len(history))
    )
    assert epochs == [4]
    assert plain(resumed) == plain(whole)
    assert same_weights(resumed.weights, whole.weights)
    # of a loop that ended, the state is the result
    again = Loop(configured(kind, train__epochs=4)).fit(tmp_path, report=stop)
    assert again.history == resumed.history
    assert same_weights(again.weights, whole.weights)


@pytest.mark.parametrize(("scores", "best"), [((0.5, 0.2, 0.5), 0), ((0.1, 0.4, 0.3), 1)])
def test_a_model_to_start_from_is_a_candidate_itself(tmp_path, monkeypatch, scores, best):
    given = iter(scores)
    monkeypatch.setattr(loop, "validation_score", lambda *_, **__: (1.0, next(given)))
    loop_ = Loop(configured(train__epochs=2, train__lr=0.02))
    before = {key: value.clone() for key, value in loop_.network.state_dict().items()}
    with optimiser_steps() as steps:
        fitted = loop_.fit(tmp_path, warm=True)
    assert [record.epoch for record in fitted.history] == [0, 1, 2]
    assert fitted.best == fitted.history[best]
    assert fitted.best.validation_pearson == max(scores)
    assert same_weights(fitted.weights, before) == (best == 0)
    # no step is taken in epoch 0, and those after it are smaller
    assert len(steps) == 2 * len(loop_.learn)
    assert {step["lr"] for step in steps} == {0.005}


@pytest.mark.parametrize("kind", ["two-stage", "graph"])
def test_the_loss_of_epoch_0_is_that_of_the_weights_before_any_step(tmp_path, kind):
    loop_ = Loop(configured(kind, train__epochs=1))
    steps = recorded(loop_.network)
    fitted = loop_.fit(tmp_path, warm=True)
    weight = loop_.config.train.pcc_weight
    losses = [region_loss(step.estimate, step.batch, weight).item() for step in steps]
    assert fitted.history[0].loss == pytest.approx(np.mean(losses[:3]), rel=1e-5)
    assert all(same_weights(step.weights, steps[0].weights) for step in steps[:4])


@pytest.mark.parametrize("stopped_after", [1, 2, 3])
def test_training_from_a_model_resumes_to_the_bit(tmp_path, monkeypatch, stopped_after):
    monkeypatch.setattr(loop, "_SAVE_EVERY", 0)
    (tmp_path / "whole").mkdir()
    config = configured(train__epochs=3, train__lr=0.02)
    whole = Loop(config).fit(tmp_path / "whole", warm=True)

    def stop(history: list[loop.EpochRecord]) -> None:
        if len(history) == stopped_after:
            raise Stopped

    with pytest.raises(Stopped):
        Loop(config).fit(tmp_path, warm=True, report=stop)
    resumed = Loop(config).fit(tmp_path, warm=True)
    assert plain(resumed) == plain(whole)
    assert same_weights(resumed.weights, whole.weights)


def test_the_state_is_kept_at_the_first_and_last_epoch_and_every_ten_seconds(tmp_path, monkeypatch):
    clock, kept = [0.0], []
    fake = types.SimpleNamespace(monotonic=lambda: clock[0], perf_counter=lambda: clock[0] / 2)
    monkeypatch.setattr(loop, "time", fake)

    def report(history: list[loop.EpochRecord]) -> None:
        clock[0] += 5
        with safe_open(tmp_path / "state.safetensors", "pt") as file:
            kept.append(len(json.loads(file.metadata()["history"])))

    Loop(configured(train__epochs=8), sizes=(9, 9, 9)).fit(tmp_path, report=report)
    assert kept == [1, 1, 3, 3, 5, 5, 7, 8]
    assert list(tmp_path.iterdir()) == [tmp_path / "state.safetensors"]


def test_seconds_are_the_epochs_own(tmp_path, monkeypatch):
    ticks = iter(range(0, 100, 7))
    fake = types.SimpleNamespace(monotonic=lambda: 0.0, perf_counter=lambda: next(ticks))
    monkeypatch.setattr(loop, "time", fake)
    history = Loop(configured()).fit(tmp_path).history
    assert [record.seconds for record in history] == [7, 7]


def test_random_numbers_follow_from_the_stream_and_the_epoch_alone(tmp_path):
    fits = {}
    for name, seed, stream in (("a", 0, 3), ("b", 1, 3), ("c", 0, 4)):
        (tmp_path / name).mkdir()
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        fits[name] = Loop(configured("graph")).fit(tmp_path / name, stream=stream)
        assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(fits["a"].weights, fits["b"].weights)
    assert fits["a"].history[0].loss != fits["c"].history[0].loss


def test_slides_come_in_another_order_in_every_epoch(tmp_path):
    loop_ = Loop(configured(train__epochs=4, **FROZEN, **NO_DROPOUT))
    steps = recorded(loop_.network)
    loop_.fit(tmp_path)
    sizes = [step.batch.num_nodes for step in steps]
    epochs = [tuple(sizes[i : i + 3]) for i in range(0, 12, 3)]
    assert all(sorted(epoch) == [12, 16, 20] for epoch in epochs)
    assert len(set(epochs)) > 1


def test_gradients_are_clipped_and_do_not_pile_up(tmp_path):
    norms = {}
    for clip_norm in (1e9, 0.05):
        changes = {"train__clip_norm": clip_norm, "train__weight_decay": 0.25}
        loop_ = Loop(configured(**changes, **FROZEN, **NO_DROPOUT))
        (tmp_path / str(clip_norm)).mkdir()
        with optimiser_steps() as steps:
            loop_.fit(tmp_path / str(clip_norm))
        assert {(step["lr"], step["weight_decay"]) for step in steps} == {(1e-30, 0.25)}
        norms[clip_norm] = [step["norm"] for step in steps]
    free = norms[1e9]
    assert len(free) == 6  # three slides, two epochs
    assert sorted(free[:3]) == pytest.approx(sorted(free[3:]), rel=1e-3)
    assert min(free) > 0.06
    assert norms[0.05] == pytest.approx([0.05] * 6, rel=1e-3)


# regions


def rows_of(batch: Data, slide: Data) -> torch.Tensor:
    """Return the rows of a slide that are a batch's own spots; empty if it is of another."""
    own = batch.pos[batch.inner] if "inner" in batch else batch.pos
    same = (own[:, None] == slide.pos[None]).all(dim=2)
    return same.nonzero()[:, 1]


def test_a_large_slide_is_covered_by_regions_that_see_what_the_whole_slide_sees(tmp_path):
    network = {"denoiser__n_layers": 2, "denoiser__global_attention": "none"}
    changes = {**network, "train__max_spots_per_batch": 10, "train__epochs": 1}
    loop_ = Loop(configured(**changes, **FROZEN, **NO_DROPOUT), (36, 30, 24))
    steps = recorded(loop_.network)
    loop_.fit(tmp_path)
    seen = {n: [] for n in (36, 30, 24)}
    with torch.no_grad():
        whole = [loop_.network.encoder(slide).mean for slide in loop_.learn]
    for step in list(steps[: -len(whole)]):
        assert 0 < step.batch.inner.sum() <= 10
        assert (~step.batch.inner).any()
        for slide, expected in zip(loop_.learn, whole, strict=True):
            rows = rows_of(step.batch, slide)
            if len(rows):
                own = step.estimate[step.batch.inner]
                torch.testing.assert_close(own, expected[rows], rtol=1e-4, atol=1e-5)
                seen[len(slide.pos)] += rows.tolist()
    assert {n: sorted(rows) for n, rows in seen.items()} == {n: list(range(n)) for n in seen}


@pytest.mark.parametrize("kind", ["two-stage", "transformer"])
def test_random_regions_have_their_number_and_sizes(tmp_path, kind):
    changes = {"train__smallest_region": 0.4, "train__regions_per_slide": 3}
    changes |= {"train__batch_size": 2, "train__max_spots_per_batch": 60, "train__epochs": 4}
    loop_ = Loop(configured(kind, **changes, **FROZEN), (36, 30, 24))
    steps = recorded(loop_.network)
    loop_.fit(tmp_path)
    # a slide of 36 spots is too large for a region of 30, and gets twice as many
    assert [step.batch.num_graphs for step in steps[:6]] == [2, 2, 2, 2, 2, 2]
    assert len(steps) == 6 * 4
    sizes: dict[int, list[int]] = {n: [] for n in (36, 30, 24)}
    for step in steps:
        for region in step.batch.to_data_list():
            (n,) = (len(s.pos) for s in loop_.learn if len(rows_of(region, s)))
            sizes[n].append(int(region.inner.sum()) if "inner" in region else region.num_nodes)
            if kind == "transformer":
                assert "edge_index" not in region
    assert [len(sizes[n]) for n in (36, 30, 24)] == [24, 12, 12]
    for n, largest in ((36, 30), (30, 30), (24, 24)):
        assert int(0.4 * n) <= min(sizes[n]) < 0.6 * n
        assert 0.85 * largest < max(sizes[n]) <= largest


# divergence


def test_a_loss_that_is_not_finite_ends_the_loop_and_keeps_the_last_state(tmp_path):
    Loop(configured(train__epochs=1)).fit(tmp_path)
    good = (tmp_path / "state.safetensors").read_bytes()
    loop_ = Loop(configured(train__epochs=3))
    loop_.learn[0].y[0, 0] = torch.inf
    with pytest.raises(Diverged, match=r"epoch 2, step [1-3]: loss (inf|nan), .*train\.lr"):
        loop_.fit(tmp_path)
    assert (tmp_path / "state.safetensors").read_bytes() == good


@pytest.mark.parametrize("lost", ["gradient", "loss"])
def test_a_loss_or_a_gradient_that_is_not_finite_takes_no_step(tmp_path, lost):
    loop_ = Loop(configured())
    value = torch.nan if lost == "gradient" else 0.0
    for parameter in loop_.network.encoder.parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda grad: torch.full_like(grad, value))
    if lost == "loss":
        for slide in loop_.learn:
            slide.y[0, 0] = torch.inf
    before = {key: value.clone() for key, value in loop_.network.state_dict().items()}
    shown = r"loss \d\S*, gradient norm nan" if lost == "gradient" else "loss (inf|nan), .* 0"
    with pytest.raises(Diverged, match=rf"epoch 1, step 1: {shown}\. Fix: lower"):
        loop_.fit(tmp_path)
    assert same_weights(loop_.network.state_dict(), before)
    assert not (tmp_path / "state.safetensors").exists()


# the state file


def damaged(file: Path, how: str) -> None:
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "other network":
        file.unlink()
        Loop(configured(denoiser__hidden_channels=4)).fit(file.parent)
    else:
        with safe_open(file, "pt") as stored:
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}
            history = stored.metadata()["history"]
        if how == "no optimiser":
            tensors = {k: v for k, v in tensors.items() if not k.startswith("optimizer/")}
        elif how == "no history":
            history = "[{}]"
        elif how == "not finite":
            rows = json.loads(history)
            history = json.dumps([{**rows[0], "loss": float("nan")}, *rows[1:]])
        save_file(tensors, file, {"history": history})


@pytest.mark.parametrize(
    "how", ["cut", "other network", "no optimiser", "no history", "not finite"]
)
def test_a_state_that_is_not_this_runs_is_refused(tmp_path, how):
    Loop(configured()).fit(tmp_path)
    file = tmp_path / "state.safetensors"
    damaged(file, how)
    expected = r"content: found .*\w{3}.*, expected .*remove it to train"
    if how == "not finite":
        expected = "history: found 'a loss that is not finite'"
    with pytest.raises(BadInput, match=rf"state\.safetensors: {expected}"):
        Loop(configured(train__epochs=3)).fit(tmp_path)


def test_the_weights_returned_are_copies(tmp_path):
    loop_ = Loop(configured(train__epochs=1))
    fitted = loop_.fit(tmp_path)
    kept = {key: value.clone() for key, value in fitted.weights.items()}
    for parameter in loop_.network.parameters():
        parameter.data.add_(1)
    assert same_weights(fitted.weights, kept)
