from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from linear import (
    CHANNELS,
    GENES,
    configured,
    fit_fold,
    linear_slide,
    prepared,
    same_weights,
    scaling_of,
)

from stflow_graph.config import Config
from stflow_graph.data.slide import Slide
from stflow_graph.inference.predict import predict
from stflow_graph.nn.pretrained import weights_of_member
from stflow_graph.stats.calibration import Calibration, HeldOut
from stflow_graph.stats.ridge import ALPHAS, RidgePath
from stflow_graph.training import fold as module
from stflow_graph.training.fold import FittedFold
from stflow_graph.training.loop import EpochRecord, validation_score


def slides_of(sizes: tuple[int, ...] = (25, 22, 20, 18, 16)) -> list[Slide]:
    return [linear_slide(name, n) for name, n in zip("ABCDE", sizes, strict=False)]


@dataclasses.dataclass
class Fold:
    """A fitted fold and what it was fitted to."""

    slides: list[Slide]
    config: Config
    fitted: FittedFold

    def members(self) -> list[tuple[Any, Any, list[Slide], list[Slide]]]:
        """Return each member's network, scaling, slides that it learned from and held out."""
        checkpoint = self.fitted.checkpoint(GENES, CHANNELS, {})
        parts = []
        for network, names in zip(checkpoint.build(), self.fitted.held_out, strict=True):
            learn = [slide for slide in self.slides if slide.name not in names]
            held_out = [slide for slide in self.slides if slide.name in names]
            level = scaling_of(learn, self.config).y_mean
            scaling = dataclasses.replace(self.fitted.normalisation, y_mean=level)
            parts.append((network, scaling, learn, held_out))
        return parts


def fold(folder: Path, kind: str = "two-stage", sizes: int = 5, **changes: Any) -> Fold:
    slides = slides_of()[:sizes]
    config = configured(kind, **{"train__members": 2, "train__epochs": 1, **changes})
    return Fold(slides, config, fit_fold(slides, config, folder, fold=0))


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Fold:
    """A fold of the default kind, three members."""
    folder = tmp_path_factory.mktemp("fold")
    settings = {"train__members": 3, "train__epochs": 2, "denoiser__input_dropout": "auto"}
    settings["train__seed"] = 3
    return fold(folder, train__flow_steps=40, train__flow_lr=1e-2, **settings)


def test_every_slide_is_held_out_by_one_member(default):
    names = [name for part in default.fitted.held_out for name in part]
    assert sorted(names) == ["A", "B", "C", "D", "E"]
    assert [len(part) for part in default.fitted.held_out] == [2, 2, 1]
    assert len(default.fitted.best) == 3


def test_input_and_output_are_scaled_by_all_training_slides(default):
    expected = scaling_of(default.slides, default.config)
    for field in ("x_mean", "x_std", "y_mean"):
        found = getattr(default.fitted.normalisation, field)
        np.testing.assert_allclose(found, getattr(expected, field), rtol=1e-6)


@pytest.mark.parametrize("kind", ["regression", "graph", "transformer"])
def test_each_member_chose_its_epoch_by_the_slides_that_it_holds_out(tmp_path, kind):
    # without a ridge the weights are those that validation scored
    plain = {} if kind == "transformer" else {"denoiser__ridge_rank": 0}
    done = fold(tmp_path, kind, train__epochs=3, train__lr=0.05, **plain)
    for (network, scaling, _, held_out), best in zip(done.members(), done.fitted.best, strict=True):
        inputs = [prepared(slide, done.config, scaling) for slide in held_out]
        stream = module._stream(done.config, 0, done.fitted.best.index(best))
        mse, pearson = validation_score(network, inputs, done.config, scaling, seed=stream)
        assert pearson == pytest.approx(best.best_pearson, abs=1e-4)
        # the level of the prediction is that of the slides that the member learned from
        assert mse == pytest.approx(best.validation_mse, rel=1e-4)
        assert best.epoch == best.best_epoch
    assert np.isnan(done.fitted.calibration.spread).all()
    assert np.isfinite(done.fitted.calibration.pearson).all()


def test_calibration_is_that_of_members_on_slides_they_did_not_see(default):
    parts, seen = [], []
    for network, scaling, learn, held_out in default.members():
        for collected, slides in ((parts, held_out), (seen, learn)):
            for slide in slides:
                inputs = prepared(slide, default.config, scaling)
                flow = default.config.flow
                predicted = predict(network, inputs, flow, scaling, n_samples=19, seed=3)
                collected.append(HeldOut(predicted.mean, predicted.samples, slide.truth))
    found, expected = default.fitted.calibration, Calibration.fit(parts)
    np.testing.assert_array_equal(found.spread, expected.spread)
    np.testing.assert_allclose(found.pearson, expected.pearson, atol=1e-5)
    np.testing.assert_allclose(found.pearson_sd, expected.pearson_sd, atol=1e-5)
    assert default.fitted.validation_pearson == pytest.approx(expected.pearson.mean(), abs=1e-5)
    # on slides that they learned from they do better
    assert Calibration.fit(seen).pearson.mean() > expected.pearson.mean() + 0.01


