import dataclasses
import json
import shutil

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from artefacts import resealed
from foreign import coords_attrs, features, grid, save_h5, write_clam, write_trident
from PIL import Image
from torch import nn
from toy import CHANNELS, GENES, write_cohort, write_slide

from stflow_graph import api
from stflow_graph.config import load_config
from stflow_graph.encoders import Encoder, PatchTransform
from stflow_graph.errors import BadConfig, BadInput, SomeFailed
from stflow_graph.inference import inputs as inputs_module
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.io.atomic import write_json
from stflow_graph.io.embeddings import read_attrs
from stflow_graph.io.expression import write_expression
from stflow_graph.io.h5ad import read_h5ad
from stflow_graph.io.predictions import read_prediction
from stflow_graph.io.sealed_json import JSON_SEAL, seal_json
from stflow_graph.preparation.embedding import embed_file
from stflow_graph.stages.evaluate import evaluate
from stflow_graph.stages.sample import sample
from stflow_graph.stages.train import train


@pytest.fixture(scope="module", params=["graph", "transformer"])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    cohort = write_cohort(folder)
    settings = {**cohort.settings, "denoiser.name": request.param, "train.folds": [0, 1]}
    train(load_config(None, {**settings, "train.epochs": 1}), folder / "run")
    # sampling must not need the truth, nor anything else of the cohort
    shutil.rmtree(cohort.root)
    shutil.rmtree(cohort.embeddings)
    return folder / "run"


@pytest.fixture
def run(trained, cohort, tmp_path):
    shutil.rmtree(cohort.root)
    return shutil.copytree(trained, tmp_path / "run")


def test_rows_barcodes_and_genes_are_those_of_the_input(run, cohort, tmp_path):
    (done,) = sample(run, [cohort.embedding("B")], tmp_path / "out")
    found = read_prediction(done.path)
    with h5py.File(cohort.embedding("B")) as file:
        assert found.barcodes == [b.decode() for b in file["barcodes"][:, 0]]
        np.testing.assert_array_equal(found.coords, file["coords"])
    assert found.genes == GENES
    assert (found.slide, found.provenance["fold"], done.held_out) == ("B", 1, True)
    assert found.provenance["train_slides"] == ["A", "C", "D"]


def test_same_seed_same_bytes_and_other_seeds_differ(run, cohort, tmp_path):
    files = [cohort.embedding("A")]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        sample(run, files, tmp_path / name, SampleSettings(seed=seed, n_samples=2))
    a, b, c = ((tmp_path / name / "A.h5ad").read_bytes() for name in "abc")
    assert a == b
    found = [read_prediction(tmp_path / name / "A.h5ad").samples for name in "ac"]
    assert not np.array_equal(*found)
    assert b != c


def test_the_mean_is_what_is_expected_and_samples_spread_about_it(run, cohort, tmp_path):
    files = [cohort.embedding("A")]
    sample(run, files, tmp_path / "many", SampleSettings(n_samples=64))
    sample(run, files, tmp_path / "one")
    many, one = (read_prediction(tmp_path / name / "A.h5ad") for name in ("many", "one"))
    assert many.samples.shape == (64, 36, len(GENES))
    assert one.samples is None
    if many.provenance["denoiser"] == "transformer":  # it knows no more than its samples
        np.testing.assert_allclose(many.mean, many.samples.mean(0), atol=1e-4)
        np.testing.assert_allclose(many.samples[0], one.mean, atol=1e-6)
        return
    np.testing.assert_array_equal(many.mean, one.mean)  # the graph is run once, without noise
    assert (many.samples >= 0).all()
    shift = (many.samples.mean(0) - many.mean) / many.samples.std(0)
    assert np.abs(shift).mean() < 1  # the flow spreads about the mean, but is cut at 0
    assert (many.samples.std(0) > 0.05).all()


