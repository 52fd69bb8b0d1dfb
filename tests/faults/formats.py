"""Every kind of file that the package reads: valid examples, and their readers."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import platform_files
import scipy.sparse as sp
import torch
from artefacts import make_foreign, write_prediction
from faults.trials import Format
from foreign import features, grid, tissue_like, write_clam, write_svs, write_trident
from linear import GENES as MODEL_GENES
from linear import checkpoint_of, configured, linear_slide, new_network
from PIL import Image
from toy import GENES, write_images, write_slide

from stflow_graph.config import load_config
from stflow_graph.config.stored import check_same_run
from stflow_graph.data.genes import read_gene_list, slides_chosen_on, write_gene_list
from stflow_graph.data.load import load_slide
from stflow_graph.data.patients import count_spots, read_patients
from stflow_graph.data.splits import Dataset, Fold
from stflow_graph.evaluation.prediction_page import read_reported_slide, render_predictions
from stflow_graph.images.open import open_image
from stflow_graph.inference.in_range import DISTANCE, IN_RANGE, OBS_COLUMNS, InRange
from stflow_graph.inference.sampling import _measured
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.inference.slide_model import SlideModel
from stflow_graph.io.atomic import sha256, write_json
from stflow_graph.io.embeddings import open_embeddings
from stflow_graph.io.expression import read_expression, read_positions
from stflow_graph.io.gene_aliases import read_gene_aliases
from stflow_graph.io.gene_sets import read_gene_sets
from stflow_graph.io.patches import open_patches
from stflow_graph.io.picture import Picture
from stflow_graph.io.prediction_file import open_prediction
from stflow_graph.io.predictions import Late, n_spots_of, read_prediction, read_provenance
from stflow_graph.io.sealed_json import JSON_SEAL, seal_json
from stflow_graph.io.state_dict import read_state_dict, read_tensor
from stflow_graph.models.checkpoint import (
    Checkpoint,
    find_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from stflow_graph.models.stflow_weights import load_stflow
from stflow_graph.nn.stflow.denoiser import TransformerDenoiser
from stflow_graph.platforms.detect import find_slides
from stflow_graph.stages.export import export
from stflow_graph.stages.train import _Inputs, _stored_result
from stflow_graph.stats.calibration import Calibration
from stflow_graph.stats.training_range import LEVELS, TrainingRange
from stflow_graph.training import loop
from stflow_graph.training.fold_result import FoldResult
from stflow_graph.training.run_folder import check_is_run, claim

RECORD = loop.EpochRecord(3, 0.25, 1 / 3, 0.5, 2, 0.625, 1.5)
HASHES = {"genes": "0" * 64}


def _slide_files(folder: Path) -> None:
    write_slide(folder / "S.h5", folder / "S.h5ad", 36, seed=0)


def _embeddings(folder: Path) -> None:
    write_slide(folder / "S.h5", None, 36, seed=0)


def _foreign_embeddings(folder: Path) -> None:
    """As HEST writes them: no marks, no checksums."""
    _embeddings(folder)
    with h5py.File(folder / "S.h5", "r") as ours, h5py.File(folder / "T.h5", "w") as file:
        for key in ours:
            file[key] = ours[key][()]
        file.attrs.update({"encoder": "uni", "um_per_px": 1.0})
    (folder / "S.h5").unlink()


def _read_embeddings(folder: Path) -> object:
    (path,) = folder.glob("*.h5")
    slide = load_slide(path)
    with open_embeddings(path) as file:
        return slide.x, slide.coords, slide.um_per_px, file.barcodes, file.encoder, file.width


def _patches(folder: Path) -> None:
    write_images(folder / "S.h5")


def _foreign_patches(folder: Path) -> None:
    platform_files.write_hest(folder / "hest")
    (folder / "hest/patches/TENX1.h5").rename(folder / "S.h5")
    for path in sorted((folder / "hest").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (folder / "hest").rmdir()


def _read_patches(folder: Path) -> object:
    with open_patches(folder / "S.h5") as file:
        values = file.coords, file.convention, file.um_per_px, file.size_level0
        return file.images[()], file.barcodes, values


def _expression(folder: Path) -> None:
    _slide_files(folder)
    (folder / "S.h5").unlink()


def _foreign_expression(folder: Path) -> None:
    rng, names = np.random.default_rng(0), [f"b{i}" for i in range(20)]
    adata = anndata.AnnData(
        sp.csr_matrix(rng.poisson(1.0, (20, 6)).astype(np.float32)),
        obs=pd.DataFrame({"array_row": 1, "kind": pd.Categorical(["a", "b"] * 10)}, index=names),
        var=pd.DataFrame({"gene_ids": [f"ENSG{i:011d}" for i in range(6)]}, index=GENES),
    )
    adata.obsm["spatial"] = rng.uniform(0, 1000, (20, 2))
    adata.uns.update(um_per_px=0.5, nested={"a": np.arange(3), "b": "text"}, none="x")
    adata.layers["raw"] = adata.X.copy()
    adata.write_h5ad(folder / "S.h5ad")


def _read_expression(folder: Path) -> object:
    path = folder / "S.h5ad"
    read_positions(path)
    count_spots(path)
    return read_expression(path, None), read_expression(path, ["G0", "G3"])


def _predictions(folder: Path) -> None:
    """As `predict` writes them, with all that a file can have."""
    rng = np.random.default_rng(0)
    in_range = np.arange(12) < 9
    record = InRange(0.75, True, None).record()
    quantiles = np.sort(rng.gamma(1, 1, (4, len(LEVELS))), axis=1)
    names = {"gene_ids": [f"ENSG{i:011d}" for i in range(4)]}
    write_prediction(
        folder / "S.h5ad",
        rng.normal(size=(12, 4)).astype(np.float32),
        [f"b{i}" for i in range(12)],
        MODEL_GENES[:4],
        rng.uniform(0, 1000, (12, 2)),
        samples=rng.normal(size=(2, 12, 4)).astype(np.float32),
        provenance={
            **{"slide": "S", "target": "log1p", "train_slides": ["A"], "seed": 0, "fold": None},
            **{"checkpoint_sha256": "0" * 64, "um_per_px": 0.5, "warnings": ["beside the tissue"]},
        },
        expected_pearson=np.array([0.1, np.nan, 0.3, 0.4]),
        quantiles=(quantiles, LEVELS),
        gene_names=names,
        picture=Picture(tissue_like(20, 20), 50, (1000, 1000), "i.png"),
        observed=(np.arange(3), np.arange(2)),
        late_obs=OBS_COLUMNS,
        late=lambda: Late({IN_RANGE: record}, {IN_RANGE: in_range, DISTANCE: 2.0 - in_range}),
    )


def _unmarked_predictions(folder: Path) -> None:
    _predictions(folder)
    make_foreign(folder / "S.h5ad")


def _read_blocks(folder: Path) -> object:
    """Read a prediction as `summarise` does."""
    (path,) = folder.glob("*.h5ad")
    with open_prediction(path) as file:
        layers = ["mean", "std", *(f"sample_{i}" for i in range(file.n_samples))]
        blocks = [np.concatenate([block for _, block in file.blocks(name)]) for name in layers]
        names = file.barcodes, file.genes, file.provenance
        rest = file.expected_pearson(), file.n_measured(), file.training_quantiles()
        return names, blocks, file.coords, rest


def _predictions_and_overlay(folder: Path) -> None:
    _unmarked_predictions(folder)
    Image.fromarray(tissue_like(60, 50)).save(folder / "S.png")


def _read_page(folder: Path) -> object:
    """Read a prediction and its overlay for the report of `predict`."""
    slide = read_reported_slide(folder / "S.h5ad", folder / "S.png")
    stored = _measured(read_provenance(folder / "S.h5ad")), n_spots_of(folder / "S.h5ad")
    return render_predictions([slide]), stored


def _read_exported(folder: Path) -> object:
    """Export a prediction to the text formats."""
    with tempfile.TemporaryDirectory() as place:
        outputs = [Path(place) / f"out{ending}" for ending in (".csv", ".geojson", ".loupe.csv")]
        for output in outputs:
            export(folder / "S.h5ad", output)
        return [output.read_bytes() for output in outputs]


def _read_prediction(folder: Path) -> object:
    return read_provenance(folder / "S.h5ad"), read_prediction(folder / "S.h5ad")


def _checkpoint(folder: Path) -> Checkpoint:
    n = len(MODEL_GENES)
    calibration = Calibration(np.linspace(0.3, 2, n), np.full(n, 0.5), np.full(n, np.nan))
    slides = [linear_slide(name).x for name in "AB"]
    predictions = [np.random.default_rng(0).gamma(1, 1, (20, n))]
    known = TrainingRange.fit(slides, predictions, [np.array([0.25, 0.5, 0.25]), None])
    checkpoint = checkpoint_of("field", 2, calibration)
    checkpoint = dataclasses.replace(checkpoint, training_range=known)
    save_checkpoint(folder / "c", checkpoint)
    return checkpoint


def _read_checkpoint(folder: Path) -> object:
    return _content(load_checkpoint(folder / "c"))


def _content(checkpoint: Checkpoint) -> object:
    field = checkpoint.field.state_dict() if checkpoint.field else None
    return {**vars(checkpoint), "field": field}, [m.state_dict() for m in checkpoint.build()]


def _zip(folder: Path) -> None:
    _checkpoint(folder)
    for kind, method in {"a": zipfile.ZIP_DEFLATED, "b": zipfile.ZIP_STORED}.items():
        with zipfile.ZipFile(folder / f"{kind}.zip", "w", method) as archive:
            for file in sorted((folder / "c").iterdir()):
                archive.write(file, f"c/{file.name}")
    shutil.rmtree(folder / "c")


def _read_zip(folder: Path) -> object:
    found = [find_checkpoints(folder / f"{kind}.zip") for kind in "ab"]
    return [_content(load_checkpoint(folder)) for (folder,) in found]


def _read_resealed(folder: Path) -> object:
    """Read a checkpoint as if it had been written like this."""
    file = folder / "c/config.json"
    with contextlib.suppress(Exception):
        content = json.loads(file.read_bytes())
        content["sha256"] = {
            name: sha256(folder / "c" / name) if (folder / "c" / name).is_file() else old
            for name, old in content["sha256"].items()
        }
        content.pop(JSON_SEAL, None)
        write_json(file, seal_json(content))
    model = SlideModel.from_pretrained(folder / "c")
    predicted = model.predict(linear_slide("A", 12), SampleSettings(n_samples=2, device="cpu"))
    return _content(model.checkpoint), predicted.X, dict(predicted.obs)


def _run(folder: Path) -> None:
    claim(folder, configured(), overwrite=False)
    fold = folder / "fold0"
    write_json(fold / "provenance.json", {"inputs": HASHES, "seed": 0})
    save_checkpoint(fold / "checkpoint", checkpoint_of(n_members=1))
    scores = np.array([0.5, np.nan])
    best = [RECORD, RECORD]
    tested = {"S": scores, "T": scores}
    result = FoldResult("D", 0, fold, best, 0.25, ["A", "B"], scores, tested, False, "p")
    result.save(inputs=HASHES, epochs=configured().train.epochs)


def _read_run(folder: Path) -> object:
    check_is_run(folder)
    config = configured()
    check_same_run(folder, config)
    inputs = _Inputs("D", Fold(0, (), ()), "p", "g.json", ["A", "B"], [], [], HASHES, None)
    result = _stored_result(inputs, config, folder / "fold0")
    stored = load_config(folder / "config.toml")
    return stored.model_dump(), None if result is None else {**vars(result), "folder": None}


def _state(folder: Path) -> None:
    state = loop._start(new_network(configured("transformer")), configured().train, warm=False)
    for parameter in state.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    state.best, state.history = dict(state.network.state_dict()), [RECORD]
    loop._save(state, folder / "state-0.safetensors")


def _read_state(folder: Path) -> object:
    network = new_network(configured("transformer"), seed=1)
    state = loop._start(network, configured().train, warm=False)
    loop._restore(state, folder / "state-0.safetensors")
    moments = state.optimizer.state_dict()["state"]
    return state.network, state.average, state.best, state.history, moments


def _genes(folder: Path) -> None:
    write_gene_list(folder / "var_50genes.json", GENES, ["A", "B"])


def _read_genes(folder: Path) -> object:
    path = folder / "var_50genes.json"
    return read_gene_list(path), slides_chosen_on(path)


def _splits(folder: Path) -> None:
    (folder / "splits").mkdir()
    for side, names in (("train", "AB"), ("test", "C")):
        rows = [f"{name},patches/{name}.h5,adata/{name}.h5ad" for name in names]
        text = "\n".join(["sample_id,patches_path,expr_path", *rows]) + "\n"
        (folder / f"splits/{side}_0.csv").write_text(text)
    (folder / "patients.csv").write_text("sample_id,patient\nA,p1\nB,p1\nC,p2\n")


def _read_splits(folder: Path) -> object:
    sides = [(f.index, *f.train, *f.test) for f in Dataset("D", folder).folds()]
    return repr(sides).replace(str(folder), "")


def _aliases(folder: Path) -> None:
    (folder / "a.csv").write_text("gene,alias\nACTB,b-actin|BACT\nGAPDH,G3PD\nCD3E,T3E\n")
    text = "symbol\talias_symbol\tprev_symbol\tensembl_gene_id\nA\tB|C\tD\tENSG00000000001.2\n"
    (folder / "hgnc.tsv").write_text(text)
    line = 'chr1\tx\tgene\t1\t9\t.\t+\t.\tgene_id "ENSG00000000001.1"; gene_name "A";\n'
    (folder / "g.gtf.gz").write_bytes(gzip.compress((line * 3).encode(), mtime=0))


def _read_aliases(folder: Path) -> object:
    return [read_gene_aliases(folder / name) for name in ("a.csv", "hgnc.tsv", "g.gtf.gz")]


def _gene_sets(folder: Path) -> None:
    (folder / "s.gmt").write_text("A\thttp://a\tTP53\tACTB\nB\t\tGAPDH,1.0\tCD3E,0.5\n")


def _read_gene_sets(folder: Path) -> object:
    return read_gene_sets([folder / "s.gmt"])


def _patients(folder: Path) -> None:
    (folder / "p.csv").write_text("sample_id,patient,time,sex\nA,p1,3.5,f\nB,p1,3.5,f\nC,p2,1,m\n")


def _read_patients(folder: Path) -> object:
    return vars(read_patients(folder / "p.csv"))


def _config(folder: Path) -> None:
    configured().save(folder / "c.toml")


def _read_config(folder: Path) -> object:
    return load_config(folder / "c.toml").model_dump()


def _platform(**options: Any) -> Any:
    def read(folder: Path) -> object:
        """Read a raw slide's tables, as `prepare` does."""
        read = []
        for slide in find_slides(folder, format=options.get("format")):
            data = slide.read()
            read.append((slide.name, slide.platform, data))
        return read

    return read


