from __future__ import annotations

import dataclasses
import json
import re
import shutil
from unittest.mock import Mock

import anndata
import numpy as np
import pytest
from artefacts import read_embeddings, resealed
from foreign import tissue_on_glass, write_svs
from imaged import PATCH_PX, PATCH_UM, PATCHES, PITCH_UM, write_image, write_imaged
from PIL import Image
from toy import GENES, toy_encoder

from stflow_graph.data.load import load_slide
from stflow_graph.errors import BadConfig, BadInput, SomeFailed
from stflow_graph.images.reader import ImageReader
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.inference.slide_model import SlideModel
from stflow_graph.io.patches import open_patches
from stflow_graph.io.predictions import read_prediction
from stflow_graph.models.checkpoint import load_checkpoint, save_checkpoint
from stflow_graph.nn.pretrained import weights_of_member
from stflow_graph.parallel.parts import Part
from stflow_graph.platforms.source import SourceOptions
from stflow_graph.preparation.embedding import embed_file
from stflow_graph.preparation.engine import EmbedSettings
from stflow_graph.preparation.image_embedding import write_overlay
from stflow_graph.preparation.slide_places import slides_of
from stflow_graph.stages.embed import embed_from_image
from stflow_graph.stages.predict import (
    PredictSettings,
    encoder_of,
    estimate,
    models_of,
    predict,
)
from stflow_graph.stages.sample import sample
from stflow_graph.stages.tissue_grid import prepare_grid

SETTINGS = PredictSettings(patch_px=PATCH_PX)


@pytest.fixture(scope="module")
def imaged_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imaged")
    write_imaged(folder)
    return folder