def test_ridges_are_fitted_to_what_members_learn_and_mixed_by_what_they_hold_out(default):
    config = default.config
    features, means, heads, mixing = {}, {}, [], set()
    for network, scaling, learn, held_out in default.members():
        head = network.encoder.ridge_head
        mixing.add(head.mixing_weight.item())
        weights = (head.up.weight @ head.down.weight).detach().numpy().T
        heads.append((weights, learn, held_out))
        for slide in (*learn, *held_out):
            data = prepared(slide, config, scaling).data
            features[slide] = np.concatenate([data.x, data.context], axis=1).astype(float)
        head.mixing_weight.zero_()
        for slide in held_out:
            data = prepared(slide, config, scaling).data
            means[slide] = network.encoder(data).mean.detach().numpy()
        x = np.concatenate([features[slide] for slide in learn])
        y = np.concatenate([slide.truth - slide.truth.mean(0) for slide in learn])
        level = x.mean(0) @ weights + head.up.bias.detach().numpy()
        np.testing.assert_allclose(level, y.mean(0), atol=1e-5)
    paths = [
        RidgePath.fit([features[s] for s in learn], [s.truth for s in learn])
        for _, learn, _ in heads
    ]

    def score(alpha: float, weight: float) -> float:
        scores = []
        for path, (_, _, held_out) in zip(paths, heads, strict=True):
            for slide in held_out:
                ridge = features[slide] @ path.weights(alpha)
                mixed = (1 - weight) * means[slide] + weight * ridge
                scores.append(np.diag(np.corrcoef(mixed.T, slide.truth.T)[:4, 4:]).mean())
        return float(np.mean(scores))

    best, weight = max(((a, w) for a in ALPHAS for w in (0.5, 0.25, 0.0)), key=lambda p: score(*p))
    assert mixing == {weight}
    assert weight > 0, "the example should use its ridge"
    for path, (weights, _, _) in zip(paths, heads, strict=True):
        np.testing.assert_allclose(weights, path.weights(best), rtol=1e-3, atol=1e-5)


def test_the_input_dropout_is_derived_or_taken_as_it_is(default, tmp_path, monkeypatch):
    chosen = default.fitted.config.denoiser.input_dropout
    assert 0 < chosen < 1
    assert default.fitted.config.denoiser == default.config.denoiser.model_copy(
        update={"input_dropout": chosen}
    )
    calls = []
    real = module.choose_input_dropout

    def choose(splits: Any, *others: Any) -> float:
        calls.append([[slide.name for slide in held_out] for _, held_out in splits])
        return real(splits, *others)

    monkeypatch.setattr(module, "choose_input_dropout", choose)
    for dropout in ("auto", 0.2):
        (tmp_path / str(dropout)).mkdir()
        changes = {"denoiser__input_dropout": dropout, "flow__kind": "none"}
        done = fold(tmp_path / str(dropout), **changes)
    assert done.fitted.config.denoiser.input_dropout == 0.2
    assert len(calls) == 1
    assert sorted(name for part in calls[0] for name in part) == ["A", "B", "C", "D", "E"]


def test_held_out_expression_has_no_say_in_a_members_weights(tmp_path):
    # twice the expression and 5 more: no correlation changes, and with it no choice
    weights = []
    for name in ("before", "after"):
        slides = slides_of()[:4]
        if name == "after":
            slides[0].y[:] = 2 * slides[0].y + 5
        (tmp_path / name).mkdir()
        config = configured(train__epochs=2, train__flow_lr=1e-30)
        fitted = fit_fold(slides, config, tmp_path / name, fold=0)
        weights.append([weights_of_member(fitted.weights, 2, i) for i in range(2)])
    unseen = ["A" in names for names in fitted.held_out].index(True)
    assert same_weights(weights[0][unseen], weights[1][unseen])
    other = 1 - unseen
    for part in ("encoder.embed_x.weight", "encoder.ridge_head.down.weight", "flow.lowest"):
        assert not torch.equal(weights[0][other][part], weights[1][other][part]), part


def test_a_finished_fold_is_taken_from_its_states(tmp_path):
    first = fold(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "state-0.safetensors",
        "state-1.safetensors",
    ]
    reports: list[Any] = []
    again = fit_fold(
        first.slides, first.config, tmp_path, fold=0, report=lambda *told: reports.append(told)
    )
    assert reports == []
    assert same_weights(first.fitted.weights, again.weights)
    assert again.best == first.fitted.best
    np.testing.assert_array_equal(again.calibration.spread, first.fitted.calibration.spread)


