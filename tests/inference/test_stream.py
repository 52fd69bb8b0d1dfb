from __future__ import annotations

import dataclasses
import errno
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from linear import CHANNELS, CPU, checkpoint_of, configured, lively
from torch.utils._python_dispatch import TorchDispatchMode
from toy import write_slide

from stflow_graph.data.load import load_slide
from stflow_graph.data.normalise import Normalisation
from stflow_graph.data.slide import Slide
from stflow_graph.errors import BadInput, OutOfMemory, StorageFailed
from stflow_graph.flow.field import SlideNoise
from stflow_graph.flow.noise import spot_keys
from stflow_graph.graph.arrays import IN_MEMORY
from stflow_graph.graph.whole import WholeGraph
from stflow_graph.inference import projections
from stflow_graph.inference import stream as module
from stflow_graph.inference.inputs import slide_data
from stflow_graph.inference.predict import as_expression, draw_samples
from stflow_graph.inference.scratch import ScratchFiles
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.inference.stream import stream
from stflow_graph.io.embeddings import EmbeddingFile, open_embeddings
from stflow_graph.models.build import build_denoiser
from stflow_graph.models.checkpoint import Checkpoint, save_checkpoint
from stflow_graph.nn.encoder import GraphEncoder
from stflow_graph.nn.ensemble import flows_about_the_mean
from stflow_graph.stages.sample import sample


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return checkpoint_of(denoiser__n_layers=2, denoiser__global_attention="latent")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The embeddings of a slide of 36 spots."""
    write_slide(tmp_path / "A.h5", None, 36, seed=0, channels=CHANNELS)
    return tmp_path / "A.h5"


@pytest.fixture
def source(file: Path) -> Iterator[EmbeddingFile]:
    with open_embeddings(file) as opened:
        yield opened


def streamed(
    checkpoint: Checkpoint, source: EmbeddingFile | Slide, **options: Any
) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Return mean and samples of a slide, put together from the blocks, and their number."""
    config, scaling = checkpoint.config, checkpoint.normalisation
    members = checkpoint.build()
    options = {"n_samples": 3, "field": checkpoint.field, **options}
    blocks = list(stream(members, source, "A", config, config.flow, scaling, **options))
    ends = [(block.rows.start, block.rows.stop) for block in blocks]
    assert [start for start, _ in ends] == [0, *(end for _, end in ends[:-1])]
    assert ends[-1][1] == len(source)
    mean = np.concatenate([block.mean for block in blocks])
    if options["n_samples"] == 1:
        assert all(block.samples is None for block in blocks)
        return mean, None, len(blocks)
    return mean, np.concatenate([block.samples for block in blocks], axis=1), len(blocks)


@torch.inference_mode()
def whole(members, slide, config, scaling, n_samples=3, field=None):
    """Return mean and samples by the members' encoders on the whole slide at once."""
    data = slide_data(slide, config, scaling)
    encodings = [member.encoder(data) for member in members]
    mean = torch.stack([encoding.mean for encoding in encodings]).mean(0)
    if field is not None:
        expected = as_expression(mean, scaling)
        keys = spot_keys(slide.name, slide.barcodes)
        noise = SlideNoise(keys, slide.name, WholeGraph.of(data).average, 0)
        place = torch.from_numpy(scaling.place(slide.x.mean(0, dtype=np.float64))).float()
        draws = field.draw(noise, place, n_samples)
        rows = slice(0, len(slide))
        drawn = draws.expression(torch.from_numpy(expected), rows)
        return expected, np.stack([sample.numpy() for sample in drawn])
    models = flows_about_the_mean(members, mean, [encoding.states for encoding in encodings])
    keys = spot_keys(slide.name, slide.barcodes)
    samples = draw_samples(models, keys, config.flow, scaling, n_samples, 0)
    return as_expression(mean, scaling), samples