def test_the_order_of_spots_plays_no_part(run, cohort, tmp_path):
    order = np.random.default_rng(0).permutation(36)
    shuffled = tmp_path / "shuffled" / "A.h5"
    shuffled.parent.mkdir()
    shutil.copy(cohort.embedding("A"), shuffled)
    with resealed(shuffled) as file:
        for key in ("embeddings", "coords", "barcodes"):
            file[key][...] = file[key][()][order]
    sample(run, [cohort.embedding("A")], tmp_path / "a")
    sample(run, [shuffled], tmp_path / "b")
    a, b = (read_prediction(tmp_path / name / "A.h5ad") for name in "ab")
    assert b.barcodes == [a.barcodes[i] for i in order]
    np.testing.assert_allclose(a.mean[order], b.mean, atol=2e-4)


def test_slides_do_not_depend_on_their_company(run, cohort, tmp_path):
    sample(run, [cohort.embedding(s) for s in "ABC"], tmp_path / "all")
    sample(run, [cohort.embedding("C")], tmp_path / "alone")
    assert (tmp_path / "all/C.h5ad").read_bytes() == (tmp_path / "alone/C.h5ad").read_bytes()


def test_what_is_there_is_left_and_told(run, cohort, tmp_path):
    files = [cohort.embedding("A")]
    told = []
    for overwrite in (False, False, True):
        sample(run, files, tmp_path / "out", overwrite=overwrite, report=told.append)
    assert [t.up_to_date for t in told] == [False, True, False]
    (done,) = sample(run, files, tmp_path / "out", SampleSettings(seed=5))
    assert not done.up_to_date


def test_folders_folds_and_checkpoints_can_be_given(run, cohort, tmp_path):
    folder = cohort.embedding("A").parent
    assert len(sample(run, [folder], tmp_path / "out")) == 4
    (done,) = sample(run, [cohort.embedding("A")], tmp_path / "b", SampleSettings(fold=1))
    assert (done.fold, done.held_out) == (1, False)
    sample(run / "fold0", [cohort.embedding("A")], tmp_path / "c")
    sample(run / "fold0/checkpoint", [cohort.embedding("A")], tmp_path / "c")
    with pytest.raises(BadConfig, match="fold 7 is not there; it has 0, 1"):
        sample(run, [folder], tmp_path / "d", SampleSettings(fold=7))