@pytest.fixture
def imaged(imaged_files, tmp_path):
    shutil.copytree(imaged_files, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run(folder, *images, settings=SETTINGS, options=None, spots=None, **others):
    slides = [s for image in images for s in slides_of(folder / image, spots, options)]
    others.setdefault("encoder", toy_encoder())
    return predict(slides, folder / "run", folder / "out", settings=settings, **others)


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_an_image_becomes_a_prediction_and_nothing_else_stays(imaged):
    (done,) = run(imaged, "images/S3.svs")
    assert not done.replaced
    assert files(imaged / "out") == ["S3.h5ad", "overlays/S3.png", "report.html"]
    assert not (imaged / "out/embeddings").exists()
    adata = anndata.read_h5ad(done.path)
    assert (adata.n_obs, list(adata.var_names)) == (done.n_spots, GENES)
    assert done.n_spots > 100
    with Image.open(done.overlay) as overlay:
        assert overlay.size[0] >= 560
    provenance = read_prediction(done.path).provenance
    # sizes as in training
    assert provenance["patch_um"] == pytest.approx(PATCH_UM)
    assert provenance["grid"]["pitch_um"] == pytest.approx(PITCH_UM, rel=0.03)
    assert provenance["slide"] == "S3"
    assert adata.uns["spatial"]["S3"]["images"]["hires"].shape[2] == 3


def test_it_equals_prepare_embed_and_sample(imaged):
    """The four commands, with patches on the disk."""
    settings = dataclasses.replace(
        SETTINGS,
        pitch_um=PITCH_UM,
        patch_um=PATCH_UM,
        sample=SampleSettings(n_samples=4),
        keep_embeddings=True,
    )
    (done,) = run(imaged, "images/S3.svs", settings=settings)
    prepared = prepare_grid(
        imaged / "images/S3.svs",
        imaged / "root",
        name="S3",
        patch_px=PATCH_PX,
        patch_um=PATCH_UM,
        pitch_um=PITCH_UM,
        layout="hexagonal",
        min_tissue=SETTINGS.min_tissue,
    )
    embeddings = imaged / "by hand/S3.h5"
    embed_file(prepared.patches, embeddings, toy_encoder())
    (by_hand,) = sample(
        imaged / "run", [embeddings], imaged / "by hand/out", SampleSettings(n_samples=4)
    )
    ours, theirs = (read_embeddings(p) for p in (imaged / "out/embeddings/S3.h5", embeddings))
    np.testing.assert_array_equal(ours.x, theirs.x)
    assert ours.barcodes == theirs.barcodes
    one, other = read_prediction(done.path), read_prediction(by_hand.path)
    np.testing.assert_array_equal(one.mean, other.mean)
    np.testing.assert_array_equal(one.samples, other.samples)


def test_processes_that_read_give_the_same(imaged):
    options = (PATCHES, EmbedSettings(batch_size=16))
    (slide,) = slides_of(imaged / "images/S3.svs")
    embed_from_image(slide, imaged / "a/S3.h5", toy_encoder(), *options)
    workers = EmbedSettings(batch_size=16, workers=2)
    embed_from_image(slide, imaged / "b/S3.h5", toy_encoder(), PATCHES, workers)
    one, other = (read_embeddings(imaged / f"{folder}/S3.h5") for folder in "ab")
    np.testing.assert_array_equal(one.x, other.x)
    assert (imaged / "a/overlays/S3.png").is_file()
    assert embed_from_image(slide, imaged / "a/S3.h5", toy_encoder(), *options).up_to_date
    moved = dataclasses.replace(PATCHES, um=PATCH_UM + 1)
    with pytest.raises(BadInput, match="places_sha256"):
        embed_from_image(slide, imaged / "a/S3.h5", toy_encoder(), moved)


def test_what_is_complete_is_skipped_and_anything_else_is_not(imaged):
    run(imaged, "images/S3.svs")
    before = (imaged / "out/S3.h5ad").read_bytes()
    encoder = toy_encoder()
    encoder.forward = None  # it is not called again
    assert run(imaged, "images/S3.svs", encoder=encoder)[0].up_to_date
    assert (imaged / "out/S3.h5ad").read_bytes() == before
    for changes in ({"pitch_um": 30.0}, {"sample": SampleSettings(genes=("G1",))}):
        settings = dataclasses.replace(SETTINGS, **changes)
        (done,) = run(imaged, "images/S3.svs", settings=settings)
        assert (done.up_to_date, done.replaced) == (False, True)
    # and back: a prediction of one gene is not one of all
    assert not run(imaged, "images/S3.svs")[0].up_to_date
    (imaged / "out/overlays/S3.png").unlink()
    run(imaged, "images/S3.svs")
    assert (imaged / "out/overlays/S3.png").is_file()
    assert (imaged / "out/S3.h5ad").read_bytes() == before


def test_embeddings_of_an_interrupted_run_are_used(imaged, monkeypatch):
    def stopped(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("stflow_graph.stages.predict.sample_file", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(imaged, "images/S3.svs")
    assert files(imaged / "out") == ["embeddings/S3.h5", "overlays/S3.png"]
    encoder = toy_encoder()
    encoder.forward = None
    (done,) = run(imaged, "images/S3.svs", encoder=encoder)
    assert not done.up_to_date
    assert files(imaged / "out") == ["S3.h5ad", "overlays/S3.png", "report.html"]


def test_several_slides_and_one_that_fails(imaged):
    (imaged / "images/S1.svs").write_bytes(b"none")
    with pytest.raises(SomeFailed, match=r"1 of 4 slides failed: S1"):
        run(imaged, "images")
    page = (imaged / "out/report.html").read_text()
    assert "1 slide failed" in page
    assert re.search(r"S1</b>: .*S1.svs: content: found no image", page)
    assert sorted(p.name for p in (imaged / "out").glob("*.h5ad")) == [
        "S0.h5ad",
        "S2.h5ad",
        "S3.h5ad",
    ]
    with pytest.raises(BadInput, match=r"slide name: found \['S0'\] twice"):
        run(imaged, "images/S0.svs", "images/S0.svs")


def test_spots_of_a_table_and_those_outside(imaged, caplog):
    places = [(200 + 40 * (i % 8), 150 + 40 * (i // 8)) for i in range(48)]
    table = ["barcode,pixel_x,pixel_y", *(f"b{i},{x},{y}" for i, (x, y) in enumerate(places))]
    (imaged / "spots.csv").write_text("\n".join([*table, "out,901,5"]) + "\n")
    (done,) = run(imaged, "images/S3.svs", spots=imaged / "spots.csv")
    assert done.n_spots == 48
    assert "1 of 49 spots lie outside the image and are left out" in caplog.text
    assert list(anndata.read_h5ad(done.path).obs_names) == [f"b{i}" for i in range(48)]
    table += [f"o{i},950,5" for i in range(9)]
    (imaged / "spots.csv").write_text("\n".join(table) + "\n")
    with pytest.raises(BadInput, match="9 of 57 spots outside the image"):
        run(imaged, "images/S3.svs", spots=imaged / "spots.csv", overwrite=True)


def test_patches_and_embeddings_are_kept_on_request(imaged):
    settings = dataclasses.replace(SETTINGS, keep_patches=True, keep_embeddings=True)
    (done,) = run(imaged, "images/S3.svs", settings=settings)
    names = ["S3.h5ad", "embeddings/S3.h5", "overlays/S3.png", "patches/S3.h5", "report.html"]
    assert files(imaged / "out") == names
    with open_patches(imaged / "out/patches/S3.h5") as patches:
        assert (len(patches), patches.images.shape[1]) == (done.n_spots, PATCH_PX)


def test_genes_that_are_asked_for(imaged):
    settings = dataclasses.replace(SETTINGS, sample=SampleSettings(4, genes=("G4", "G0")))
    whole = dataclasses.replace(SETTINGS, sample=SampleSettings(4))
    (done,) = run(imaged, "images/S3.svs", settings=settings)
    some = read_prediction(done.path)
    everything = read_prediction(
        run(imaged, "images/S3.svs", settings=whole, overwrite=True)[0].path
    )
    assert some.genes == ["G4", "G0"]
    lower = dataclasses.replace(SETTINGS, sample=SampleSettings(4, genes=("g4", "G0")))
    assert run(imaged, "images/S3.svs", settings=lower)[0].up_to_date is False
    assert read_prediction(done.path).genes == ["G4", "G0"]
    assert run(imaged, "images/S3.svs", settings=settings)[0].up_to_date
    np.testing.assert_array_equal(some.mean, everything.mean[:, [4, 0]])
    np.testing.assert_array_equal(some.samples, everything.samples[:, :, [4, 0]])
    for genes, message in (
        (("G11",), r"does not have 'G11'; did you mean G1\?"),
        (("ERBB2",), "does not have 'ERBB2'; it has G0, G1, G2, ..."),
        (("G1", "g1"), "twice"),
    ):
        wrong = dataclasses.replace(SETTINGS, sample=SampleSettings(genes=genes))
        with pytest.raises(BadConfig, match=message):
            run(imaged, "images/S3.svs", settings=wrong, overwrite=True)


def test_bad_slides_are_refused_in_one_line(imaged):
    glass = np.full((300, 300, 3), 244, np.uint8)
    Image.fromarray(glass).save(imaged / "glass.png")
    with pytest.raises(BadInput, match=r"um_per_px: found none in the file.*--um-per-px"):
        run(imaged, "glass.png")
    with pytest.raises(BadInput, match="tissue: found 0 of"):
        run(imaged, "glass.png", options=SourceOptions(um_per_px=0.5))
    with pytest.raises(BadInput, match="No such file"):
        run(imaged, "absent.svs")
    # a scale that is wrong makes few spots, and few pixels
    Image.fromarray(tissue_on_glass()).save(imaged / "tissue.png")
    few = r"spots: found [1-4] spots?, as the image is .* mm at 0.06 µm/px.*check the scale"
    with pytest.raises(BadInput, match=few):
        run(imaged, "tissue.png", options=SourceOptions(um_per_px=0.06))
    with pytest.raises(BadInput, match="of 0.02 µm, expected at least one patch.*check the scale"):
        run(imaged, "tissue.png", options=SourceOptions(um_per_px=0.02))
    (imaged / "empty").mkdir()
    with pytest.raises(BadInput, match=r"found an empty folder, expected images \(.*one of: kit"):
        run(imaged, "empty")
    with pytest.raises(BadConfig, match="found 'other', expected the model's 'toy'"):
        run(imaged, "images/S3.svs", encoder=toy_encoder("other"))
    assert not list((imaged / "out").rglob("*.h5ad"))


def test_patches_of_another_size_are_refused_by_sample(imaged):
    (slide,) = slides_of(imaged / "images/S3.svs")
    larger = dataclasses.replace(PATCHES, um=4 * PATCH_UM)
    embed_from_image(slide, imaged / "large/S3.h5", toy_encoder(), larger)
    with pytest.raises(BadConfig, match=r"patches show 80 µm, those of training 20.*--allow-patch"):
        sample(imaged / "run", [imaged / "large/S3.h5"], imaged / "out")
    allowed = SampleSettings(allow_patch_size=True)
    sample(imaged / "run", [imaged / "large/S3.h5"], imaged / "out", allowed)


def test_an_estimate_says_what_would_be_done_and_does_nothing(imaged):
    slides = slides_of(imaged / "images")
    plan = estimate(slides, imaged / "run", imaged / "out", toy_encoder(), SETTINGS)
    lines = plan.lines()
    assert plan.seconds == pytest.approx(plan.n_spots / plan.patches_per_second)
    assert plan.n_bytes_meanwhile < plan.n_spots * 4 * 6
    assert [line.split(":")[0] for line in lines[:4]] == ["S0", "S1", "S2", "S3"]
    assert "patches of 20 µm" in lines[0]
    assert "patches at" in lines[4]
    assert "MB for outputs" in lines[5]
    assert not (imaged / "out").exists()
    assert encoder_of(models_of(imaged / "run", SETTINGS.sample)) == "toy"


def test_a_slide_read_anew_is_another(imaged):
    """The provenance tells images apart, whatever their names."""
    run(imaged, "images/S3.svs")
    write_image(imaged / "images/S3.svs", 17)
    assert not run(imaged, "images/S3.svs")[0].up_to_date
    stored = json.loads(anndata.read_h5ad(imaged / "out/S3.h5ad").uns["stflow_graph"]["provenance"])
    assert len(stored["image_sha256"]) == 64


def test_predictions_say_whether_their_slide_is_like_those_of_training(imaged):
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(imaged / "noise.png")
    (same,) = run(imaged, "images/S3.svs")
    (other,) = run(imaged, "noise.png", options=SourceOptions(um_per_px=0.5))
    assert same.in_range.slide
    assert same.in_range.share > 0.9
    assert not other.in_range.slide
    assert "patches" in other.in_range.warning()
    adata = anndata.read_h5ad(other.path)
    assert adata.obs["in_range"].dtype == bool
    assert adata.obs["in_range"].mean() == pytest.approx(other.in_range.share)
    assert ((adata.obs["range_distance"] <= 1) == adata.obs["in_range"]).all()
    stored = json.loads(adata.uns["stflow_graph"]["provenance"])["in_range"]
    assert stored == other.in_range.record()
    assert adata.varm["training_quantiles"].shape == (len(GENES), 11)
    assert (np.diff(adata.varm["training_quantiles"], axis=1) >= 0).all()
    # as of a run that has nothing to do
    assert run(imaged, "images/S3.svs")[0].in_range == same.in_range


def test_the_stain_of_a_slide_is_compared(imaged):
    pixels = np.asarray(Image.fromarray(tissue_on_glass()))
    write_svs(imaged / "images/S3.svs", pixels[..., [1, 0, 2]], "0.5")  # green for red
    (done,) = run(imaged, "images/S3.svs")
    assert done.in_range.stain is False
    assert "stain" in done.in_range.warning()


def test_in_memory_it_is_the_same(imaged):
    """SlideModel.predict and sample."""
    (slide,) = slides_of(imaged / "images/S3.svs")
    embed_from_image(slide, imaged / "S3.h5", toy_encoder(), PATCHES)
    (done,) = sample(imaged / "run", [imaged / "S3.h5"], imaged / "out")
    on_disk = anndata.read_h5ad(done.path)
    model = SlideModel.from_pretrained(imaged / "run")
    in_memory = model.predict(load_slide(imaged / "S3.h5"), SampleSettings(genes=("G2",)))
    np.testing.assert_array_equal(in_memory.X, on_disk[:, "G2"].X)
    for name in ("in_range", "range_distance"):
        np.testing.assert_array_equal(in_memory.obs[name], on_disk.obs[name])
    np.testing.assert_array_equal(
        in_memory.varm["training_quantiles"], on_disk[:, "G2"].varm["training_quantiles"]
    )


def test_uncertainty_has_a_part_between_members_and_a_part_within(imaged):
    settings = dataclasses.replace(SETTINGS, sample=SampleSettings(8), keep_embeddings=True)
    (done,) = run(imaged, "images/S3.svs", settings=settings)
    layers = anndata.read_h5ad(done.path).layers
    total, between, within = (layers[name] for name in ("std", "epistemic", "aleatoric"))
    np.testing.assert_allclose(within**2, np.maximum(total**2 - between**2, 0), atol=1e-5)
    # each member alone, as a checkpoint of one
    checkpoint = load_checkpoint(imaged / "run/all/checkpoint")
    slide = load_slide(imaged / "out/embeddings/S3.h5")
    means = []
    for i in range(2):
        weights = weights_of_member(checkpoint.weights, 2, i)
        member = dataclasses.replace(checkpoint, weights=weights, n_members=1)
        means.append(SlideModel(member).predict(slide).X)
    np.testing.assert_allclose(between, np.std(means, axis=0), atol=1e-5)
    assert between.max() > 0.01


def test_embeddings_left_by_a_failed_run_of_another_grid_are_replaced(imaged, monkeypatch):
    def stopped(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("stflow_graph.stages.predict.sample_file", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(imaged, "images/S3.svs", settings=dataclasses.replace(SETTINGS, pitch_um=35.0))
    (done,) = run(imaged, "images/S3.svs")
    assert done.n_spots > 100
    assert files(imaged / "out") == ["S3.h5ad", "overlays/S3.png", "report.html"]


def test_glass_is_out_of_range(imaged):
    Image.fromarray(np.full((300, 300, 3), 240, np.uint8)).save(imaged / "glass.png")
    settings = dataclasses.replace(SETTINGS, min_tissue=0.0)
    options = SourceOptions(um_per_px=0.5)
    (done,) = run(imaged, "glass.png", settings=settings, options=options)
    assert done.in_range.stain is False
    assert not done.in_range.slide


def test_genes_are_checked_before_anything_is_computed(imaged):
    settings = dataclasses.replace(SETTINGS, sample=SampleSettings(genes=("ABC",)))
    with pytest.raises(BadConfig, match="does not have 'ABC'"):
        run(imaged, "images/S3.svs", settings=settings)
    assert not (imaged / "out").exists()


def slides_on_page(folder):
    """Return the slides that the page shows, and what it says it does not show."""
    page = (folder / "out/report.html").read_text()
    left_out = re.search(r"Not shown, of the same folder: (.*?)\.</p>", page)
    return re.findall(r"<h2>(S\d)</h2>", page), left_out.group(1) if left_out else ""


def test_the_page_shows_the_models_other_predictions_of_the_folder(imaged):
    run(imaged, "images/S2.svs")
    run(imaged, "images/S3.svs")
    assert slides_on_page(imaged) == (["S3", "S2"], "")
    shutil.copy(imaged / "out/S2.h5ad", imaged / "out/copy.h5ad")
    (imaged / "out/none.h5ad").write_text("x")
    run(imaged, "images/S2.svs")
    assert slides_on_page(imaged) == (["S2", "S3"], "copy.h5ad (a copy), none.h5ad (no prediction)")
    with resealed(imaged / "out/S3.h5ad") as file:
        del file["X"]
    run(imaged, "images/S2.svs")
    assert slides_on_page(imaged)[1].startswith("S3.h5ad (damaged), copy.h5ad")
    run(imaged, "images/S3.svs", overwrite=True)
    # of another model, which is as good as the first but for its card
    checkpoint = load_checkpoint(imaged / "run/all/checkpoint")
    provenance = {**checkpoint.provenance, "dataset": "other"}
    other = dataclasses.replace(checkpoint, provenance=provenance)
    save_checkpoint(imaged / "run/all/checkpoint", other)
    (imaged / "out/none.h5ad").unlink()
    (imaged / "out/copy.h5ad").unlink()
    run(imaged, "images/S2.svs")
    assert slides_on_page(imaged) == (["S2"], "S3.h5ad (of another model)")
    # a part has a page of its own slides
    run(imaged, "images", share=Part(1, 1))
    page = (imaged / "out/report-1-of-1.html").read_text()
    assert re.findall(r"<h2>(S\d)</h2>", page) == ["S0", "S1", "S2", "S3"]
    assert "Not shown" not in page


def test_the_model_of_all_slides_is_taken_for_new_ones(imaged):
    """Also for a slide that one of the run's folds has held out."""
    checkpoint = load_checkpoint(imaged / "run/all/checkpoint")
    for number in (0, 1):
        provenance = {**checkpoint.provenance, "fold": number, "test_slides": [f"S{number + 2}"]}
        fold = dataclasses.replace(checkpoint, provenance=provenance)
        save_checkpoint(imaged / f"run/fold{number}/checkpoint", fold)
    assert run(imaged, "images/S3.svs")[0].fold is None
    one = dataclasses.replace(SETTINGS, sample=SampleSettings(fold=1))
    assert run(imaged, "images/S3.svs", settings=one)[0].fold == 1
    shutil.rmtree(imaged / "run/all")
    assert run(imaged, "images/S3.svs")[0].fold == 1


def test_the_checkpoint_is_read_once(imaged, monkeypatch):
    read = Mock(side_effect=load_checkpoint)
    monkeypatch.setattr("stflow_graph.inference.sampling.load_checkpoint", read)
    models = models_of(imaged / "run", SETTINGS.sample)
    assert encoder_of(models) == "toy"
    (slide,) = slides_of(imaged / "images/S3.svs")
    predict([slide], models, imaged / "out", toy_encoder(), SETTINGS)
    assert read.call_count == 1


def test_warnings_of_a_slide_are_kept_with_its_prediction(imaged, caplog):
    rng = np.random.default_rng(0)
    places = rng.uniform((10, 560), (890, 690), (60, 2))  # glass below the tissue
    table = ["barcode,pixel_x,pixel_y", *(f"b{i},{x},{y}" for i, (x, y) in enumerate(places))]
    (imaged / "spots.csv").write_text("\n".join(table) + "\n")
    (done,) = run(imaged, "images/S3.svs", spots=imaged / "spots.csv")
    (warning,) = done.warnings
    assert re.fullmatch(r"(only )?\d+% of the spots lie on tissue.*: see the overlay", warning)
    assert warning in caplog.text
    assert f"S3</b>: {warning}" in (imaged / "out/report.html").read_text()
    again = run(imaged, "images/S3.svs", spots=imaged / "spots.csv")[0]
    assert (again.up_to_date, again.warnings) == (True, (warning,))
    assert run(imaged, "images/S3.svs")[0].warnings == ()


def test_the_whole_image_is_made_small_once(imaged, monkeypatch):
    """For the grid; the picture of its spots is read where these are."""
    boxes = []
    read = ImageReader.read_overview

    def counted(self, shrinkage, box=None):
        boxes.append(box)
        return read(self, shrinkage, box)

    monkeypatch.setattr(ImageReader, "read_overview", counted)
    (slide,) = slides_of(imaged / "images/S3.svs")
    with slide.open() as image:
        places = slide.places(image, PATCH_UM, PATCHES.grid)
        write_overlay(slide, image, places, imaged / "S3.png")
    assert [box is None for box in boxes] == [True, False]