def _visium(folder: Path) -> None:
    platform_files.write_visium(folder / "V")


def _read_visium(folder: Path) -> object:
    return _platform()(folder / "V")


def _tenx_v2(folder: Path) -> None:
    _visium(folder)
    outs = folder / "V/outs"
    barcodes = list(platform_files.visium_positions().barcode[:9])
    path = outs / "filtered_feature_bc_matrix.h5"
    path.unlink()
    platform_files.write_tenx_v2(path, platform_files.counts_of(9), barcodes)


def _mtx(folder: Path) -> None:
    _visium(folder)
    outs = folder / "V/outs"
    (outs / "filtered_feature_bc_matrix.h5").unlink()
    barcodes = list(platform_files.visium_positions().barcode[:9])
    counts = platform_files.counts_of(9)
    platform_files.write_tenx_folder(outs / "filtered_feature_bc_matrix", counts, barcodes)


def _visium_hd(folder: Path) -> None:
    platform_files.write_visium_hd(folder / "V", sizes=(8,))


def _xenium(folder: Path) -> None:
    platform_files.write_xenium(folder / "V", parquet=False)


def _stimage(folder: Path) -> None:
    platform_files.write_stimage(folder / "V", "S1")
    (folder / "V/image/S1.png").write_bytes(b"")


