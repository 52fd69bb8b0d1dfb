from __future__ import annotations

import contextlib
import csv
import json
import shutil

import anndata
import numpy as np
import pytest
import torch
from artefacts import read_embeddings
from toy import CHANNELS, write_slide

from stflow_graph.config import load_config
from stflow_graph.data.load import load_slide
from stflow_graph.errors import BadConfig, BadInput, Diverged
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.io.atomic import sha256
from stflow_graph.io.embeddings import write_embeddings
from stflow_graph.io.predictions import read_prediction
from stflow_graph.models.checkpoint import load_checkpoint, save_checkpoint
from stflow_graph.stages.sample import sample
from stflow_graph.stages.train import train

WEIGHTS = "fold0/checkpoint/model.safetensors"


def run(cohort, out, report=None, overwrite=False, **values):
    settings = {**cohort.settings, **{k.replace("__", "."): v for k, v in values.items()}}
    return train(load_config(None, settings), out, overwrite=overwrite, report=report)


@pytest.mark.parametrize("denoiser", ["graph", "transformer"])
def test_a_run_leaves_all_that_it_promises(cohort, tmp_path, denoiser):
    out = tmp_path / "run"
    results = run(cohort, out, denoiser__name=denoiser, train__folds=[0, 2])
    assert [(r.fold, list(r.test_pearson)) for r in results] == [(0, ["A"]), (2, ["C"])]
    for fold in (0, 2):
        folder = out / f"fold{fold}"
        with (folder / "history.csv").open() as file:
            assert [int(row["epoch"]) for row in csv.DictReader(file)] == [1, 2, 3]
        checkpoint = load_checkpoint(folder / "checkpoint")
        assert checkpoint.config.denoiser.name == denoiser
        if denoiser == "graph":  # chosen in training
            assert 0 < checkpoint.config.denoiser.input_dropout < 1
        assert load_config(folder / "config.toml") == checkpoint.config
        provenance = json.loads((folder / "provenance.json").read_text())
        assert set(provenance["held_out_slides"]) < set(provenance["train_slides"])
        assert not set(provenance["train_slides"]) & set(provenance["test_slides"])
        assert provenance["protocol"] == results[0].protocol
        assert checkpoint.provenance["protocol"] == results[0].protocol
        assert list((folder / "tensorboard").iterdir())
        assert (folder / "checkpoint" / "README.md").exists()
    asked = json.loads((out / "run.json").read_text())["config"]
    assert asked["denoiser"].get("input_dropout", "auto") == "auto"
    table = json.loads((out / "results_kfold.json").read_text())
    assert table["protocol"] == results[1].protocol
    assert results[0].protocol.startswith(
        "log1p | var_50genes.json | slide-grouped 4-fold, patients unknown | "
    )
    stored = json.loads((out / "fold2/result.json").read_text())
    assert stored["protocol"] == results[0].protocol
    assert [row["name"] for row in table["pearson_corrs"]] == [f"G{i}" for i in range(6)]
    assert len(table["mean_per_split"]) == 2
    assert table["pearson_mean"] == pytest.approx(np.mean([r.pearson.mean() for r in results]))


def test_all_slides_train_one_model_and_none_is_tested(cohort, tmp_path):
    shutil.rmtree(cohort.root / "splits")
    (cohort.root / "var_50genes.json").rename(cohort.root / "var_50genes_all.json")
    out = tmp_path / "run"
    (result,) = run(cohort, out, train__folds="all", train__members=2)
    assert (result.fold, result.test_pearson, result.folder) == (None, {}, out / "all")
    # with the gene list that was taken, and what is not known of no slide
    assert result.protocol.startswith("log1p | var_50genes_all.json | no test slides | ")
    card = (out / "all/checkpoint/README.md").read_text()
    assert "| genes | 6 (var_50genes_all.json) |" in card
    assert "| never seen in training | none: a model of all slides" in card
    assert np.isnan(result.pearson).all()
    assert np.isfinite(result.validation_pearson)
    assert not (out / "results_kfold.json").exists()
    checkpoint = load_checkpoint(out / "all/checkpoint")
    assert checkpoint.provenance["train_slides"] == ["A", "B", "C", "D"]
    assert checkpoint.provenance["held_out_slides"] == ["A", "B", "C", "D"]  # each by one member
    assert checkpoint.provenance["test_slides"] == []
    assert " | no test slides | " in result.protocol
    assert run(cohort, out, train__folds="all", train__members=2)[0].up_to_date
    (done,) = sample(out, [cohort.embedding("A")], tmp_path / "predictions")
    assert (done.fold, done.held_out) == (None, False)


