import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from stflow_graph.data.genes import read_gene_list
from stflow_graph.data.splits import find_datasets
from stflow_graph.errors import BadInput
from stflow_graph.io.atomic import sha256
from stflow_graph.io.expression import read_expression
from stflow_graph.io.patches import CENTRE, open_patches
from stflow_graph.simulation import histology
from stflow_graph.simulation.cohort import SimulatedCohort, simulate_cohort
from stflow_graph.simulation.fields import PATCH, UM_PER_PX
from stflow_graph.simulation.tissue import neighbour_means


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): sha256(file) for file in files}


def small(out: Path, **options) -> SimulatedCohort:
    return simulate_cohort(out, **{"n_slides": 2, "n_spots": 6, "patch_size": 16, **options})


@pytest.fixture
def _plain_tissue(monkeypatch):
    """Draw from textures of 64 px, which are made faster."""
    monkeypatch.setattr(histology, "_TEXTURE", 64)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> SimulatedCohort:
    out = tmp_path_factory.mktemp("simulated") / "cohort"
    return simulate_cohort(out, n_slides=6, n_spots=50, patch_size=32)


def test_layout_is_read_by_our_readers(cohort):
    (dataset,) = find_datasets(cohort.path)
    genes = read_gene_list(dataset.gene_list_path("var_50genes.json", dataset.folds()[0]))
    assert len(genes) == 50
    assert [sample.id for sample in dataset.samples()] == [slide.id for slide in cohort.slides]
    for sample in dataset.samples():
        expression = read_expression(sample.expr_path, genes)
        with open_patches(sample.patches_path) as patches:
            assert patches.images.shape == (50, 32, 32, 3)
            assert patches.barcodes == expression.barcodes
            assert (patches.convention, patches.um_per_px) == (CENTRE, UM_PER_PX)
            np.testing.assert_array_equal(patches.coords, expression.coords)
        assert expression.um_per_px == UM_PER_PX
        assert expression.true_mean.shape == expression.counts.shape == (50, 50)
        assert expression.true_mean.dtype == np.float32


def test_each_slide_is_tested_once_and_patients_stay_together(cohort):
    (dataset,) = find_datasets(cohort)
    folds = dataset.folds()
    assert len(folds) == cohort.n_folds == 3
    tested = [sample.id for fold in folds for sample in fold.test]
    assert sorted(tested) == [slide.id for slide in cohort.slides]
    patient = {slide.id: slide.patient for slide in cohort.slides}
    assert len(set(patient.values())) == 3
    for fold in folds:
        assert len(fold.train) + len(fold.test) == 6
        assert not {patient[s.id] for s in fold.train} & {patient[s.id] for s in fold.test}


@pytest.mark.usefixtures("_plain_tissue")
def test_few_slides_have_a_patient_each(tmp_path):
    two = small(tmp_path / "two")
    assert two.n_folds == 2
    assert [slide.patient for slide in two.slides] == ["P01", "P02"]
    assert all(len(f.train) == len(f.test) == 1 for f in find_datasets(two)[0].folds())
    assert small(tmp_path / "three", n_slides=3).n_folds == 3


def test_description_states_the_model(cohort):
    described = json.loads((cohort.path / "simulation.json").read_text())
    assert described["coupling_range_um"] == 200
    assert described["model"]["coupling_rings"] == 2
    assert described["seed"] == 0
    assert described["noise_ceiling"] == cohort.noise_ceiling
    classes = {gene: entry["class"] for gene, entry in described["model"]["genes"].items()}
    assert classes == {gene: name for name, genes in cohort.genes.items() for gene in genes}