def _legacy(folder: Path) -> None:
    (folder / "V").mkdir()
    places = [(x, y) for y in range(3) for x in range(4)]
    rows = [f"{x}\t{y}\t{x}\t{y}\t{30 + 50 * x}\t{40 + 50 * y}\t1\n" for x, y in places]
    header = "x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected\n"
    (folder / "V/B4_selection.tsv").write_text(header + "".join(rows))
    counts = "\tA\tB\n" + "".join(f"{x}x{y}\t{x}\t{y}\n" for x, y in places)
    (folder / "V/B4.tsv.gz").write_bytes(gzip.compress(counts.encode(), mtime=0))


def _kit(folder: Path) -> None:
    platform_files.write_hest(folder / "h")
    (folder / "h/st/TENX1.h5ad").rename(folder / "c.h5ad")
    kit = folder / "V"
    kit.mkdir()
    (folder / "c.h5ad").rename(kit / "c.h5ad")
    (kit / "i.png").write_bytes(b"")
    text = "id,image,counts,spots,um_per_px,patient\nS,i.png,c.h5ad,,1.0,p\n"
    (kit / "dataset.csv").write_text(text)


def _hest(folder: Path) -> None:
    platform_files.write_hest(folder / "V")


def _public_weights(folder: Path) -> None:
    torch.manual_seed(0)
    model = TransformerDenoiser(5, 4, 8, 8, 2, 1)
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, folder / "w.pth")


