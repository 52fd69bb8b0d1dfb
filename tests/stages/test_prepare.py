from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import subprocess
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from foreign import write_svs
from PIL import Image
from real import BENCH, KIT, needs_real_slides

from stflow_graph.data.splits import Dataset
from stflow_graph.errors import BadInput, SomeFailed
from stflow_graph.images.open import open_image
from stflow_graph.io.coords import array_pitch, median_pitch
from stflow_graph.io.expression import read_expression, write_expression
from stflow_graph.io.patches import open_patches
from stflow_graph.platforms.source import tables_source
from stflow_graph.stages.prepare import Prepared, prepare

WIDTH, HEIGHT, PITCH, UM_PER_PX = 260, 190, 40, 0.5
SIZES = {"patch_px": 12, "patch_um": 10.0}  # 20 px of the image
EDGE = SIZES["patch_um"] / UM_PER_PX
GENES = [f"g{i:02d}" for i in range(70)]


def write_raw(folder, name, *, seed=0, patient=""):
    """Write image, spot table (5 x 4 spots, one not selected) and counts; return manifest cells."""
    rng = np.random.default_rng(seed)
    for part in ("images", "spots", "counts"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
    places = [(x, y) for y in range(1, 5) for x in range(1, 6)]
    lines = ["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected"]
    for x, y in places:
        jitter = rng.uniform(-3, 3, 2)
        lines.append(
            f"{x}\t{y}\t{x}\t{y}\t{PITCH * x + jitter[0]:.2f}\t{PITCH * y + jitter[1]:.2f}"
            f"\t{int((x, y) != (2, 1))}"
        )
    (folder / "spots" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    # the counts lack the spot 1x1 and know one spot, 30x30, that has no place
    names = [f"{x}x{y}" for x, y in places if (x, y) != (1, 1)] + ["30x30"]
    counts = rng.poisson(rng.gamma(1, 3, len(GENES)), (len(names), len(GENES)))
    counts[:, 60:] = 0  # never counted, so never chosen
    rows = ["\t".join(["", *GENES])]
    order = rng.permutation(len(names))
    rows += ["\t".join([names[i], *map(str, counts[i])]) for i in order]
    table = folder / "counts" / f"{name}.tsv.gz"
    table.write_bytes(gzip.compress("\n".join(rows).encode()))
    truth = {names[i]: counts[i] for i in range(len(names))}
    row = f"{name},{patient},images/{name}.png,counts/{name}.tsv.gz,spots/{name}.tsv,{UM_PER_PX},"
    return row, truth


def write_kit(folder, patients):
    """Write a kit with slides S0, S1, ... of the given patients."""
    rows = [
        write_raw(folder, f"S{i}", seed=i, patient=patient)[0] for i, patient in enumerate(patients)
    ]
    header = "id,patient,image,counts,spots,um_per_px,note"
    (folder / "dataset.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def prepare_slide(image, spots, counts, out, name="S0", um_per_px=None, **options) -> Prepared:
    source = tables_source(name, image, spots, counts, um_per_px)
    (prepared,) = prepare(source, out, **{**SIZES, **options})
    return prepared


def prepare_one(folder, out, **options):
    files = [folder / part for part in ("images/S0.png", "spots/S0.tsv", "counts/S0.tsv.gz")]
    return prepare_slide(*files, out, **{"um_per_px": UM_PER_PX, **options})


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def splits_of(out):
    folds = Dataset("out", out).folds()
    return [([s.id for s in fold.train], [s.id for s in fold.test]) for fold in folds]


def test_a_spot_counts_only_if_it_is_in_both_tables(tmp_path):
    _, truth = write_raw(tmp_path, "S0")
    done = prepare_one(tmp_path, tmp_path / "out")
    # 20 spots: 2x1 is not selected, 1x1 has no counts; 30x30 has no position
    assert (done.n_spots, done.not_selected) == (18, 1)
    assert (done.only_in_spots, done.only_in_counts) == (1, 1)
    found = read_expression(done.adata)
    expected = [f"{x}x{y}" for y in range(1, 5) for x in range(1, 6)]
    assert found.barcodes == [b for b in expected if b not in ("1x1", "2x1")]
    assert found.genes == GENES
    assert found.um_per_px == UM_PER_PX
    np.testing.assert_array_equal(found.counts.toarray(), [truth[b] for b in found.barcodes])
    assert done.pitch_um == pytest.approx(PITCH * UM_PER_PX, rel=0.1)


def test_the_pitch_is_that_of_the_array_as_the_overlay_states_it(tmp_path, monkeypatch):
    """The distance to the nearest spot alone is shorter, as places vary."""
    monkeypatch.setattr("stflow_graph.io.coords._MANY", 10)
    write_raw(tmp_path, "S0")
    done = prepare_one(tmp_path, tmp_path / "out")
    coords = read_expression(done.adata).coords
    assert done.pitch_um == pytest.approx(UM_PER_PX * array_pitch(coords))
    assert done.pitch_um > UM_PER_PX * median_pitch(coords) + 0.1


def test_the_patch_file_matches_the_expression_file_and_the_image(tmp_path):
    write_raw(tmp_path, "S0")
    done = prepare_one(tmp_path, tmp_path / "out")
    found = read_expression(done.adata)
    with open_patches(done.patches) as patches, open_image(tmp_path / "images/S0.png") as image:
        assert patches.barcodes == found.barcodes
        assert (patches.convention, patches.um_per_px) == ("centre", UM_PER_PX)
        np.testing.assert_array_equal(patches.coords, np.rint(found.coords))
        for pixels, (x, y) in zip(patches.images, found.coords, strict=True):
            np.testing.assert_array_equal(pixels, image.read_patch(x, y, EDGE, 12))
        attrs = dict(patches.images.file.attrs)
    assert (attrs["patch_um"], attrs["um_per_px"], attrs["complete"]) == (10.0, UM_PER_PX, 1)
    assert len(attrs["image_sha256"]) == 64
    obs = anndata.read_h5ad(done.adata).obs
    np.testing.assert_array_equal(
        obs["array_col"].astype(str) + "x" + obs["array_row"].astype(str), obs.index
    )
    np.testing.assert_array_equal(obs[["pxl_col_in_fullres", "pxl_row_in_fullres"]], found.coords)
    np.testing.assert_array_equal(obs["total_counts"], found.total)


def test_the_result_does_not_depend_on_the_batch_or_the_moment(tmp_path, monkeypatch):
    write_raw(tmp_path, "S0")
    steps = []
    prepare_one(tmp_path, tmp_path / "a", progress=lambda *step: steps.append(step))
    assert steps == [("S0", 18, 18)]
    monkeypatch.setattr("stflow_graph.preparation.cut_patches._BATCH_BYTES", 5 * 3 * 12**2)
    prepare_one(tmp_path, tmp_path / "b", progress=lambda *step: steps.append(step))
    assert steps[1:] == [("S0", n, 18) for n in (5, 10, 15, 18)]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_an_h5ad_with_places_needs_no_spot_table_and_knows_its_scale(tmp_path):
    _, truth = write_raw(tmp_path, "S0")
    table = prepare_one(tmp_path, tmp_path / "a")
    reference = read_expression(table.adata)
    source = tmp_path / "counts.h5ad"
    coords = reference.coords
    write_expression(source, reference.counts, reference.barcodes, GENES, coords, um_per_px=0.5)
    image = tmp_path / "images/S0.png"
    done = prepare_slide(image, None, source, tmp_path / "b")
    found = read_expression(done.adata)
    assert (found.counts != reference.counts).nnz == 0
    np.testing.assert_array_equal(found.coords, coords)
    with h5py.File(table.patches) as a, h5py.File(done.patches) as b:
        np.testing.assert_array_equal(a["img"], b["img"])
    again = prepare_slide(image, None, source, tmp_path / "b")
    assert again.up_to_date
    doubled = prepare_slide(image, None, source, tmp_path / "c", um_per_px=1.0)
    assert read_expression(doubled.adata).um_per_px == 1.0
    assert truth.keys() > set(found.barcodes)


def test_a_lone_spot_has_no_pitch(tmp_path):
    write_raw(tmp_path, "S0")
    edit_spots(tmp_path, lambda row: [*row[:6], int(row[:2] == ["3", "2"])])
    done = prepare_one(tmp_path, tmp_path / "out")
    assert (done.n_spots, done.not_selected) == (1, 19)
    assert np.isnan(done.pitch_um)
    assert prepare_one(tmp_path, tmp_path / "out").up_to_date


def test_patches_over_the_edge_are_white_there_and_counted(tmp_path):
    write_raw(tmp_path, "S0")
    done = prepare_one(tmp_path, tmp_path / "out", patch_um=75.0)  # 150 px, spots from 40 px on
    assert 0 < done.n_padded < done.n_spots
    with open_patches(done.patches) as patches:
        over = patches.barcodes.index("3x1")
        assert (patches.images[over, 0] == 255).all()
        assert not (patches.images[patches.barcodes.index("3x2")] == 255).all(axis=(1, 2)).any()


def test_a_second_run_does_nothing_and_overwrite_does_it_again(tmp_path):
    write_raw(tmp_path, "S0")
    out = tmp_path / "out"
    first = prepare_one(tmp_path, out)
    before = {path: path.stat().st_ino for path in (first.patches, first.adata)}
    reports = []
    again = prepare_one(tmp_path, out, progress=pytest.fail, report=reports.append)
    assert again.up_to_date
    assert reports == [again]
    assert {**vars(again), "up_to_date": False} == vars(first)
    assert before == {path: path.stat().st_ino for path in before}
    done = prepare_one(tmp_path, out, overwrite=True)
    assert not done.up_to_date
    assert all(path.stat().st_ino != inode for path, inode in before.items())


def _append_line(table):
    table.write_bytes(gzip.compress(gzip.decompress(table.read_bytes()) + b"\n"))


def _foreign(file):
    write_expression(file, sp.csr_matrix((1, 1)), ["a"], ["g"], [[0, 0]], um_per_px=1)


# options of the second run, or the file that is changed before it
CHANGES = {
    "patch_um": {"patch_um": 11.0},
    "um_per_px": {"um_per_px": 0.6},
    "image": ("images/S0.png", lambda file: Image.new("RGB", (WIDTH, HEIGHT)).save(file)),
    "counts": ("counts/S0.tsv.gz", _append_line),
    "foreign": ("out/adata/S0.h5ad", _foreign),
    "cut": ("out/patches/S0.h5", lambda file: file.write_bytes(file.read_bytes()[:-100])),
}


@pytest.mark.parametrize("change", CHANGES)
def test_outputs_made_in_another_way_are_not_replaced_silently(tmp_path, change):
    write_raw(tmp_path, "S0")
    out, options = tmp_path / "out", CHANGES[change]
    prepare_one(tmp_path, out)
    if isinstance(options, tuple):
        (file, edit), options = options, {}
        edit(tmp_path / file)
    before = contents(out)
    message = "image_sha256" if change in ("foreign", "cut") else change
    message = f"output: found a file made with another .*{message}.*--overwrite"
    with pytest.raises(BadInput, match=message):
        prepare_one(tmp_path, out, **options)
    assert contents(out) == before
    assert not prepare_one(tmp_path, out, overwrite=True, **options).up_to_date


def test_a_run_that_was_killed_between_the_files_is_finished(tmp_path):
    write_raw(tmp_path, "S0")
    done = prepare_one(tmp_path, tmp_path / "out")
    whole = contents(tmp_path / "out")
    done.adata.unlink()
    assert not prepare_one(tmp_path, tmp_path / "out").up_to_date
    assert contents(tmp_path / "out") == whole


def edit_spots(folder, change):
    path = folder / "spots/S0.tsv"
    header, *rows = (line.split("\t") for line in path.read_text().splitlines())
    path.write_text("\n".join("\t".join(map(str, row)) for row in [header, *map(change, rows)]))


def replaced(place, text):
    return lambda row: [*row[:place], text, *row[place + 1 :]]


def pixels(change):
    return lambda row: [*row[:4], *change(float(row[4]), float(row[5])), *row[6:]]


_OUTSIDE = r"S0\.tsv: coordinates: found {} of 18 spots outside the image: x {}, image 260 x 190 px"
REFUSED = {
    "swapped": (pixels(lambda x, y: (y, x + 10)), {}, _OUTSIDE.format(4, ".*") + ".*swap x and y"),
    "scaled": (
        pixels(lambda x, y: (10 * x, 10 * y)),
        {},
        _OUTSIDE.format(18, ".*") + ".*another resolution",
    ),
    "negative": (replaced(4, "-1"), {}, _OUTSIDE.format(18, "-1 to -1, y .*")),
    "none selected": (replaced(6, "0"), {}, "selected: found 0 of 20 spots"),
    "no overlap": (lambda row: [f"1{row[0]}1", *row[1:]], {}, "0 of 19 barcodes in S0.tsv.gz"),
    "no scale": (
        None,
        {"um_per_px": None},
        "um_per_px: found none in the file, expected a positive",
    ),
    "zero scale": (None, {"um_per_px": 0.0}, "um_per_px: found 0.0"),
    "infinite scale": (None, {"um_per_px": float("inf")}, "um_per_px: found inf"),
    "huge scale": (None, {"um_per_px": 50.0}, "found 50, so a patch of 10 µm is 0.2 px wide"),
    "tiny scale": (None, {"um_per_px": 1e-4}, r"is 1e\+05 px wide, expected 8 to 8192 px"),
    "name": (None, {"name": "../S0"}, "id: found '../S0'"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, kind):
    write_raw(tmp_path, "S0")
    change, options, message = REFUSED[kind]
    if change is not None:
        edit_spots(tmp_path, change)
    with pytest.raises(BadInput, match=message):
        prepare_one(tmp_path, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_images_metadata_give_the_scale_unless_it_is_given(tmp_path, caplog):
    write_raw(tmp_path, "S0")
    png = tmp_path / "images" / "S0.png"
    with Image.open(png) as image:
        write_svs(tmp_path / "S0.svs", np.asarray(image), "0.5", steps=0)
    files = (tmp_path / "S0.svs", tmp_path / "spots/S0.tsv", tmp_path / "counts/S0.tsv.gz")
    done = prepare_slide(*files, tmp_path / "out")
    assert read_expression(done.adata).um_per_px == 0.5
    assert not caplog.records
    given = prepare_slide(*files, tmp_path / "given", um_per_px=0.6)
    assert read_expression(given.adata).um_per_px == 0.6
    (record,) = caplog.records
    assert "um_per_px 0.6 as given" in record.getMessage()
    by_hand = prepare_one(tmp_path, tmp_path / "by_hand")
    with open_patches(done.patches) as a, open_patches(by_hand.patches) as b:
        np.testing.assert_array_equal(a.images, b.images)


@pytest.mark.parametrize("fault", ["greyscale", "scale", "contradiction"])
def test_what_cannot_be_cut_is_refused_before_anything_is_hashed(tmp_path, fault):
    write_raw(tmp_path, "S0")
    files = [tmp_path / part for part in ("images/S0.png", "spots/S0.tsv", "counts/S0.tsv.gz")]
    if fault == "greyscale":
        Image.new("L", (WIDTH, HEIGHT)).save(files[0])
    elif fault == "contradiction":
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        files[0] = write_svs(tmp_path / "S0.svs", pixels, "0.25", steps=0)
    source = tables_source("S0", *files, um_per_px=None if fault == "scale" else UM_PER_PX)
    message = {
        "greyscale": "colours: found mode L",
        "scale": "um_per_px: found none in the file.*--um-per-px",
        "contradiction": "um_per_px: found 0.5 as given, 0.25 in the image's metadata",
    }
    source = dataclasses.replace(source, hash_input=pytest.fail)
    with pytest.raises(BadInput, match=message[fault]):
        prepare(source, tmp_path / "out", **SIZES)
    assert not (tmp_path / "out").exists()


def test_an_h5ad_without_places_needs_a_spot_table(tmp_path):
    write_raw(tmp_path, "S0")
    source = tmp_path / "c.h5ad"
    anndata.AnnData(sp.csr_matrix(np.ones((2, 2), np.float32))).write_h5ad(source)
    with pytest.raises(BadInput, match=r"c\.h5ad: obsm\['spatial'\]: found nothing"):
        prepare_slide(tmp_path / "images/S0.png", None, source, tmp_path / "out")


def test_an_image_that_breaks_midway_leaves_no_file(tmp_path, monkeypatch):
    write_raw(tmp_path, "S0")
    monkeypatch.setattr("stflow_graph.preparation.cut_patches._BATCH_BYTES", 1)

    def fail(slide, written, total):
        if written == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_one(tmp_path, tmp_path / "out", progress=fail)
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize(
    ("patients", "expected"),
    [
        ("ABA", [(["S1"], ["S0", "S2"]), (["S0", "S2"], ["S1"])]),
        ("AA", [(["S1"], ["S0"]), (["S0"], ["S1"])]),
        (["", "", ""], [(["S1", "S2"], ["S0"]), (["S0", "S2"], ["S1"]), (["S0", "S1"], ["S2"])]),
    ],
)
def test_a_kit_is_split_by_patient_or_else_by_slide(tmp_path, patients, expected):
    out = tmp_path / "out"
    done = prepare(write_kit(tmp_path / "kit", patients), out, **SIZES)
    assert [slide.slide for slide in done] == [f"S{i}" for i in range(len(patients))]
    assert splits_of(out) == expected
    for fold in Dataset("out", out).folds():
        assert fold.shared_patients == (["A"] if patients == "AA" else [])
        for sample in (*fold.train, *fold.test):
            assert sample.patches_path.is_file()
            assert sample.expr_path.is_file()
        genes = json.loads((out / f"var_50genes_fold{fold.index}.json").read_text())["genes"]
        assert len(genes) == 50
        assert set(genes) <= set(GENES[:60])
    assert not (out / "var_50genes.json").exists()


def test_a_folds_genes_have_not_seen_its_test_slides(tmp_path):
    kit = write_kit(tmp_path / "kit", "AB")
    prepare(kit, tmp_path / "a", **SIZES)
    write_raw(kit, "S0", seed=99)
    prepare(kit, tmp_path / "b", **SIZES)

    def genes(out, fold):
        return (tmp_path / out / f"var_50genes_fold{fold}.json").read_bytes()

    assert genes("a", 0) == genes("b", 0)  # fold 0 tests S0
    assert genes("a", 1) != genes("b", 1)


def test_splits_that_are_there_are_kept_and_lists_follow_them(tmp_path):
    kit, out = write_kit(tmp_path / "kit", "AB"), tmp_path / "out"
    (out / "splits").mkdir(parents=True)
    for side, name in (("train", "S1"), ("test", "S0")):
        text = f"sample_id,patches_path,expr_path\n{name},patches/{name}.h5,adata/{name}.h5ad\n"
        (out / "splits" / f"{side}_7.csv").write_text(text)
    before = contents(out)
    prepare(kit, out, **SIZES)
    assert before.items() <= contents(out).items()
    assert [p.name for p in out.glob("*.json")] == ["var_50genes_fold7.json"]
    (out / "var_50genes_fold7.json").write_text('{"genes": ["mine"]}')
    prepare(kit, out, **SIZES)
    assert "mine" in (out / "var_50genes_fold7.json").read_text()
    prepare(kit, out, **SIZES, overwrite=True)
    assert "mine" not in (out / "var_50genes_fold7.json").read_text()
    assert before.items() <= contents(out).items()


def test_a_single_slide_makes_no_split(tmp_path, caplog):
    prepare(write_kit(tmp_path / "kit", "A"), tmp_path / "out", **SIZES)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "adata",
        "overlays",
        "patches",
    ]
    assert "one slide makes no split" in caplog.text


def test_one_bad_slide_does_not_stop_the_others(tmp_path):
    kit, out = write_kit(tmp_path / "kit", "ABC"), tmp_path / "out"
    image = kit / "images/S1.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:5000])
    (kit / "counts/S2.tsv.gz").rename(tmp_path / "away")
    reports = []
    message = r"2 of 3 slides failed: S1: .*S1\.png.*; S2: .*S2"
    with pytest.raises(SomeFailed, match=message) as error:
        prepare(kit, out, **SIZES, report=reports.append)
    assert error.value.exit_code == 5
    assert "\n" not in str(error.value)
    assert [done.slide for done in reports] == ["S0"]
    assert sorted(map(str, contents(out))) == [
        "adata/S0.h5ad",
        "overlays/S0.png",
        "patches/S0.h5",
    ]
    image.write_bytes(whole)
    (tmp_path / "away").rename(kit / "counts/S2.tsv.gz")
    states = [slide.up_to_date for slide in prepare(kit, out, **SIZES)]
    assert states == [True, False, False]
    assert len(splits_of(out)) == 3


def test_a_folder_without_manifest_is_no_kit(tmp_path):
    with pytest.raises(BadInput, match=r"source: found .*expected one of: kit \(dataset\.csv\)"):
        prepare(tmp_path, tmp_path / "out", format="kit")


_PEAK = """
import sys
from pathlib import Path
import numpy as np
folder = Path(sys.argv[1])
if sys.argv[2] == "make":
    from PIL import Image
    import tifffile
    image = Image.linear_gradient("L").resize((10_000, 10_000)).convert("RGB")
    image.save(folder / "a.jpg", quality=60)
    tile = np.asarray(image.resize((512, 512)))
    del image
    tiles = (tile for _ in range(20 * 20))
    tifffile.imwrite(folder / "a.tif", tiles, shape=(10_000, 10_000, 3), dtype=np.uint8,
                     tile=(512, 512), photometric="rgb", compression="zlib")
    places = np.random.default_rng(0).uniform(0, 10_000, (60, 2))
    rows = "".join(f"s{i},{x:.2f},{y:.2f}\\n" for i, (x, y) in enumerate(places))
    (folder / "spots.csv").write_text("barcode,x,y\\n" + rows)
    (folder / "counts.csv").write_text(",g\\n" + "".join(f"s{i},{i}\\n" for i in range(60)))
else:
    from stflow_graph.platforms.source import tables_source
    from stflow_graph.stages.prepare import prepare
    name = sys.argv[2].replace(".", "_")
    files = folder / sys.argv[2], folder / "spots.csv", folder / "counts.csv"
    (done,) = prepare(tables_source(name, *files, um_per_px=0.5), folder / "out")
    assert done.n_spots == 60
    # getrusage would include what the parent held before exec
    status = Path("/proc/self/status").read_text()
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_large_image_needs_less_than_its_bound_of_memory(tmp_path):
    def run(argument):
        command = [sys.executable, "-c", _PEAK, str(tmp_path), argument]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("make")
    decoded, tiled = (int(run(name)) * 1024 for name in ("a.jpg", "a.tif"))
    assert decoded < 1.0e9  # the image itself takes 0.4e9
    assert tiled < 0.5e9


@needs_real_slides
@pytest.mark.parametrize("name", ["B4", pytest.param("C2", marks=pytest.mark.slow)])
def test_real_slides_equal_the_prepared_kit(tmp_path, name):
    with (KIT / "dataset.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["id"] == name)
    image, spots, counts = (KIT / row[key] for key in ("image", "spots", "counts"))
    um_per_px = float(row["um_per_px"])
    (done,) = prepare(tables_source(name, image, spots, counts, um_per_px), tmp_path)
    found, bench = anndata.read_h5ad(done.adata), BENCH
    expected = anndata.read_h5ad(bench / "adata" / f"{name}.h5ad")
    assert (found.X != expected.X).nnz == 0
    assert found.obs.equals(expected.obs)
    assert list(found.var_names) == list(expected.var_names)
    np.testing.assert_array_equal(found.obsm["spatial"], expected.obsm["spatial"])
    assert found.uns["um_per_px"] == expected.uns["um_per_px"]
    with (
        open_patches(done.patches) as ours,
        open_patches(bench / "patches" / f"{name}.h5") as stored,
    ):
        rows = [stored.barcodes.index(barcode) for barcode in ours.barcodes]
        assert sorted(rows) == list(range(len(stored)))
        np.testing.assert_array_equal(ours.coords, stored.coords[rows])
        assert ours.um_per_px == stored.um_per_px
        # the stored values are rounded to even numbers, halves up
        for i, row_stored in list(enumerate(rows))[::9]:
            pixels = ours.images[i].astype(int)
            rounded = np.minimum(pixels + pixels % 2, 254)
            assert (rounded == stored.images[row_stored]).mean() > 0.999