@pytest.mark.usefixtures("_plain_tissue")
def test_same_seed_same_bytes_and_another_seed_others(tmp_path):
    first, again, other = (
        hashes(small(tmp_path / name, seed=seed).path)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert first == again
    assert len(first) == 2 + 2 + 4 + 2
    same = {name for name in first if first[name] == other[name]}
    assert same == {name for name in first if "splits" in name or name == "var_50genes.json"}


@pytest.mark.usefixtures("_plain_tissue")
def test_a_slide_does_not_depend_on_those_after_it(tmp_path):
    fewer = hashes(small(tmp_path / "fewer").path)
    more = hashes(small(tmp_path / "more", n_slides=3, n_folds=2).path)
    slides = [name for name in fewer if name.startswith(("patches", "adata"))]
    assert len(slides) == 4
    assert all(fewer[name] == more[name] for name in slides)


@pytest.mark.usefixtures("_plain_tissue")
def test_patches_stored_smaller_are_the_means_of_full_ones(tmp_path):
    full, half = (
        small(tmp_path / str(size), n_slides=2, patch_size=size) for size in (PATCH, PATCH // 2)
    )
    images = []
    for cohort in (full, half):
        with open_patches(cohort.path / "patches" / "S01.h5") as patches:
            images.append(patches.images[()].astype(float))
    blocks = images[0].reshape(6, PATCH // 2, 2, PATCH // 2, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(images[1], blocks, atol=1)


def test_noise_ceiling_leaves_room_and_is_that_of_the_files(cohort):
    for name in ("own", "neighbour"):
        genes = cohort.genes[name]
        scores = []
        for slide in cohort.slides:
            expression = read_expression(cohort.path / "adata" / f"{slide.id}.h5ad", genes)
            seen = np.log1p(expression.counts.toarray())
            scores += [
                np.corrcoef(seen[:, i], expression.true_mean[:, i])[0, 1] for i in range(len(genes))
            ]
        assert np.mean(scores) == pytest.approx(cohort.noise_ceiling[name]["slide"], abs=1e-5)
        assert 0.5 < np.mean(scores) < 0.9
    assert cohort.noise_ceiling["noise"]["slide"] < 0.3
    slide_genes = cohort.noise_ceiling["slide"]
    assert slide_genes["pooled"] > slide_genes["slide"] + 0.1


def colours(images: h5py.Dataset) -> np.ndarray:
    """What a simple eye sees of a patch: mean, deviation and the share of dark and of white."""
    pixels = images[()].reshape(len(images), -1, 3).astype(float)
    grey = pixels.mean(axis=2)
    shares = [np.log1p(100 * (grey < 120).mean(1)), np.log1p(100 * (grey > 225).mean(1))]
    seen = np.column_stack([pixels.mean(1), pixels.std(1), *shares])
    return (seen - seen.mean(0)) / seen.std(0)


def held_out_correlation(features: list[np.ndarray], targets: list[np.ndarray]) -> np.ndarray:
    """Pearson correlation of each gene for ridge on the other slides, mean over slides."""
    scores = []
    for held_out in range(len(features)):
        rest = [i for i in range(len(features)) if i != held_out]
        x = np.concatenate([features[i] for i in rest])
        y = np.concatenate([targets[i] - targets[i].mean(0) for i in rest])
        weights = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ y)
        predicted, truth = features[held_out] @ weights, targets[held_out]
        scores.append(
            [np.corrcoef(predicted[:, g], truth[:, g])[0, 1] for g in range(truth.shape[1])]
        )
    return np.mean(scores, axis=0)


def test_neighbour_genes_are_predictable_from_the_neighbours_patches_only(cohort):
    own, around, targets = [], [], []
    names = cohort.genes["own"] + cohort.genes["neighbour"]
    for slide in cohort.slides:
        expression = read_expression(cohort.path / "adata" / f"{slide.id}.h5ad", names)
        targets.append(np.log1p(expression.counts.toarray()))
        with open_patches(cohort.path / "patches" / f"{slide.id}.h5") as patches:
            own.append(colours(patches.images))
            context = neighbour_means(patches.coords, own[-1], 2)
        around.append(np.concatenate([own[-1], context], axis=1))
    split = len(cohort.genes["own"])
    spotwise, with_context = (held_out_correlation(x, targets) for x in (own, around))
    assert spotwise[:split].mean() > 0.3
    assert spotwise[split:].mean() < 0.5 * spotwise[:split].mean()
    assert with_context[split:].mean() > spotwise[split:].mean() + 0.1


@pytest.mark.usefixtures("_plain_tissue")
def test_progress_counts_every_patch(tmp_path):
    seen = []
    small(tmp_path / "out", n_spots=40, progress=lambda *step: seen.append(step))
    assert seen == [(f"S0{i}", done, 40) for i in (1, 2) for done in (32, 40)]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"n_slides": 1}, "slides: found 1"),
        ({"n_slides": 0}, "slides: found 0"),
        ({"n_spots": 0}, "spots: found 0"),
        ({"n_spots": -3}, "spots: found -3"),
        ({"n_spots": 10**9}, "spots: found 1000000000"),
        ({"seed": -1}, "seed: found -1"),
        ({"n_folds": 1}, "folds: found 1"),
        ({"patch_size": 225}, "patch size: found 225"),
    ],
)
@pytest.mark.usefixtures("_plain_tissue")
def test_numbers_out_of_range_are_refused_before_writing(tmp_path, options, field):
    with pytest.raises(BadInput, match=field):
        small(tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_plain_tissue")
def test_a_single_spot_a_slide_is_enough(tmp_path):
    cohort = small(tmp_path / "out", n_spots=1)
    # correlations are not defined within a slide of one spot
    assert cohort.noise_ceiling["own"]["slide"] is None
    assert json.loads((cohort.path / "simulation.json").read_text())["n_spots"] == 1


@pytest.mark.usefixtures("_plain_tissue")
def test_a_folder_with_content_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"1 entry, such as \['mine.txt'\]"):
        small(tmp_path)
    with pytest.raises(BadInput, match=r"a folder with other entries, such as \['mine.txt'\]"):
        small(tmp_path, overwrite=True)
    with pytest.raises(BadInput, match="found a file"):
        small(tmp_path / "mine.txt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.usefixtures("_plain_tissue")
def test_the_working_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    for out in (".", ".."):
        with pytest.raises(BadInput, match="the working folder"):
            small(Path(out))


@pytest.mark.usefixtures("_plain_tissue")
def test_overwrite_replaces_a_cohort(tmp_path):
    (tmp_path / "out").mkdir()
    first = hashes(small(tmp_path / "out", n_slides=3).path)
    with pytest.raises(BadInput, match="entries"):
        small(tmp_path / "out", seed=1)
    assert hashes(tmp_path / "out") == first
    fresh = hashes(small(tmp_path / "fresh", seed=1).path)
    assert hashes(small(tmp_path / "out", seed=1, overwrite=True).path) == fresh


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.usefixtures("_plain_tissue")
def test_a_failure_half_way_changes_nothing(tmp_path, overwrite):
    before = hashes(small(tmp_path / "out").path) if overwrite else {}

    def fail(slide: str, done: int, total: int) -> None:
        if slide == "S02":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "out", seed=1, overwrite=overwrite, progress=fail)
    assert hashes(tmp_path / "out") == before
    assert len(list(tmp_path.iterdir())) == overwrite