def _flat_weights(folder: Path) -> None:
    torch.manual_seed(0)
    torch.save(TransformerDenoiser(5, 4, 8, 8, 2, 1).state_dict(), folder / "w.pth")


def _safe_weights(folder: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(TransformerDenoiser(5, 4, 8, 8, 2, 1).state_dict(), folder / "w.safetensors")


def _read_weights(folder: Path) -> object:
    (path,) = folder.glob("w.*")
    return read_state_dict(path), load_stflow(path, "graph")


def _trident(folder: Path) -> None:
    coords = grid(3, 4)
    write_trident(folder / "20x/features_uni_v1/S.h5", coords, features(len(coords)))


def _clam(folder: Path) -> None:
    coords = grid(3, 4)
    write_clam(folder, "S", coords, features(len(coords)))


def _read_trident(folder: Path) -> object:
    slide = load_slide(folder / "20x/features_uni_v1/S.h5")
    return slide.x, slide.coords, slide.um_per_px, slide.barcodes


def _read_clam(folder: Path) -> object:
    slide = load_slide(folder / "pt_files/S.pt")
    read_tensor(folder / "pt_files/S.pt")
    return slide.x, slide.coords, slide.um_per_px, slide.barcodes


def _image(name: str, **options: Any) -> Any:
    def write(folder: Path) -> None:
        Image.fromarray(tissue_like(150, 110)).save(folder / name, **options)

    return write


def _tiled(folder: Path) -> None:
    write_svs(folder / "i.svs", tissue_like(600, 500), steps=1)


def _read_image(folder: Path) -> object:
    """Read an image as `prepare` does: an overview of it, and a patch."""
    (path,) = folder.glob("i.*")
    with open_image(path) as image:
        width, height = image.size
        overview = image.read_overview(max(1.0, max(width, height) / 256))
        patch = image.read_patch(width / 2, height / 2, 50.0, 32)
        return image.size, image.sizes, image.um_per_px, overview, patch


_ALL = (
    Format("embeddings", _embeddings, _read_embeddings, own=True),
    Format("patches", _patches, _read_patches, own=True),
    Format("expression", _expression, _read_expression, own=True),
    Format("predictions", _predictions, _read_prediction, own=True),
    Format("predictions, in blocks", _predictions, _read_blocks, own=True),
    Format("predictions, exported", _predictions, _read_exported, own=True),
    Format("checkpoint", _checkpoint, _read_checkpoint, own=True, files=("c/*[!d]",)),
    Format("checkpoint, zip", _zip, _read_zip, own=True),
    Format("run", _run, _read_run, files=("*.*", "fold0/*.json")),
    Format("state", _state, _read_state),
    Format("gene list", _genes, _read_genes),
    Format("splits", _splits, _read_splits),
    Format("aliases", _aliases, _read_aliases),
    Format("gene sets", _gene_sets, _read_gene_sets),
    Format("patients", _patients, _read_patients),
    Format("config", _config, _read_config),
    Format("checkpoint, resealed", _checkpoint, _read_resealed, files=("c/*[!d]",)),
    Format("HEST embeddings", _foreign_embeddings, _read_embeddings),
    Format("HEST patches", _foreign_patches, _read_patches),
    Format("foreign .h5ad", _foreign_expression, _read_expression),
    Format("unmarked predictions", _unmarked_predictions, _read_prediction),
    Format("unmarked predictions, in blocks", _unmarked_predictions, _read_blocks),
    Format("unmarked predictions, exported", _unmarked_predictions, _read_exported),
    Format("predictions on a page", _predictions_and_overlay, _read_page),
    Format("Visium", _visium, _read_visium),
    Format("Visium, 10x v2", _tenx_v2, _read_visium, files=("**/*.h5",)),
    Format("Visium, mtx", _mtx, _read_visium, files=("**/*.gz",)),
    Format("Visium HD", _visium_hd, _read_visium),
    Format("Xenium", _xenium, _read_visium),
    Format("HEST-1k", _hest, _read_visium, files=("**/*.h5ad", "**/*.json")),
    Format("STimage-1K4M", _stimage, _read_visium, files=("**/*.csv",)),
    Format("legacy ST", _legacy, _read_visium),
    Format("kit", _kit, _read_visium, files=("V/*.csv",)),
    Format("TRIDENT", _trident, _read_trident),
    Format("CLAM", _clam, _read_clam),
    Format("weights .pth", _flat_weights, _read_weights),
    Format("weights, nested", _public_weights, _read_weights),
    Format("weights .safetensors", _safe_weights, _read_weights),
    Format("PNG", _image("i.png"), _read_image),
    Format("JPEG", _image("i.jpg", quality=90), _read_image),
    Format("TIFF in strips", _image("i.tif", compression="tiff_deflate"), _read_image),
    Format("TIFF in tiles", _tiled, _read_image),
)
FORMATS = {format.name: format for format in _ALL}