def test_a_run_may_hold_folds_and_a_model_of_all_slides(cohort, tmp_path):
    run(cohort, tmp_path / "run", train__folds=[1])
    run(cohort, tmp_path / "run", train__folds="all")
    embeddings = [cohort.embedding(name) for name in "AB"]
    tested, trained = sample(tmp_path / "run", embeddings, tmp_path / "out")[::-1]
    assert (tested.fold, tested.held_out) == (1, True)  # B: by the fold that has not seen it
    assert trained.fold is None
    with pytest.raises(BadConfig, match="another --out"):
        run(cohort, tmp_path / "run", train__folds="all", train__seed=5)
    run(cohort, tmp_path / "run", train__folds="all", train__seed=5, overwrite=True)
    assert not (tmp_path / "run/fold1/result.json").exists()


def test_a_finished_run_is_left_as_it_is(cohort, tmp_path):
    run(cohort, tmp_path / "run")
    before = sha256(tmp_path / "run" / WEIGHTS)
    (again,) = run(cohort, tmp_path / "run", report=lambda _: pytest.fail("trained again"))
    assert again.up_to_date
    assert sha256(tmp_path / "run" / WEIGHTS) == before


class Stopped(Exception):
    pass


def stop_at(epoch: int, member: int = 0):
    def report(progress):
        if (progress.member, progress.epoch.epoch) == (member, epoch):
            raise Stopped

    return report


