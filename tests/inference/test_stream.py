from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toy import write_slide

from stflow_graph.config import load_config
from stflow_graph.data.load import load_slide
from stflow_graph.data.normalise import Normalisation
from stflow_graph.errors import BadInput, OutOfMemory
from stflow_graph.flow.noise import spot_keys
from stflow_graph.inference import stream as module
from stflow_graph.inference.inputs import slide_data
from stflow_graph.inference.predict import as_expression, draw_samples
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.inference.stream import stream
from stflow_graph.io.embeddings import open_embeddings
from stflow_graph.models.build import build_denoiser
from stflow_graph.models.checkpoint import load_checkpoint
from stflow_graph.nn.encoder import GraphEncoder
from stflow_graph.nn.ensemble import flows_about_the_mean
from stflow_graph.stages.sample import sample
from stflow_graph.stages.train import train

CPU = torch.device("cpu")
ROOTS = {"data.source_dataroot": "unused", "data.embed_dataroot": "unused"}


@pytest.fixture
def run(cohort, tmp_path):
    train(load_config(None, {**cohort.settings, "train.members": 2}), tmp_path / "run")
    return tmp_path / "run"


def streamed(run, file, **options):
    """Return mean and samples of a slide, put together from the blocks."""
    checkpoint = load_checkpoint(run / "fold0/checkpoint")
    config, scaling = checkpoint.config, checkpoint.normalisation
    with open_embeddings(file) as source:
        blocks = list(
            stream(
                checkpoint.build(),
                source,
                file.stem,
                config,
                config.flow,
                scaling,
                n_samples=3,
                **options,
            )
        )
    ends = [(block.rows.start, block.rows.stop) for block in blocks]
    assert [start for start, _ in ends] == [0, *(end for _, end in ends[:-1])]
    mean = np.concatenate([block.mean for block in blocks])
    return mean, np.concatenate([block.samples for block in blocks], axis=1), len(blocks)


@torch.inference_mode()
def whole(members, slide, config, scaling, n_samples=3):
    """Return mean and samples by the members' encoders on the whole slide at once."""
    data = slide_data(slide, config, scaling)
    encodings = [member.encoder(data) for member in members]
    mean = torch.stack([encoding.mean for encoding in encodings]).mean(0)
    models = flows_about_the_mean(members, mean, [encoding.states for encoding in encodings])
    keys = spot_keys(slide.name, slide.barcodes)
    samples = draw_samples(models, keys, config.flow, scaling, n_samples, 0)
    return as_expression(mean, scaling), samples


def in_small_pieces(monkeypatch):
    """Make every block of embeddings and of predictions a few rows."""
    monkeypatch.setattr(module, "_KEEP_BYTES", 0)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1)
    monkeypatch.setattr("stflow_graph.io.predictions._CHUNK_BYTES", 4 * 6 * 5)
    monkeypatch.setattr("stflow_graph.io.embeddings._BLOCK_BYTES", 1)


@pytest.mark.parametrize("tile_size", [None, 3, 11])
@pytest.mark.parametrize("pieces", [False, True])
def test_a_slide_in_blocks_and_tiles_is_predicted_as_a_whole(
    run, cohort, monkeypatch, tile_size, pieces
):
    checkpoint = load_checkpoint(run / "fold0/checkpoint")
    slide = load_slide(cohort.embedding("A"))
    expected = whole(checkpoint.build(), slide, checkpoint.config, checkpoint.normalisation)
    if pieces:
        in_small_pieces(monkeypatch)
    mean, samples, n_blocks = streamed(run, cohort.embedding("A"), tile_size=tile_size)
    assert n_blocks == (8 if pieces else 1)  # 36 rows by 5
    np.testing.assert_allclose(mean, expected[0], atol=1e-5)
    np.testing.assert_allclose(samples, expected[1], atol=1e-5)


def test_out_of_memory_halves_the_tiles_and_says_so_once_each_time(
    run, cohort, monkeypatch, caplog
):
    expected, encode = streamed(run, cohort.embedding("A")), GraphEncoder.encode

    def small_device(self, gathered, graph):
        if max(map(len, graph.tiles)) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(self, gathered, graph)

    monkeypatch.setattr(GraphEncoder, "encode", small_device)
    monkeypatch.setattr(module, "_MIN_TILE", 4)
    with caplog.at_level(logging.WARNING):
        found = streamed(run, cohort.embedding("A"), tile_size=32)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    assert [record.getMessage() for record in caplog.records] == [
        "A: out of memory with tiles of 32 spots: going on with 16",
        "A: out of memory with tiles of 16 spots: going on with 8",
    ]
    monkeypatch.setattr(module, "_MIN_TILE", 16)
    with pytest.raises(OutOfMemory, match=r"A: out of memory with tiles of 16 spots. Fix"):
        streamed(run, cohort.embedding("A"), tile_size=32)


def test_other_errors_are_not_taken_for_a_lack_of_memory(run, cohort, monkeypatch):
    def broken(self, gathered, graph):
        raise RuntimeError("something else")

    monkeypatch.setattr(GraphEncoder, "encode", broken)
    with pytest.raises(RuntimeError, match="something else"):
        streamed(run, cohort.embedding("A"))


def test_a_file_that_goes_bad_on_the_way_leaves_nothing(run, cohort, tmp_path, monkeypatch):
    in_small_pieces(monkeypatch)
    file = cohort.embedding("A")
    with open_embeddings(file) as source:
        x = source.data[()]
    content = file.read_bytes()
    place = content.find(x[30].tobytes())
    file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(BadInput, match="checksum"):
        sample(run, [file], tmp_path / "out", SampleSettings(n_samples=2))
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
    write_slide(file, None, n_spots, seed=0)
    settings = {"denoiser.hidden_channels": 16, "denoiser.input_dropout": 0.5}
    config = load_config(None, {**ROOTS, **settings})
    model = build_denoiser(config, 10, n_genes).eval()
    zeros = np.zeros(10, np.float32)
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
    write_slide(file, None, 50, seed=0)
    settings = {"denoiser.hidden_channels": 16, "denoiser.input_dropout": 0.5}
    config = load_config(None, {**ROOTS, **settings})
    torch.manual_seed(0)
    members = [build_denoiser(config, 10, n_genes).eval() for _ in range(2)]
    for member in members:
        torch.nn.init.normal_(member.flow.mlp[2].weight)
    zeros = np.zeros(10, np.float32)
    level = np.zeros(n_genes, np.float32)
    normalisation = Normalisation("center", True, zeros, zeros + 1, level)
    mean, samples = whole(members, load_slide(file), config, normalisation, n_samples)
    with open_embeddings(file) as source:
        (block,) = stream(
            members, source, "A", config, config.flow, normalisation, n_samples=n_samples
        )
    np.testing.assert_allclose(block.mean, mean, atol=1e-5)
    if n_samples > 1:
        np.testing.assert_allclose(block.samples, samples, atol=1e-5)


def test_tiles_are_cut_from_the_same_graph_whatever_their_size():
    generator = torch.Generator().manual_seed(0)
    coords = torch.rand(200, 2, generator=generator, dtype=torch.float64).numpy()
    config = load_config(None, ROOTS)
    edges = [
        sorted(
            pair
            for tile in module._tiled_graph(coords, config, CPU, size).tiles
            for pair in map(tuple, tile.nodes[tile.edges.edge_index.as_tensor()].T.tolist())
        )
        for size in (7, 1000)
    ]
    assert edges[0] == edges[1]