def test_epochs_are_reported_member_by_member(tmp_path):
    seen: list[tuple[int, list[list[EpochRecord]]]] = []

    def report(histories: list[list[EpochRecord]], member: int) -> None:
        seen.append((member, list(histories)))

    fit_fold(slides_of()[:3], configured("regression"), tmp_path, fold=0, report=report)
    lengths = [(member, *map(len, histories)) for member, histories in seen]
    assert lengths == [(0, 1, 0), (0, 2, 0), (1, 2, 1), (1, 2, 2)]
    assert [record.epoch for record in seen[-1][1][0]] == [1, 2]


def test_members_that_were_finished_before_are_reported_with_the_others(tmp_path):
    slides, config = slides_of()[:3], configured("regression")
    lengths: list[tuple[int, ...]] = []

    def report(histories: list[list[EpochRecord]], member: int) -> None:
        lengths.append((member, *map(len, histories)))

    fit_fold(slides, config, tmp_path, fold=0)
    (tmp_path / "state-1.safetensors").unlink()
    fit_fold(slides, config, tmp_path, fold=0, report=report)
    assert lengths == [(1, 2, 1), (1, 2, 2)]


def test_random_numbers_follow_from_seed_fold_and_member(tmp_path):
    weights = {}
    cases = {"a": (0, 0, 0), "b": (1, 0, 0), "fold": (0, 1, 0), "seed": (0, 0, 1)}
    for name, (state, number, seed) in cases.items():
        (tmp_path / name).mkdir()
        config = configured(train__epochs=1, train__members=3, train__seed=seed)
        torch.manual_seed(state)
        before = torch.get_rng_state()
        fitted = fit_fold(slides_of()[:3], config, tmp_path / name, fold=number)
        assert torch.equal(torch.get_rng_state(), before)
        weights[name] = fitted.weights
    assert same_weights(weights["a"], weights["b"])
    assert not same_weights(weights["a"], weights["fold"])
    assert not same_weights(weights["a"], weights["seed"])
    # members begin with other weights, and their flows too
    for key in ("encoder.embed_x.weight", "flow.from_state.weight"):
        members = [weights_of_member(weights["a"], 3, i)[key] for i in range(3)]
        assert (members[0] - members[1]).abs().max() > 0.1


def test_two_slides_are_cut_and_a_member_never_sees_what_it_holds_out(tmp_path, monkeypatch):
    seen: list[tuple[set[str], set[str]]] = []
    real = module.fit

    def fit(network: Any, learn: Any, validate: Any, *others: Any, **options: Any) -> Any:
        places = [
            {tuple(p) for data in part for p in data.pos.tolist()}
            for part in (learn, [inputs.data for inputs in validate])
        ]
        seen.append((places[0], places[1]))
        return real(network, learn, validate, *others, **options)

    monkeypatch.setattr(module, "fit", fit)
    done = fold(tmp_path, sizes=2)
    assert [len(learn & held_out) for learn, held_out in seen] == [0, 0]
    assert not seen[0][1] & seen[1][1]
    assert [len(learn | held_out) for learn, held_out in seen] == [47, 47]
    assert done.fitted.held_out == [["A", "B"], ["A", "B"]]


def test_the_checkpoint_has_all_that_was_learned(default):
    fitted = default.fitted
    checkpoint = fitted.checkpoint(GENES, CHANNELS, {"fold": 3})
    assert checkpoint.genes == GENES
    assert (checkpoint.in_channels, checkpoint.n_members) == (CHANNELS, 3)
    assert checkpoint.config is fitted.config
    assert checkpoint.normalisation is fitted.normalisation
    assert checkpoint.calibration is fitted.calibration
    assert checkpoint.provenance == {
        "fold": 3,
        "held_out_slides": ["A", "B", "C", "D", "E"],
        "best_epochs": [record.epoch for record in fitted.best],
        "validation_pearson": fitted.validation_pearson,
    }
    assert len(checkpoint.build()) == 3


def test_an_undefined_validation_score_is_stored_as_none(default):
    undefined = dataclasses.replace(default.fitted, validation_pearson=float("nan"))
    assert undefined.checkpoint(GENES, CHANNELS, {}).provenance["validation_pearson"] is None


def test_large_slides_are_predicted_in_tiles(tmp_path, monkeypatch):
    sizes = []
    real = module.slide_inputs

    def inputs(slide: Slide, *others: Any, above: int) -> Any:
        sizes.append(above)
        return real(slide, *others, above=above)

    monkeypatch.setattr(module, "slide_inputs", inputs)
    fold(tmp_path, "regression", sizes=3, train__max_spots_per_batch=12)
    assert set(sizes) == {12}