def assert_near(actual: np.ndarray, expected: np.ndarray) -> None:
    """Compare values that were computed from numbers as large as the largest of them."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def in_small_pieces(monkeypatch):
    """Make every block of embeddings and of predictions a few rows."""
    monkeypatch.setattr(projections, "_KEEP_BYTES", 0)
    monkeypatch.setattr(projections, "_PROJECTED_BYTES", 1)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1)
    monkeypatch.setattr("stflow_graph.io.predictions._CHUNK_BYTES", 4 * 4 * 5)
    monkeypatch.setattr("stflow_graph.io.embeddings._BLOCK_BYTES", 1)


@pytest.fixture(scope="module")
def with_field() -> Checkpoint:
    return checkpoint_of("field", denoiser__n_layers=2)


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("tile_size", [None, 3, 11])
@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("of", ["flow", "field"])
def test_a_slide_in_blocks_and_tiles_is_predicted_as_a_whole(
    checkpoint, with_field, file, source, monkeypatch, tile_size, pieces, in_memory, of
):
    slide = load_slide(file)
    checkpoint = with_field if of == "field" else checkpoint
    config, scaling = checkpoint.config, checkpoint.normalisation
    expected = whole(checkpoint.build(), slide, config, scaling, field=checkpoint.field)
    assert expected[1].std(axis=0).min() > 0.01
    if pieces:
        in_small_pieces(monkeypatch)
    read = slide if in_memory else source
    mean, samples, n_blocks = streamed(checkpoint, read, tile_size=tile_size)
    assert n_blocks == (8 if pieces else 1)  # 36 rows by 5
    np.testing.assert_allclose(mean, expected[0], atol=1e-5)
    assert_near(samples, expected[1])
    alone, _, _ = streamed(checkpoint, read, tile_size=tile_size, n_samples=1)
    np.testing.assert_allclose(alone, mean, atol=1e-6)


@pytest.mark.parametrize("of", ["flow", "field"])
def test_arrays_in_files_hold_the_same_values(
    checkpoint, with_field, source, monkeypatch, tmp_path, of
):
    checkpoint = with_field if of == "field" else checkpoint
    monkeypatch.setattr("stflow_graph.flow.field._AVERAGED", 3 * 36)
    expected = streamed(checkpoint, source, tile_size=11)
    made, of_bytes = [], ScratchFiles._file
    monkeypatch.setattr(ScratchFiles, "_file", lambda *a: (made.append(a[1]), of_bytes(*a))[1])
    monkeypatch.setattr("stflow_graph.inference.scratch._BRIEFLY", 0)
    monkeypatch.setattr(module, "_IN_MEMORY", 35)
    found = streamed(checkpoint, source, tile_size=11, scratch=tmp_path / "out")
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(made) > 10
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_is_full_of_temporary_arrays_leaves_nothing(
    checkpoint, file, tmp_path, monkeypatch
):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("stflow_graph.inference.scratch._allocate", full)
    save_checkpoint(tmp_path / "checkpoint", checkpoint)
    sample(tmp_path / "checkpoint", [file], tmp_path / "out")  # in memory
    (tmp_path / "out" / "A.h5ad").unlink()
    monkeypatch.setattr(module, "_IN_MEMORY", 35)
    with pytest.raises(StorageFailed, match="temporary arrays"):
        sample(tmp_path / "checkpoint", [file], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_order_of_the_spots_does_not_count(with_field, file, tmp_path):
    slide = load_slide(file)
    order = np.random.default_rng(0).permutation(len(slide))
    shuffled = dataclasses.replace(
        slide,
        x=slide.x[order],
        coords=slide.coords[order],
        barcodes=[slide.barcodes[i] for i in order],
    )
    mean, samples, _ = streamed(with_field, slide, tile_size=7)
    found = streamed(with_field, shuffled, tile_size=7)
    np.testing.assert_allclose(found[0], mean[order], atol=1e-5)
    assert_near(found[1], samples[:, order])


def test_blocks_are_whole_chunks_that_memory_has_room_for(checkpoint, source, monkeypatch):
    in_small_pieces(monkeypatch)
    n_genes, n_members = len(checkpoint.genes), checkpoint.n_members
    row = 4 * n_genes * (3 + n_members + 8)  # bytes
    monkeypatch.setattr(module, "_BLOCK_BYTES", 12 * row)
    _, _, n_blocks = streamed(checkpoint, source)
    assert n_blocks == 4  # 36 rows by 10, two chunks of 5


@pytest.mark.parametrize("of", ["flow", "field"])
def test_seed_and_name_decide_the_noise(checkpoint, with_field, source, of):
    checkpoint = with_field if of == "field" else checkpoint
    config, scaling = checkpoint.config, checkpoint.normalisation
    _, samples, _ = streamed(checkpoint, source)
    np.testing.assert_array_equal(streamed(checkpoint, source)[1], samples)
    assert np.abs(streamed(checkpoint, source, seed=1)[1] - samples).mean() > 1e-2
    options = {"n_samples": 3, "field": checkpoint.field}
    (block,) = stream(checkpoint.build(), source, "B", config, config.flow, scaling, **options)
    assert np.abs(block.samples - samples).mean() > 1e-2


def test_out_of_memory_halves_the_tiles_and_says_so_once_each_time(
    checkpoint, source, monkeypatch, caplog
):
    expected, encode = streamed(checkpoint, source), GraphEncoder.encode
    memory: list[int] = [10]

    def small_device(self, gathered, graph):
        if max(map(len, graph.tiles)) > memory[0]:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: no memory")
        return encode(self, gathered, graph)

    monkeypatch.setattr(GraphEncoder, "encode", small_device)
    monkeypatch.setattr(module, "_MIN_TILE", 4)
    with caplog.at_level(logging.WARNING):
        found = streamed(checkpoint, source, tile_size=32)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    assert_near(found[1], expected[1])
    assert [record.getMessage() for record in caplog.records] == [
        "A: out of memory with tiles of 32 spots: going on with 16",
        "A: out of memory with tiles of 16 spots: going on with 8",
    ]
    memory[0] = 5
    monkeypatch.setattr(module, "_MIN_TILE", 6)
    caplog.clear()
    with pytest.raises(OutOfMemory, match=r"A: out of memory with tiles of 6 spots. Fix"):
        streamed(checkpoint, source, tile_size=11)
    assert [record.getMessage() for record in caplog.records] == [
        "A: out of memory with tiles of 11 spots: going on with 6",
    ]


def test_members_that_are_done_are_not_run_again(checkpoint, source, monkeypatch):
    expected, encode = streamed(checkpoint, source), GraphEncoder.encode
    calls = []

    def gives_out_once(self, gathered, graph):
        calls.append(self)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(self, gathered, graph)

    monkeypatch.setattr(GraphEncoder, "encode", gives_out_once)
    monkeypatch.setattr(module, "_MIN_TILE", 4)
    found = streamed(checkpoint, source, tile_size=32)
    assert len(calls) == 3
    assert calls[0] is not calls[1] is calls[2]
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)


def test_other_errors_are_not_taken_for_a_lack_of_memory(checkpoint, source, monkeypatch):
    def broken(self, gathered, graph):
        raise RuntimeError("something else")

    monkeypatch.setattr(GraphEncoder, "encode", broken)
    with pytest.raises(RuntimeError, match="something else"):
        streamed(checkpoint, source)


def test_tiles_are_as_large_as_memory_allows_within_bounds(monkeypatch):
    def automatic(n_genes: int, channels: int = 8) -> int:
        config = configured(denoiser__ridge_rank=0, denoiser__hidden_channels=channels)
        encoder = build_denoiser(config, CHANNELS, n_genes).encoder
        return module._automatic_tile_size(encoder, CPU)

    assert automatic(4, 64) * 64 * 12 * 4 == pytest.approx(module._EDGE_BYTES, rel=0.01)
    assert automatic(4, 1024) == module.CACHE_SIZED
    monkeypatch.setattr(module, "_TILE_BYTES", 16 * 4 * 100)
    assert automatic(4) == 100
    assert automatic(5) == 80
    assert automatic(5000) == module._MIN_TILE


def test_a_file_that_goes_bad_on_the_way_leaves_nothing(checkpoint, file, tmp_path, monkeypatch):
    in_small_pieces(monkeypatch)
    with open_embeddings(file) as opened:
        x = opened.data[()]
    content = file.read_bytes()
    place = content.find(x[30].tobytes())
    file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    save_checkpoint(tmp_path / "checkpoint", checkpoint)
    with pytest.raises(BadInput, match="checksum"):
        sample(tmp_path / "checkpoint", [file], tmp_path / "out", SampleSettings(n_samples=2))
    assert list((tmp_path / "out").iterdir()) == []


class Largest(TorchDispatchMode):
    """Remembers the most numbers that any tensor made has."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(each, torch.Tensor):
                self.numel = max(self.numel, each.numel())
        return out