def test_embeddings_that_do_not_fit_are_refused(run, cohort, tmp_path):
    write_slide(tmp_path / "W.h5", None, 36, 0, channels=7)
    with pytest.raises(BadConfig, match=r"W.h5.*'toy' with 7 channels.*'toy' with 10"):
        sample(run, [tmp_path / "W.h5"], tmp_path / "out")
    with resealed(cohort.embedding("A")) as file:
        file.attrs["encoder"] = "uni"
    with pytest.raises(BadConfig, match=r"'uni' with 10 channels.*--encoder toy"):
        sample(run, [cohort.embedding("A")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("magnification", [40, None])
def test_a_grid_of_trident_gives_expression_at_the_centres(run, tmp_path, magnification):
    corners = grid()
    attrs = coords_attrs(level0_magnification=magnification)
    path = write_trident(
        tmp_path / "features_new" / "T.h5", corners, features(len(corners), CHANNELS), "new", attrs
    )
    (done,) = sample(run, [path.parent], tmp_path / "out")
    found = read_prediction(done.path)
    np.testing.assert_array_equal(found.coords, corners + 256)
    assert found.barcodes[0] == "512x0"
    assert found.mean.shape == (len(corners), len(GENES))
    assert np.ptp(found.mean, axis=0).min() > 0
    expected = (0.25, True) if magnification else (None, False)
    stored = found.provenance
    assert (stored["um_per_px"], stored["um_per_px_estimated"]) == expected
    assert sample(run, [path], tmp_path / "out")[0].up_to_date


def test_patches_of_hest_give_expression_at_the_spots_centres(run, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (36, 8, 8, 3), dtype=np.uint8)
    centres = rng.integers(300, 4000, (36, 2))
    barcodes = [f"{i}x0" for i in range(36)]
    save_h5(  # HEST's corners lie half a patch up and left of obsm["spatial"]
        tmp_path / "hest" / "patches" / "H.h5",
        {
            "img": images,
            "coords": centres - 112,
            "barcode": np.array(barcodes, dtype="S").reshape(-1, 1),
        },
        {"img": {"patch_size_src": 224, "patch_size_target": 8, "pixel_size": 0.5}},
    )
    counts = sp.csr_matrix(np.ones((36, len(GENES))))
    adata = tmp_path / "hest" / "adata" / "H.h5ad"
    write_expression(adata, counts, barcodes, GENES, centres, um_per_px=0.5)
    encoder = Encoder(
        "toy",
        nn.Identity(),
        CHANNELS,
        PatchTransform(8, mean=(0.0,) * 3, std=(1.0,) * 3),
        "0" * 64,
        lambda x: x[:, 0, 0, :1] * torch.ones(CHANNELS),
    )
    embedded = tmp_path / "embeddings" / "H.h5"
    embed_file(tmp_path / "hest" / "patches" / "H.h5", embedded, encoder)
    assert read_attrs(embedded)["convention"] == "centre"
    adata.unlink()  # sampling has no access to the truth
    (done,) = sample(run, [embedded], tmp_path / "out")
    np.testing.assert_array_equal(read_prediction(done.path).coords, centres)


def test_clam_gives_the_same_from_either_of_its_files(run, tmp_path):
    corners = grid()
    tensor = write_clam(tmp_path / "clam", "S", corners, features(len(corners), CHANNELS))
    sample(run, [tensor.parent], tmp_path / "a")
    sample(run, [tmp_path / "clam" / "h5_files"], tmp_path / "b")
    a, b = (read_prediction(tmp_path / name / "S.h5ad") for name in "ab")
    np.testing.assert_array_equal(a.mean, b.mean)
    np.testing.assert_array_equal(a.coords, corners + 256)


def test_features_of_another_known_encoder_are_refused(run, tmp_path):
    corners = grid()
    path = write_trident(tmp_path / "T.h5", corners, features(len(corners), CHANNELS), "hoptimus0")
    with pytest.raises(BadConfig, match=r"'h_optimus_0' with 10 channels, expected .*'toy'"):
        sample(run, [path], tmp_path / "out")


def test_a_slide_with_too_few_spots_is_refused(run, tmp_path):
    write_slide(tmp_path / "S.h5", None, 4, 0)
    with pytest.raises(BadInput, match=r"S.h5: spots: found 4 spots.*4 neighbours"):
        sample(run, [tmp_path / "S.h5"], tmp_path / "out")


def test_one_bad_slide_of_several_does_not_stop_the_others(run, cohort, tmp_path):
    (tmp_path / "bad.h5").write_text("no")
    files = [tmp_path / "bad.h5", cohort.embedding("A")]
    with pytest.raises(SomeFailed, match=r"1 of 2 slides failed: bad: .*signature"):
        sample(run, files, tmp_path / "out")
    assert (tmp_path / "out/A.h5ad").exists()


def test_a_name_that_no_file_can_have_does_not_stop_the_others(run, cohort, tmp_path):
    folder = cohort.embedding("A").parent
    shutil.copy(cohort.embedding("A"), folder / "-x.h5")
    with pytest.raises(SomeFailed, match="1 of 5 slides failed: -x: .*slide name: found '-x'"):
        sample(run, [folder], tmp_path / "out")
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == list("ABCD")
    with pytest.raises(BadInput, match="slide name: found '-x'"):
        sample(run, [folder / "-x.h5"], tmp_path / "alone")
    assert not (tmp_path / "alone").exists()


def test_one_image_is_not_that_of_several_slides(run, cohort, tmp_path):
    settings = SampleSettings(image=tmp_path / "he.png")
    files = [cohort.embedding(name) for name in "AB"]
    with pytest.raises(BadConfig, match="image: one file for 2 slides. Fix: give a folder of"):
        sample(run, files, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_bad_sources_are_refused(run, cohort, tmp_path):
    files = [cohort.embedding("A")]
    with pytest.raises(BadInput, match="stflow-graph train"):
        sample(tmp_path / "none", files, tmp_path / "out")
    with pytest.raises(BadInput, match="no .h5"):
        sample(run, [run], tmp_path / "out")
    with pytest.raises(BadInput, match=r"\['A'\] twice"):
        sample(run, files * 2, tmp_path / "out")
    model = run / "fold0/checkpoint/model.safetensors"
    model.write_bytes(model.read_bytes()[:-4] + b"0000")
    with pytest.raises(BadInput, match=r"model.safetensors: sha256"):
        sample(run, files, tmp_path / "out")


@pytest.mark.parametrize(
    "changes",
    [
        {"denoiser.conv": "stflow", "denoiser.global_attention": "none"},
        {"denoiser.conv": "frame_averaged", "flow.kind": "graph"},
        {"denoiser.conv": "pyg:GENConv", "denoiser.global_attention": "pyg:PolynormerAttention"},
    ],
    ids=str,
)
def test_every_kind_of_graph_denoiser_trains_and_samples(cohort, tmp_path, changes):
    train(load_config(None, {**cohort.settings, **changes, "train.epochs": 1}), tmp_path / "run")
    (done,) = sample(tmp_path / "run", [cohort.embedding("B")], tmp_path / "out")
    assert np.isfinite(read_prediction(done.path).mean).all()


def test_tiles_change_no_prediction_of_a_graph_in_every_step(cohort, tmp_path, monkeypatch):
    settings = {**cohort.settings, "flow.kind": "graph", "train.epochs": 1}
    train(load_config(None, settings), tmp_path / "run")
    sizes, real = [], inputs_module.view_of

    def view_of(data, tile_size, **options):
        sizes.append(tile_size)
        return real(data, tile_size, **options)

    monkeypatch.setattr(inputs_module, "view_of", view_of)
    found = []
    for size in (None, 5):
        drawing = SampleSettings(n_samples=2, tile_size=size)
        sample(tmp_path / "run", [cohort.embedding("A")], tmp_path / str(size), drawing)
        found.append(read_prediction(tmp_path / str(size) / "A.h5ad").samples)
    assert sizes == [None, 5]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_the_image_goes_with_the_prediction(run, cohort, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 255, (700, 800, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "A.png")
    files = [cohort.embedding("A")]
    with resealed(files[0]) as file:
        file["coords"][...] = file["coords"][()] + 20
    sample(run, files, tmp_path / "out")
    for image in (tmp_path / "images", tmp_path / "images" / "A.png"):
        told = sample(run, files, tmp_path / "out", SampleSettings(image=image))
        assert told[0].up_to_date == (image.suffix == ".png")  # the same image either way
        library = read_h5ad(told[0].path).uns["spatial"]["A"]
        np.testing.assert_array_equal(library["images"]["hires"], pixels)
        assert library["scalefactors"]["tissue_hires_scalef"] == 1
        assert 45 < library["scalefactors"]["spot_diameter_fullres"] < 60
    with monkeypatch.context() as patch:  # a slide that is there is not read and reduced again
        patch.setattr("stflow_graph.inference.settings.read_picture", None)
        assert sample(run, files, tmp_path / "out", SampleSettings(image=image))[0].up_to_date
    with pytest.raises(BadInput, match=r"B.jpg"):
        sample(run, [cohort.embedding("B")], tmp_path / "out", SampleSettings(image=image.parent))
    Image.fromarray(pixels[:100]).save(tmp_path / "images" / "A.png")
    before = told[0].path.read_bytes()
    with pytest.raises(BadInput, match="800 x 100 px.*spots outside"):
        sample(run, files, tmp_path / "out", SampleSettings(image=image))
    assert told[0].path.read_bytes() == before


@pytest.fixture(scope="module")
def observing(tmp_path_factory):
    """A run, and 12 spots of its test slide in two files: of all genes and of three."""
    folder = tmp_path_factory.mktemp("observing")
    cohort = write_cohort(folder)
    train(load_config(None, {**cohort.settings, "train.epochs": 1}), folder / "run")
    truth = read_h5ad(cohort.expression("A"))
    (folder / "observed").mkdir()
    truth[::3].copy().write_h5ad(folder / "observed" / "A.h5ad")
    truth[:, GENES[:3]].copy().write_h5ad(folder / "genes.h5ad")
    return cohort, folder


def test_measured_spots_inform_the_others_and_come_back(observing, tmp_path):
    cohort, folder = observing
    part = folder / "observed" / "A.h5ad"
    options = {"none": {}, "part": {"observed": part}, "folder": {"observed": folder / "observed"}}
    options["denoised"] = {"observed": part, "denoise_observed": True}
    options["genes"] = {"observed": folder / "genes.h5ad"}
    found = {}
    for name, chosen in options.items():
        settings = SampleSettings(n_samples=3, **chosen)
        (done,) = sample(folder / "run", [cohort.embedding("A")], tmp_path / name, settings)
        found[name] = read_prediction(done.path)
    truth = np.log1p(read_h5ad(cohort.expression("A")).X.toarray())
    part, denoised = found["part"], found["denoised"]
    for values in (part.mean, *part.samples):
        np.testing.assert_allclose(values[::3], truth[::3], rtol=1e-6)
    spots, genes = part.observed
    assert spots.nonzero()[0].tolist() == list(range(0, 36, 3))
    assert genes.all()
    assert found["none"].observed is None
    assert part.provenance["observed_spots"] == 12
    assert len(part.provenance["observed_values"]) == 64
    np.testing.assert_array_equal(found["folder"].mean, part.mean)
    # the others are informed, alike in both
    left = ~spots
    assert not np.isclose(part.mean[left], found["none"].mean[left]).all()
    np.testing.assert_array_equal(denoised.mean[left], part.mean[left])
    assert not np.isclose(denoised.mean[spots], truth[spots]).all(axis=0).any()
    spots, genes = found["genes"].observed
    assert (spots.all(), genes.tolist()) == (True, [True] * 3 + [False] * 3)
    np.testing.assert_allclose(found["genes"].mean[:, :3], truth[:, :3], rtol=1e-6)


def test_names_of_observed_genes_are_looked_up_in_the_users_table_alone(observing, tmp_path):
    cohort, folder = observing
    adata = read_h5ad(folder / "observed" / "A.h5ad")
    adata.var_names = [f"other{i}" for i in range(len(GENES))]
    adata.write_h5ad(tmp_path / "renamed.h5ad")
    table = tmp_path / "names.csv"
    table.write_text("gene,alias\n" + "".join(f"G{i},other{i}\n" for i in range(len(GENES))))
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    for file in run.glob("fold*/checkpoint/config.json"):  # a stranger's names this file
        content = json.loads(file.read_text())
        content["config"]["data"]["gene_aliases"] = str(table)
        del content[JSON_SEAL]
        write_json(file, seal_json(content))
    files, observed = [cohort.embedding("A")], tmp_path / "renamed.h5ad"
    with pytest.raises(BadInput, match="var_names"):
        sample(run, files, tmp_path / "no", SampleSettings(observed=observed))
    settings = SampleSettings(observed=observed, gene_aliases=table)
    (done,) = sample(run, files, tmp_path / "yes", settings)
    assert read_prediction(done.path).provenance["observed_genes"] == len(GENES)


def test_slides_without_a_file_of_the_folder_are_as_if_nothing_were_observed(observing, tmp_path):
    cohort, folder = observing
    settings = SampleSettings(observed=folder / "observed")
    files = [cohort.embedding("A"), cohort.embedding("B")]
    sample(folder / "run", files, tmp_path / "with", settings)
    sample(folder / "run", files, tmp_path / "without")
    with_, without = ((tmp_path / name / "B.h5ad").read_bytes() for name in ("with", "without"))
    assert with_ == without


def test_other_measurements_are_another_prediction(observing, tmp_path):
    cohort, folder = observing
    part, files, out = tmp_path / "part.h5ad", [cohort.embedding("A")], tmp_path / "out"
    shutil.copy(folder / "observed" / "A.h5ad", part)
    settings = SampleSettings(observed=part)
    assert not sample(folder / "run", files, out, settings)[0].up_to_date
    assert sample(folder / "run", files, out, settings)[0].up_to_date
    read_h5ad(cohort.expression("A"))[:9].copy().write_h5ad(part)
    assert not sample(folder / "run", files, out, settings)[0].up_to_date
    assert not sample(folder / "run", files, out)[0].up_to_date


def test_memory_gives_what_files_give(observing, tmp_path):
    cohort, folder = observing
    part = folder / "observed" / "A.h5ad"
    settings = SampleSettings(n_samples=2, observed=part)
    (done,) = sample(folder / "run", [cohort.embedding("A")], tmp_path / "out", settings)
    written = read_h5ad(done.path)
    model = api.SlideModel.from_pretrained(folder / "run")
    slide = api.Slide.from_hest(cohort.root, "A", embed_dataroot=cohort.embeddings, encoder="toy")
    found = api.sample(model, slide, n_samples=2, observed=read_h5ad(part))
    np.testing.assert_array_equal(found.X, written.X)
    np.testing.assert_array_equal(found.layers["sample_1"], written.layers["sample_1"])
    for name in ("obs", "var"):
        np.testing.assert_array_equal(
            getattr(found, name)["observed"], getattr(written, name)["observed"]
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flow.kind": "none"}, r"observed: .* flow.kind = 'none'. Fix:"),
        ({"flow.kind": "spot", "train.flow_steps": 2}, r"observed: .* flow.kind = 'spot'. Fix:"),
    ],
)
def test_only_a_field_is_informed(change, message, observing, tmp_path):
    cohort, folder = observing
    train(load_config(None, {**cohort.settings, "train.epochs": 1, **change}), tmp_path / "run")
    settings = SampleSettings(observed=folder / "observed" / "A.h5ad")
    with pytest.raises(BadConfig, match=message):
        sample(tmp_path / "run", [cohort.embedding("A")], tmp_path / "out", settings)
    assert not (tmp_path / "out" / "A.h5ad").exists()


def test_nothing_observed_has_nothing_to_denoise(observing, tmp_path):
    cohort, folder = observing
    settings = SampleSettings(denoise_observed=True)
    with pytest.raises(BadConfig, match=r"denoise_observed: nothing is observed. Fix:"):
        sample(folder / "run", [cohort.embedding("A")], tmp_path / "out", settings)


@pytest.mark.parametrize(
    ("observed", "scored", "note"),
    [
        ("observed/A.h5ad", (24, 6), "12 measured spots informed the others and are not scored"),
        ("genes.h5ad", (36, 3), "3 measured genes informed the others and are not scored"),
    ],
)
def test_eval_scores_what_was_not_measured(observed, scored, note, observing, tmp_path):
    cohort, folder = observing
    settings = SampleSettings(n_samples=2, observed=folder / observed)
    sample(folder / "run", [cohort.embedding("A")], tmp_path / "out", settings)
    found = evaluate([tmp_path / "out" / "A.h5ad"], cohort.root, n_bootstrap=10)
    (slide,) = found.slides
    assert (len(slide), len(slide.genes)) == scored
    assert slide.truth.shape == scored == slide.samples["graph"].shape[1:]
    assert slide.n_predicted == scored[0]
    assert any(note in line for line in found.notes)


def test_eval_of_what_was_all_measured_is_refused(observing, tmp_path):
    cohort, folder = observing
    settings = SampleSettings(observed=folder / "observed" / "A.h5ad")
    sample(folder / "run", [cohort.embedding("A")], tmp_path / "out", settings)
    truth = read_h5ad(folder / "observed" / "A.h5ad")
    with pytest.raises(BadInput, match=r"observed: found no spot or gene that was not measured"):
        evaluate([tmp_path / "out" / "A.h5ad"], {"A": truth}, n_bootstrap=10)


def test_eval_scores_the_larger_part_of_what_was_not_measured(observing, tmp_path):
    """Of all but two spots three genes are measured: the other genes are left."""
    cohort, folder = observing
    truth = read_h5ad(cohort.expression("A"))
    truth[:34, GENES[:3]].copy().write_h5ad(tmp_path / "most.h5ad")
    (tmp_path / "graph").mkdir()
    for name, observed in (("panel", tmp_path / "most.h5ad"), ("few", folder / "observed")):
        settings = SampleSettings(observed=observed)
        sample(folder / "run", [cohort.embedding("A")], tmp_path / name, settings)
    files = [tmp_path / name / "A.h5ad" for name in ("panel", "few")]
    (alone,) = evaluate(files[:1], cohort.root, n_bootstrap=10).slides
    assert (len(alone), alone.genes) == (36, GENES[3:])
    (both,) = evaluate(files, cohort.root, tmp_path / "eval", n_bootstrap=10).slides
    assert (len(both), both.genes) == (24, GENES[3:])
    assert "12 measured spots and 3 measured genes informed the others" in both.observed


@pytest.mark.parametrize("several", [False, True])
def test_a_file_is_of_one_slide_and_a_folder_has_one_for_some(several, observing, tmp_path):
    cohort, folder = observing
    files = [cohort.embedding(name) for name in "AB"]
    observed, error = folder / "observed" / "A.h5ad", BadConfig
    message = r"observed: one file for 2 slides. Fix: give a folder"
    if not several:
        files, error, message = files[1:], BadInput, r"observed: found no file of B, expected"
        observed = folder / "observed"
    with pytest.raises(error, match=message):
        sample(folder / "run", files, tmp_path / "out", SampleSettings(observed=observed))
    assert not (tmp_path / "out").exists()


def test_counts_at_the_place_of_a_prediction_are_not_replaced(observing, tmp_path):
    cohort, folder = observing
    out = tmp_path / "out"
    shutil.copytree(folder / "observed", out)
    before = (out / "A.h5ad").read_bytes()
    settings = SampleSettings(observed=out)
    with pytest.raises(BadInput, match=r"A.h5ad: output: found an .h5ad that is no prediction"):
        sample(folder / "run", [cohort.embedding("A")], out, settings)
    assert (out / "A.h5ad").read_bytes() == before
    sample(folder / "run", [cohort.embedding("A")], out, settings, overwrite=True)
    assert read_prediction(out / "A.h5ad").observed is not None


@pytest.mark.parametrize("n_places", [1, 4, 12])
def test_spots_at_few_places_are_informed(n_places, observing, tmp_path):
    cohort, folder = observing
    slide = api.Slide.from_hest(cohort.root, "A", embed_dataroot=cohort.embeddings, encoder="toy")
    slide = dataclasses.replace(slide, coords=slide.coords[np.arange(36) % n_places])
    model = api.SlideModel.from_pretrained(folder / "run")
    part = read_h5ad(folder / "observed" / "A.h5ad")
    del part.obsm["spatial"]
    found = api.sample(model, slide, n_samples=2, observed=part)
    assert np.isfinite(found.X).all()
    assert np.isfinite(found.layers["std"]).all()