def test_a_stopped_run_goes_on_to_the_weights_of_one_that_was_not(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("stflow_graph.training.loop._SAVE_EVERY", 0)
    run(cohort, tmp_path / "whole", train__members=2)
    stopped = tmp_path / "stopped"
    for member, epoch in ((0, 1), (0, 2), (1, 2)):
        with pytest.raises(Stopped):
            run(cohort, stopped, stop_at(epoch, member), train__members=2)
    reported = []
    run(cohort, stopped, lambda p: reported.append((p.member, p.epoch.epoch)), train__members=2)
    assert reported == [(1, 3)]
    assert sha256(stopped / WEIGHTS) == sha256(tmp_path / "whole" / WEIGHTS)


def test_more_epochs_extend_a_run_as_if_they_had_been_asked_for_at_first(cohort, tmp_path):
    run(cohort, tmp_path / "long", train__epochs=2)
    for epochs in (1, 2):
        run(cohort, tmp_path / "extended", train__epochs=epochs)
    assert sha256(tmp_path / "extended" / WEIGHTS) == sha256(tmp_path / "long" / WEIGHTS)


def test_the_seed_decides_and_the_global_random_state_is_left_alone(cohort, tmp_path):
    hashes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        run(cohort, tmp_path / name, train__seed=seed, train__epochs=1)
        assert torch.equal(torch.rand(3), expected)
        hashes.append(sha256(tmp_path / name / WEIGHTS))
    assert hashes[0] == hashes[1] != hashes[2]


def test_test_slides_have_no_say_in_the_weights(cohort, tmp_path):
    run(cohort, tmp_path / "a")
    write_slide(cohort.embedding("A"), cohort.expression("A"), 30, seed=99)
    run(cohort, tmp_path / "b")
    assert sha256(tmp_path / "a" / WEIGHTS) == sha256(tmp_path / "b" / WEIGHTS)
    read = [json.loads((tmp_path / r / "fold0/result.json").read_text()) for r in "ab"]
    assert read[0]["test_pearson"] != read[1]["test_pearson"]


def test_another_configuration_or_other_inputs_in_the_same_place_are_refused(cohort, tmp_path):
    run(cohort, tmp_path / "run")
    with pytest.raises(BadConfig, match=r"train.lr = 0.002 \(now 0.001\).*--overwrite"):
        run(cohort, tmp_path / "run", train__lr=1e-3)
    write_slide(cohort.embedding("B"), cohort.expression("B"), 36, seed=99)
    with pytest.raises(BadConfig, match="embeddings/B, expression/B changed"):
        run(cohort, tmp_path / "run")
    (result,) = run(cohort, tmp_path / "run", overwrite=True, train__lr=1e-3)
    assert not result.up_to_date


@pytest.mark.parametrize("left", ["complete", "for more epochs", "no result", "interrupted"])
def test_a_run_is_not_continued_after_a_slide_has_changed_sides(cohort, tmp_path, left):
    with pytest.raises(Stopped) if left == "interrupted" else contextlib.nullcontext():
        stop = stop_at(1) if left == "interrupted" else None
        run(cohort, tmp_path / "run", stop, train__epochs=2)
    if left == "no result":
        (tmp_path / "run/fold0/result.json").unlink()
    splits = cohort.root / "splits"
    sides = {
        side: (splits / f"{side}_0.csv").read_text().splitlines() for side in ("train", "test")
    }
    sides["test"].append(sides["train"].pop())  # the network has seen this slide
    for side, lines in sides.items():
        (splits / f"{side}_0.csv").write_text("\n".join(lines) + "\n")
    epochs = 3 if left == "for more epochs" else 2
    with pytest.raises(BadConfig, match=r"fold0: trained on other inputs \(test_slides, train_sli"):
        run(cohort, tmp_path / "run", train__epochs=epochs)
    if left == "complete":
        (result,) = run(cohort, tmp_path / "run", overwrite=True, train__epochs=1)
        assert list(result.test_pearson) == ["A", "D"]


def test_a_loss_that_explodes_ends_the_run_and_keeps_the_last_good_state(cohort, tmp_path):
    run(cohort, tmp_path / "run", train__epochs=1)
    good = sha256(tmp_path / "run" / WEIGHTS)
    with pytest.raises(Diverged, match=r"epoch 1, step \d+: loss .*train.lr"):
        run(cohort, tmp_path / "other", train__lr=1e30)
    assert not (tmp_path / "other/fold0/checkpoint").exists()
    assert sha256(tmp_path / "run" / WEIGHTS) == good


def test_several_data_sets_get_a_folder_each(cohort, tmp_path):
    root = tmp_path / "root"
    for name in ("D1", "D2"):
        shutil.copytree(cohort.root, root / name)
        shutil.copytree(cohort.embeddings / "cohort", tmp_path / "emb" / name)
    values = {"data.source_dataroot": str(root), "data.embed_dataroot": str(tmp_path / "emb")}
    config = load_config(None, {**cohort.settings, **values, "train.epochs": 1})
    train(config, tmp_path / "run")
    for name in ("D1", "D2"):
        assert (tmp_path / "run" / name / "fold0/checkpoint").is_dir()
        assert (tmp_path / "run" / name / "results_kfold.json").exists()


def test_bad_data_are_refused_before_anything_is_trained(cohort, tmp_path):
    with pytest.raises(BadInput, match=r"A.h5|36 spots.*40 neighbours"):
        run(cohort, tmp_path / "k", graph__n_neighbors=40)
    with pytest.raises(BadConfig, match=r"\[7\] not in cohort, which has folds 0, 1, 2, 3"):
        run(cohort, tmp_path / "f", train__folds=[7])
    write_slide(cohort.embedding("B"), None, 36, seed=1, channels=7)
    with pytest.raises(BadInput, match=r"widths \[7, 10\]"):
        run(cohort, tmp_path / "w")
    with pytest.raises(BadInput, match="stflow-graph embed"):
        run(cohort, tmp_path / "e", data__encoder="other")
    write_slide(cohort.embedding("B"), None, 36, seed=1, encoder="another")
    with pytest.raises(BadInput, match=r"encoder: found 'another', expected 'toy'.*--encoder"):
        run(cohort, tmp_path / "other")
    write_slide(cohort.embedding("B"), None, 36, seed=1)
    cohort.expression("A").write_text("no")  # the test slide
    with pytest.raises(BadInput, match="A.h5ad"):
        run(cohort, tmp_path / "t")
    genes = cohort.root / "var_50genes.json"
    genes.write_text(json.dumps({"genes": ["G0", "G1"], "chosen_on": ["A", "B"]}))
    with pytest.raises(BadInput, match=r"chosen on: found 1 of 1 test slides.*'A'.*genes"):
        run(cohort, tmp_path / "g")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cohort", "embeddings"]


def test_a_damaged_state_is_refused_with_the_way_out(cohort, tmp_path):
    with pytest.raises(Stopped):
        run(cohort, tmp_path / "run", stop_at(1))
    state = tmp_path / "run/fold0/state-0.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"state-0.safetensors.*remove it"):
        run(cohort, tmp_path / "run")


def test_folds_with_gene_lists_of_their_own_share_one_table(cohort, tmp_path):
    (cohort.root / "var_50genes.json").unlink()
    for fold, genes in ((0, ["G0", "G1"]), (1, ["G1", "G2"])):
        (cohort.root / f"var_50genes_fold{fold}.json").write_text(json.dumps({"genes": genes}))
    run(cohort, tmp_path / "run", train__folds=[0, 1])
    rows = json.loads((tmp_path / "run/results_kfold.json").read_text())["pearson_corrs"]
    assert [row["name"] for row in rows] == ["G0", "G1", "G2"]
    assert [None in row["pearson_corrs"] for row in rows] == [True, False, True]
    checkpoint = load_checkpoint(tmp_path / "run/fold1/checkpoint")
    assert checkpoint.genes == ["G1", "G2"]
    assert checkpoint.provenance["gene_list"] == "var_50genes_fold1.json"
    assert checkpoint.provenance["protocol"].startswith("log1p | var_50genes_fold{fold}.json | ")


def test_the_table_has_all_folds_whoever_trained_them(cohort, tmp_path):
    def columns() -> list[list[float | None]]:
        rows = json.loads((tmp_path / "run/results_kfold.json").read_text())["pearson_corrs"]
        return [[None if v is None else round(v, 6) for v in row["pearson_corrs"]] for row in rows]

    together = run(cohort, tmp_path / "run", train__folds=[0, 1, 2])
    expected = columns()
    shutil.rmtree(tmp_path / "run")
    for fold in (2, 0, 1):  # as the jobs of an array end
        (alone,) = run(cohort, tmp_path / "run", train__folds=[fold])
        np.testing.assert_array_equal(alone.pearson, together[fold].pearson)
    assert columns() == expected
    assert {len(row) for row in expected} == {3}
    shutil.copytree(tmp_path / "run/fold0", tmp_path / "run/fold0_1")  # a user's copy
    (tmp_path / "run/fold2/result.json").write_text("{")
    run(cohort, tmp_path / "run", train__folds=[0])
    assert columns() == [row[:2] for row in expected]  # that of fold 2 names the damage


def test_a_fold_of_several_test_slides_is_scored_over_all_their_spots(cohort, tmp_path):
    splits = cohort.root / "splits"
    rows = (splits / "test_1.csv").read_text().splitlines()[1:]
    with (splits / "test_0.csv").open("a") as file:
        file.write(rows[0] + "\n")
    train_side = (splits / "train_0.csv").read_text().splitlines()
    (splits / "train_0.csv").write_text("\n".join(r for r in train_side if r not in rows) + "\n")
    (result,) = run(cohort, tmp_path / "run")
    assert list(result.test_pearson) == ["A", "B"]
    sample(tmp_path / "run", [cohort.embedding(s) for s in "AB"], tmp_path / "p")
    predicted = np.concatenate([read_prediction(tmp_path / f"p/{s}.h5ad").mean for s in "AB"])
    truth = np.concatenate(
        [load_slide(cohort.embedding(s), cohort.expression(s)).truth for s in "AB"]
    )
    expected = [np.corrcoef(p, t)[0, 1] for p, t in zip(predicted.T, truth.T, strict=True)]
    np.testing.assert_allclose(result.pearson, expected, atol=1e-5)
    table = json.loads((tmp_path / "run/results_kfold.json").read_text())
    assert table["mean_per_split"] == [pytest.approx(np.mean(expected), abs=1e-5)]


def test_a_single_slide_is_cut_into_parts_for_the_members(cohort, tmp_path):
    rows = (cohort.root / "splits/train_0.csv").read_text().splitlines()[:2]
    (cohort.root / "splits/train_0.csv").write_text("\n".join(rows) + "\n")
    (result,) = run(cohort, tmp_path / "run", train__members=2)
    assert len(result.best) == 2


def test_plain_regression_is_the_mean_of_the_flow_and_has_no_samples(cohort, tmp_path):
    for name, kind in (("flow", "spot"), ("plain", "none")):
        run(cohort, tmp_path / name, flow__kind=kind, train__members=2)
        sample(tmp_path / name, [cohort.embedding("A")], tmp_path / name / "p")
    flow, plain = (read_prediction(tmp_path / name / "p/A.h5ad") for name in ("flow", "plain"))
    # the flow is fitted after the encoder, and starts from its estimate
    np.testing.assert_allclose(flow.mean, plain.mean, atol=1e-6)
    with pytest.raises(BadConfig, match="trained as a regression has no samples"):
        sample(
            tmp_path / "plain",
            [cohort.embedding("A")],
            tmp_path / "q",
            SampleSettings(n_samples=2),
        )
    with pytest.raises(BadConfig, match=r"flow.kind = 'none': the transformer has"):
        run(cohort, tmp_path / "t", denoiser__name="transformer", flow__kind="none")


def test_what_was_learned_of_each_gene_goes_with_the_checkpoint(cohort, tmp_path):
    run(cohort, tmp_path / "run", train__members=4, train__epochs=1, flow__kind="spot")
    folder = tmp_path / "run/fold0/checkpoint"
    calibration = load_checkpoint(folder).calibration
    assert np.isfinite(calibration.spread).all()
    assert np.isfinite(calibration.pearson).all()
    assert np.isfinite(calibration.pearson_sd).all()
    checkpoint = load_checkpoint(folder)
    assert checkpoint.n_members == 3  # one a training slide
    assert checkpoint.provenance["held_out_slides"] == ["B", "C", "D"]
    weights = checkpoint.weights
    for i in range(3):  # a slide's states are read as within those of training
        low, high = (weights[f"members.{i}.flow.{end}"] for end in ("lowest", "highest"))
        assert (low < high).all()
        assert (high - low).max() < 1e3
    assert "## Expected accuracy per gene" in (folder / "README.md").read_text()
    with (folder / "calibration.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["gene"] for row in rows] == [f"G{i}" for i in range(6)]
    assert [float(row["pearson"]) for row in rows] == calibration.pearson.tolist()
    sample(tmp_path / "run", [cohort.embedding("A")], tmp_path / "p")
    var = anndata.read_h5ad(tmp_path / "p/A.h5ad").var
    np.testing.assert_array_equal(var["expected_pearson"], calibration.pearson)
    read = read_prediction(tmp_path / "p/A.h5ad").expected_pearson
    np.testing.assert_array_equal(read, calibration.pearson)
    # a table that was edited is refused like every other file
    (folder / "calibration.csv").write_text("gene,spread,pearson,pearson_sd\n")
    with pytest.raises(BadInput, match=r"calibration.csv: sha256"):
        load_checkpoint(folder)


def test_samples_come_from_a_field_of_the_slides_held_out(cohort, tmp_path):
    run(cohort, tmp_path / "run", train__members=4, train__epochs=1, train__folds=[0])
    checkpoint = load_checkpoint(tmp_path / "run/fold0/checkpoint")
    assert len(checkpoint.field.places) == 3
    assert np.isnan(checkpoint.calibration.spread).all()
    sample(tmp_path / "run", [cohort.embedding("A")], tmp_path / "p", SampleSettings(4))
    read = read_prediction(tmp_path / "p/A.h5ad")
    assert read.samples.std(axis=0).mean() > 0.01
    assert read.samples.min() >= 0
    assert read.provenance["flow"] == "field"
    assert not {"sampler", "prior", "n_sample_steps"} & read.provenance.keys()
    # another field is another model, though its mean is the same
    checkpoint.field.scale.mul_(3)
    save_checkpoint(tmp_path / "run/fold0/checkpoint", checkpoint)
    (done,) = sample(tmp_path / "run", [cohort.embedding("A")], tmp_path / "p", SampleSettings(4))
    assert not done.up_to_date
    again = read_prediction(tmp_path / "p/A.h5ad")
    np.testing.assert_array_equal(again.mean, read.mean)
    assert np.abs(again.samples - read.samples).max() > 0.01


def test_two_regions_a_step_share_its_spots():
    settings = {"data.source_dataroot": "a", "data.embed_dataroot": "b", "train.batch_size": 2}
    config = load_config(None, {**settings, "train.max_spots_per_batch": 100})
    assert config.train.max_region_spots == 50


def test_patients_on_both_sides_are_refused_unless_allowed(cohort, tmp_path):
    (cohort.root / "patients.csv").write_text("id,patient\nA,P1\nB,P1\nC,P2\nD,P2\n")
    with pytest.raises(BadInput, match=r"\['P1'\] also in train_0.csv"):
        run(cohort, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert run(cohort, tmp_path / "run", data__allow_patient_overlap=True)


def test_slides_may_name_their_genes_otherwise(cohort, tmp_path, caplog):
    (plain,) = run(cohort, tmp_path / "plain")
    for slide in "ABCD":
        adata = anndata.read_h5ad(cohort.expression(slide))
        adata.var_names = [f"ENSG0000014151{i}.{ord(slide)}" for i in range(6)]
        adata.write_h5ad(cohort.expression(slide))
    with pytest.raises(BadInput, match="asked for symbols, the file has Ensembl IDs"):
        run(cohort, tmp_path / "run")
    table = tmp_path / "names.csv"
    rows = [f"G{i},ENSG0000014151{i}" for i in range(6)]
    table.write_text("\n".join(["gene,alias", *rows]) + "\n")
    (matched,) = run(cohort, tmp_path / "run", data__gene_aliases=str(table))
    np.testing.assert_array_equal(matched.pearson, plain.pearson)
    assert caplog.text.count("6 of 6 genes matched by alias") == 4  # once a slide
    provenance = json.loads((matched.folder / "provenance.json").read_text())
    assert provenance["inputs"]["gene_aliases"] == sha256(table)


def embedded_in_part(cohort, slide, n):
    """Write the slide's embeddings again, of its first ``n`` spots."""
    file = read_embeddings(cohort.embedding(slide))
    rows = slice(0, n)
    with write_embeddings(
        cohort.embedding(slide), file.barcodes[rows], file.coords[rows], CHANNELS, file.attrs
    ) as writer:
        writer.append(file.x[rows])


def test_a_slide_whose_spots_mostly_have_no_embeddings_is_refused(cohort, tmp_path, caplog):
    embedded_in_part(cohort, "B", 15)
    embedded_in_part(cohort, "C", 18)
    with pytest.raises(BadInput, match=r"B.h5ad: embeddings: found 15 of 36 measured spots"):
        run(cohort, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run(cohort, tmp_path / "run", data__allow_missing_spots=True, train__epochs=1)
    assert "21 of 36 measured spots (58%) have no embeddings" in caplog.text
    assert "18 of 36 measured spots (50%) have no embeddings" in caplog.text


def test_the_sizes_of_patches_of_different_sizes_are_stored(cohort, tmp_path):
    for slide, edge in zip("BCD", (112.0, 112.00001, 256.0), strict=True):
        file = read_embeddings(cohort.embedding(slide))
        attrs = {**file.attrs, "patch_size_level0": edge}
        with write_embeddings(
            cohort.embedding(slide), file.barcodes, file.coords, CHANNELS, attrs
        ) as writer:
            writer.append(file.x)
    changes = {"train__folds": [0], "train__epochs": 1, "train__members": 1}
    with pytest.raises(BadInput, match="patches: found 256 µm.*--allow-patch-size"):
        run(cohort, tmp_path / "run", **changes)
    run(cohort, tmp_path / "run", data__allow_patch_size=True, **changes)
    provenance = load_checkpoint(tmp_path / "run/fold0/checkpoint").provenance
    assert provenance["patch_um_all"] == [112, 256]
    assert provenance["patch_um"] == pytest.approx(112)


def test_ensembl_ids_and_symbols_are_both_in_predictions(cohort, tmp_path):
    ids = [f"ENSG{i:011d}" for i in range(6)]
    for slide in cohort.slides:
        adata = anndata.read_h5ad(cohort.expression(slide))
        adata.var["gene_ids"] = ids if slide == "C" else [*ids[:3], "", "", ""]
        adata.write_h5ad(cohort.expression(slide))
    run(cohort, tmp_path / "run")
    settings = SampleSettings(genes=("G4", "G0"))
    (done,) = sample(tmp_path / "run", [cohort.embedding("A")], tmp_path / "out", settings)
    var = anndata.read_h5ad(done.path).var
    assert list(var["gene_ids"]) == [ids[4], ids[0]]
    assert list(var["gene_symbols"]) == ["G4", "G0"]