def test_no_tensor_holds_all_spots_and_all_genes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1)
    n_spots, n_genes = 400, 5000
    file = tmp_path / "A.h5"
    write_slide(file, None, n_spots, seed=0, channels=CHANNELS)
    config = configured()
    model = build_denoiser(config, CHANNELS, n_genes).eval()
    zeros = np.zeros(CHANNELS, np.float32)
    level = np.zeros(n_genes, np.float32)
    normalisation = Normalisation("center", True, zeros, zeros + 1, level)
    with open_embeddings(file) as source, Largest() as largest:
        found = list(
            stream(
                [model], source, "A", config, config.flow, normalisation, n_samples=2, tile_size=32
            )
        )
    assert sum(len(block.mean) for block in found) == n_spots
    # a tile of 32 spots with its halo, or 52 rows of the file
    assert n_genes * 16 < largest.numel < n_genes * 150 < n_genes * n_spots


@pytest.mark.parametrize("n_samples", [1, 3])
@pytest.mark.parametrize("n_genes", [6, 40, 200])
def test_members_are_kept_as_codes_or_as_expression_with_the_same_result(
    tmp_path, monkeypatch, n_genes, n_samples
):
    monkeypatch.setattr(module, "_DECODED_SPOTS", 7)
    file = tmp_path / "A.h5"
    write_slide(file, None, 50, seed=0, channels=CHANNELS)
    config = configured()
    with torch.random.fork_rng():
        torch.manual_seed(0)  # whatever tests ran before
        members = [lively(build_denoiser(config, CHANNELS, n_genes), seed) for seed in range(2)]
    zeros = np.zeros(CHANNELS, np.float32)
    level = np.zeros(n_genes, np.float32)
    normalisation = Normalisation("center", True, zeros, zeros + 1, level)
    mean, samples = whole(members, load_slide(file), config, normalisation, n_samples)
    with open_embeddings(file) as source:
        (block,) = stream(
            members, source, "A", config, config.flow, normalisation, n_samples=n_samples
        )
    np.testing.assert_allclose(block.mean, mean, atol=1e-5)
    if n_samples > 1:
        assert_near(block.samples, samples)


def test_tiles_are_cut_from_the_same_graph_whatever_their_size():
    generator = torch.Generator().manual_seed(0)
    coords = torch.rand(200, 2, generator=generator, dtype=torch.float64).numpy()
    config = configured()
    edges = [
        sorted(
            pair
            for tile in module._tiled_graph(coords, config, CPU, size, IN_MEMORY).tiles
            for pair in map(tuple, tile.nodes[tile.edges.edge_index.as_tensor()].T.tolist())
        )
        for size in (7, 1000)
    ]
    assert edges[0] == edges[1]
