from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from linear import (
    CHANNELS,
    GENES,
    KINDS,
    N_GENES,
    checkpoint_of,
    linear_slide,
    lively,
    new_network,
    prepared,
    same_weights,
)
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load_file, save_file

from stflow_graph.errors import BadConfig, BadInput, BadModel
from stflow_graph.inference.slide_model import SlideModel
from stflow_graph.io.atomic import sha256, write_json
from stflow_graph.io.sealed_json import JSON_SEAL, seal_json
from stflow_graph.models.checkpoint import (
    FORMAT,
    Checkpoint,
    find_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from stflow_graph.nn.two_stage import TwoStageDenoiser
from stflow_graph.stats.calibration import Calibration
from stflow_graph.stats.training_range import TrainingRange

CALIBRATION = Calibration(
    np.array([0.3, 1 / 3, 2.0, 8.0]), np.array([0.1, np.nan, 0.3, 0.4]), np.array([np.nan] * 4)
)


def edit(folder: Path, **changes: Any) -> None:
    """Change entries of config.json and its checksum; None removes one."""
    file = folder / "config.json"
    content = {**json.loads(file.read_text()), **changes}
    content.pop(JSON_SEAL)
    write_json(file, seal_json({k: v for k, v in content.items() if v is not None}))


def rehash(file: Path) -> None:
    """State the hash that a file of a checkpoint has."""
    hashes = json.loads((file.parent / "config.json").read_text())["sha256"]
    edit(file.parent, sha256={**hashes, file.name: sha256(file)})


def edit_weights(
    folder: Path, name: str = "model.safetensors", **changes: torch.Tensor | None
) -> None:
    """Change tensors of a file and state the new hash; None removes one."""
    file = folder / name
    weights = {**load_file(file), **changes}
    save_file({k: v for k, v in weights.items() if v is not None}, file)
    rehash(file)


def range_of(n_channels: int = CHANNELS, n_genes: int = N_GENES, seed: int = 0) -> TrainingRange:
    rng = np.random.default_rng(seed)
    slides = [rng.normal(size=(30, n_channels)) for _ in range(3)]
    stains = [rng.dirichlet(np.ones(3)), None, rng.dirichlet(np.ones(3))]
    return TrainingRange.fit(slides, [rng.gamma(1, 1, (20, n_genes))], stains)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_members", [1, 3])
def test_a_checkpoint_is_read_as_it_was_written(tmp_path, kind, n_members):
    written = checkpoint_of(kind, n_members)
    save_checkpoint(tmp_path / "c", written)
    read = load_checkpoint(str(tmp_path / "c"))
    for field in dataclasses.fields(Checkpoint):
        if field.name not in ("weights", "normalisation", "field"):
            assert getattr(read, field.name) == getattr(written, field.name), field.name
    assert same_weights(read.weights, written.weights)
    if written.field is not None:
        assert same_weights(read.field.state_dict(), written.field.state_dict())
    for field in dataclasses.fields(written.normalisation):
        expected = getattr(written.normalisation, field.name)
        np.testing.assert_array_equal(getattr(read.normalisation, field.name), expected)
    assert sorted(file.name for file in (tmp_path / "c").iterdir()) == [
        "README.md",
        "config.json",
        *(["field.safetensors"] if kind == "field" else []),
        "genes.json",
        "model.safetensors",
        "normalisation.safetensors",
    ]


def test_the_calibration_is_read_to_the_last_digit(tmp_path):
    genes = ["NA", "007", "null", "G,3"]  # names that pandas would take for missing values
    written = dataclasses.replace(checkpoint_of(calibration=CALIBRATION), genes=genes)
    save_checkpoint(tmp_path / "c", written)
    read = load_checkpoint(tmp_path / "c")
    assert read.genes == genes
    for name in ("spread", "pearson", "pearson_sd"):
        found = getattr(read.calibration, name)
        np.testing.assert_array_equal(found, getattr(CALIBRATION, name))
        assert found.dtype == np.float64
    with (tmp_path / "c" / "calibration.csv").open() as file:
        assert file.readline() == "gene,spread,pearson,pearson_sd\n"


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_built_with_their_own_weights(kind):
    checkpoint = checkpoint_of(kind, n_members=3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    members = checkpoint.build()
    assert torch.equal(torch.get_rng_state(), before)
    for seed, member in enumerate(members):
        expected = lively(new_network(checkpoint.config), seed)
        assert same_weights(member.state_dict(), expected.state_dict())
        assert not any(module.training for module in member.modules())
        assert all(p.device.type == "cpu" for p in member.parameters())
    (alone,) = checkpoint_of(kind, n_members=1).build(torch.device("cpu"))
    assert same_weights(alone.state_dict(), members[0].state_dict())


def test_a_member_loads_as_a_bare_network(tmp_path):
    checkpoint = checkpoint_of()
    save_checkpoint(tmp_path / "c", checkpoint)
    network = TwoStageDenoiser.from_pretrained(tmp_path / "c", member=1)
    assert same_weights(network.state_dict(), checkpoint.build()[1].state_dict())
    content = json.loads((tmp_path / "c" / "config.json").read_text())
    assert content["network"] == "TwoStageDenoiser"
    assert content["arguments"]["in_channels"] == CHANNELS
    assert content["arguments"]["n_genes"] == N_GENES


def test_a_layer_that_json_cannot_describe_is_built_from_the_configuration(tmp_path):
    checkpoint = checkpoint_of(denoiser__conv="pyg:SAGEConv")
    save_checkpoint(tmp_path / "c", checkpoint)
    assert "arguments" not in json.loads((tmp_path / "c" / "config.json").read_text())
    slide = linear_slide("S", 16)
    outputs = []
    for read in (checkpoint, load_checkpoint(tmp_path / "c")):
        inputs = prepared(slide, read.config, read.normalisation)
        outputs.append(read.build()[1].encoder(inputs.data).mean)
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "normalisation.safetensors", "genes.json", "calibration.csv"),
        *("field.safetensors", "training_range.safetensors"),
    ],
)
def test_a_missing_or_damaged_file_is_refused(tmp_path, name):
    checkpoint = checkpoint_of("field", calibration=CALIBRATION)
    save_checkpoint(tmp_path / "c", dataclasses.replace(checkpoint, training_range=range_of()))
    file = tmp_path / "c" / name
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BadModel, match=rf"{name}: sha256: found another hash") as caught:
        load_checkpoint(tmp_path / "c")
    assert caught.value.exit_code == 4
    file.unlink()
    with pytest.raises(BadModel, match=name):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("option", ["conv", "global_attention"])
@pytest.mark.parametrize("name", ["evil_layer:Layer", "os:kill", "torch_geometric.nn:Linear"])
def test_a_checkpoint_that_names_code_runs_none_of_it(tmp_path, monkeypatch, option, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil_layer.py").write_text("import os\nos.mkdir('ran')\nLayer = None\n")
    save_checkpoint(tmp_path / "c", checkpoint_of())
    config = json.loads((tmp_path / "c/config.json").read_text())["config"]
    config["denoiser"][option] = name
    edit(tmp_path / "c", config=config)
    path = list(sys.path)
    message = rf"c.config\.json: denoiser\.{option}: found '{name}', code.* --allow-code"
    for load in (load_checkpoint, SlideModel.from_pretrained):
        with pytest.raises(BadConfig, match=message) as caught:
            load(tmp_path / "c")
        assert (str(tmp_path / "evil_layer.py") in str(caught.value)) == name.startswith("evil")
    assert not (tmp_path / "ran").exists()
    assert "evil_layer" not in sys.modules
    # whoever allows it runs what is there, and only layers
    with pytest.raises(BadConfig, match=r"subclass of torch\.nn\.Module|need an adapter"):
        load_checkpoint(tmp_path / "c", allow_code=True).build()
    assert (tmp_path / "ran").exists() == name.startswith("evil")
    sys.modules.pop("evil_layer", None)
    assert sys.path == path


def test_layers_of_ours_and_of_pyg_need_no_permission(tmp_path):
    for conv in ("frame_averaged", "pyg:GATv2Conv"):
        save_checkpoint(tmp_path / "c", checkpoint_of(denoiser__conv=conv))
        assert load_checkpoint(tmp_path / "c").build()


def test_the_card_of_a_model_with_code_of_its_own_names_it(tmp_path):
    name = f"{__name__}:OwnConv"
    save_checkpoint(tmp_path / "c", checkpoint_of(denoiser__conv=name))
    card = (tmp_path / "c/README.md").read_text()
    assert 'SlideModel.from_pretrained("OWNER/NAME", allow_code=True)' in card
    assert "--out PREDICTIONS --allow-code`" in card
    assert f"does not hold: {name}." in card
    assert load_checkpoint(tmp_path / "c", allow_code=True).build()
    save_checkpoint(tmp_path / "d", checkpoint_of())
    card = (tmp_path / "d/README.md").read_text()
    assert not {"allow_code", "--allow-code"} & set(card.replace(",", " ").split())
    assert "does not hold" not in card


class OwnConv(torch.nn.Module):
    """A layer of a user's."""

    def __init__(self, channels: int, n_genes: int) -> None:
        super().__init__()
        self.lin = torch.nn.Linear(n_genes, channels)

    def forward(self, h, y, edge_index, edge_attr, edge_weight):
        return self.lin(y)


def test_only_a_models_folder_is_replaced(tmp_path):
    checkpoint = checkpoint_of()
    (tmp_path / "c").mkdir()
    (tmp_path / "c/thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, found in (("c", r"other entries, such as \['thesis.tex'\]"), ("file", "a file")):
        with pytest.raises(BadInput, match=f"output: found .*{found}"):
            save_checkpoint(tmp_path / name, checkpoint)
        with pytest.raises(BadInput, match=f"output: found .*{found}"):
            SlideModel(checkpoint).save_pretrained(tmp_path / name)
    assert (tmp_path / "c/thesis.tex").read_text() == (tmp_path / "file").read_text() == "mine"
    with pytest.raises(BadInput, match="other entries"):
        checkpoint_of("graph", 1).build()[0].save_pretrained(tmp_path / "c")
    # models replace one another, whole or bare
    (tmp_path / "m").mkdir()
    save_checkpoint(tmp_path / "m", checkpoint_of(calibration=CALIBRATION))
    checkpoint_of("graph", 1).build()[0].save_pretrained(tmp_path / "m")
    assert {f.name for f in (tmp_path / "m").iterdir()} == {
        *("config.json", "model.safetensors", "README.md")
    }
    save_checkpoint(tmp_path / "m", checkpoint_of("field", calibration=CALIBRATION))
    save_checkpoint(tmp_path / "m", checkpoint)
    assert load_checkpoint(tmp_path / "m").field is None


def test_a_table_that_is_not_listed_is_not_read(tmp_path):
    save_checkpoint(tmp_path / "c", checkpoint_of())
    (tmp_path / "c" / "calibration.csv").write_text("gene,spread\n")
    assert load_checkpoint(tmp_path / "c").calibration is None


@pytest.mark.parametrize("name", ["model.safetensors", "normalisation.safetensors"])
def test_files_of_another_kind_with_the_stated_hash_are_refused(tmp_path, name):
    save_checkpoint(tmp_path / "c", checkpoint_of())
    file = tmp_path / "c" / name
    for write in (lambda: file.write_bytes(b"nothing"), lambda: save_file({}, file)):
        write()
        hashes = json.loads((tmp_path / "c" / "config.json").read_text())["sha256"]
        edit(tmp_path / "c", sha256={**hashes, name: sha256(file)})
        expected = (BadInput, BadConfig) if name.startswith("model") else BadInput
        with pytest.raises(expected):
            load_checkpoint(tmp_path / "c").build()


@pytest.mark.parametrize(
    ("stored", "fix"),
    [
        ("stflow_graph.checkpoint/2", "Fix: it is of another development version; train anew"),
        ("stflow_graph.network/1", r"Fix: .*\.from_pretrained loads a bare network"),
        ("other", rf"found 'other', expected '{FORMAT}'\.$"),
        (None, r"found None, expected"),
    ],
)
def test_another_format_is_refused_with_the_way_out(tmp_path, stored, fix):
    save_checkpoint(tmp_path / "c", checkpoint_of())
    edit(tmp_path / "c", format=stored)
    with pytest.raises(BadConfig, match=rf"config\.json: format: .*{fix}"):
        load_checkpoint(tmp_path / "c")


def test_a_description_that_is_no_object_is_refused(tmp_path):
    save_checkpoint(tmp_path / "c", checkpoint_of())
    (tmp_path / "c" / "config.json").write_text("[1]")
    with pytest.raises(BadConfig, match=r"format: found 'list'"):
        load_checkpoint(tmp_path / "c")
    (tmp_path / "c" / "config.json").write_text("{")
    with pytest.raises(BadInput, match=r"config\.json"):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("key", ["sha256", "config", "in_channels", "n_members", "provenance"])
def test_a_description_that_lacks_an_entry_is_refused(tmp_path, key):
    save_checkpoint(tmp_path / "c", checkpoint_of())
    edit(tmp_path / "c", **{key: None})
    with pytest.raises(BadModel, match=rf"config\.json: content: .*no entry '{key}'"):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("key", ["sha256", "in_channels", "n_members", "provenance"])
def test_an_entry_of_another_kind_is_refused(tmp_path, key):
    save_checkpoint(tmp_path / "c", checkpoint_of())
    edit(tmp_path / "c", **{key: "many"})
    with pytest.raises(BadInput, match=r"config\.json: content: "):
        load_checkpoint(tmp_path / "c")


def test_an_unknown_setting_is_refused(tmp_path):
    save_checkpoint(tmp_path / "c", checkpoint_of())
    config = json.loads((tmp_path / "c" / "config.json").read_text())["config"]
    edit(tmp_path / "c", config={**config, "graph": {"n_neighbours": 3}})
    with pytest.raises(BadConfig, match=r"config\.json: unknown name graph\.n_neighbours"):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize(
    "changes",
    [
        {"members.1.encoder.embed_x.weight": None},
        {"members.1.encoder.embed_x.weight": torch.zeros(3, 3)},
        {"members.1.encoder.extra": torch.zeros(1)},
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_refused(tmp_path, changes):
    save_checkpoint(tmp_path / "c", checkpoint_of())
    edit_weights(tmp_path / "c", **changes)
    checkpoint = load_checkpoint(tmp_path / "c")
    with pytest.raises(BadConfig, match=r"^checkpoint: .*TwoStageDenoiser") as caught:
        checkpoint.build()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 320


def test_an_old_checkpoint_is_replaced_when_the_new_one_is_complete(tmp_path):
    save_checkpoint(tmp_path / "c", checkpoint_of(calibration=CALIBRATION))
    before = (tmp_path / "c" / "config.json").read_bytes()
    broken = dataclasses.replace(checkpoint_of(), provenance={"fold": object()})
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "c", broken)
    assert (tmp_path / "c" / "config.json").read_bytes() == before
    save_checkpoint(tmp_path / "c", checkpoint_of())
    assert not (tmp_path / "c" / "calibration.csv").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


def test_checkpoints_are_found_in_runs_folds_and_folders(tmp_path):
    with pytest.raises(BadInput, match="run or checkpoint folder"):
        find_checkpoints(tmp_path)
    places = ["D2/fold0", "D1/fold1", "D1/fold0"]
    for place in places:
        save_checkpoint(tmp_path / "several" / place / "checkpoint", checkpoint_of(n_members=1))
    several = tmp_path / "several"
    expected = [several / f"{place}/checkpoint" for place in sorted(places)]
    assert find_checkpoints(several) == expected
    assert find_checkpoints(str(several / "D1")) == expected[:2]
    assert find_checkpoints(several / "D1/fold1") == expected[1:2]
    assert find_checkpoints(expected[2]) == expected[2:]


def test_genes_keep_their_order(tmp_path):
    genes = GENES[::-1]
    save_checkpoint(tmp_path / "c", dataclasses.replace(checkpoint_of(), genes=genes))
    assert load_checkpoint(tmp_path / "c").genes == genes


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("field", {"scale": torch.ones(2)}),
        ("field", {"scale": None}),
        ("field", {"scale": torch.full((N_GENES,), torch.nan)}),
        ("field", {"scale": torch.ones(N_GENES, dtype=torch.int64)}),
        ("field", {"places": torch.zeros(2, CHANNELS + 1)}),
        ("field", {"more": torch.zeros(1)}),
        ("normalisation", {"x_mean": torch.zeros(1)}),
        ("normalisation", {"x_std": torch.full((CHANNELS,), torch.inf)}),
        ("normalisation", {"y_mean": torch.zeros(N_GENES, dtype=torch.float64)}),
        ("normalisation", {"y_mean": None}),
        ("training_range", {"components": torch.ones(2, CHANNELS)}),
        ("training_range", {"mean": torch.zeros(CHANNELS, dtype=torch.bfloat16)}),
        ("training_range", {"mean": torch.zeros(CHANNELS, dtype=torch.float8_e5m2)}),
        ("training_range", {"stains": None}),
        ("training_range", {"more": torch.zeros(1)}),
    ],
)
def test_tensors_that_do_not_fit_the_model_are_refused(tmp_path, name, changes):
    save_checkpoint(tmp_path / "c", ranged())
    edit_weights(tmp_path / "c", f"{name}.safetensors", **changes)
    with pytest.raises(BadModel, match=rf"{name}\.safetensors: content: found damaged") as caught:
        load_checkpoint(tmp_path / "c")
    assert str(caught.value).isprintable()


def ranged(**sizes: int) -> Checkpoint:
    return dataclasses.replace(checkpoint_of("field"), training_range=range_of(**sizes))


def test_a_training_range_is_read_as_it_was_written(tmp_path):
    written = ranged()
    save_checkpoint(tmp_path / "c", written)
    read = load_checkpoint(tmp_path / "c").training_range
    assert read is not None
    for name, expected in written.training_range.arrays().items():
        np.testing.assert_array_equal(getattr(read, name), expected)


@pytest.mark.parametrize("sizes", [{"n_genes": N_GENES + 1}, {"n_channels": CHANNELS + 1}])
def test_the_training_range_of_another_model_is_refused(tmp_path, sizes):
    save_checkpoint(tmp_path / "c", ranged(**sizes))
    with pytest.raises(BadModel, match=r"training_range\.safetensors: content: .*shape"):
        load_checkpoint(tmp_path / "c")
    # of the same sizes, by its hash
    save_checkpoint(tmp_path / "c", ranged())
    save_checkpoint(tmp_path / "d", ranged(seed=1))
    shutil.copy(*(tmp_path / f"{folder}/training_range.safetensors" for folder in "dc"))
    with pytest.raises(BadModel, match=r"training_range\.safetensors: sha256"):
        load_checkpoint(tmp_path / "c")


def huge_header(content: bytes) -> bytes:
    header = b'{"__metadata__":{"a":"' + b"x" * 2**20 + b'"}}'
    return struct.pack("<Q", len(header)) + header


DAMAGES = {
    "header of 2^63 bytes": lambda content: struct.pack("<Q", 2**63) + content[8:],
    "header of 1 GB": lambda content: struct.pack("<Q", 2**30) + content[8:],
    "long header without tensors": huge_header,
    "header that is no JSON": lambda content: struct.pack("<Q", 4) + b"{{{{" + content[8:],
    "other byte order": lambda content: save_arrays(
        {name: array.byteswap() for name, array in load_arrays(content).items()}
    ),
    "truncated": lambda content: content[:-4],
    "longer": lambda content: content + bytes(4),
    "empty": lambda content: b"",
    "pickle": lambda content: pickle.dumps({"mean": 1}),
}


# any numbers are weights or means; which weights there must be is known when a network is built
UNNOTICED = [(name, "other byte order") for name in ("model", "normalisation")]
UNNOTICED += [("model", "long header without tensors")]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["training_range", "field", "normalisation", "model"])
def test_damage_of_which_the_hash_is_stated_is_refused(tmp_path, name, damage):
    save_checkpoint(tmp_path / "c", ranged())
    file = tmp_path / f"c/{name}.safetensors"
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    rehash(file)
    if (name, damage) in UNNOTICED:
        return
    with pytest.raises(BadModel, match=rf"{name}\.safetensors: content: found damaged") as caught:
        load_checkpoint(tmp_path / "c")
    assert len(str(caught.value)) < 1000


def test_a_table_of_other_genes_is_refused(tmp_path):
    save_checkpoint(tmp_path / "c", checkpoint_of(calibration=CALIBRATION))
    file = tmp_path / "c/calibration.csv"
    text = file.read_text()
    *rows, last = text.splitlines()
    for other in (rows, [rows[0], last, *rows[1:]], [*rows, last, last]):
        file.write_text("\n".join(other) + "\n")
        rehash(file)
        with pytest.raises(BadModel, match=r"calibration\.csv: content: .*other genes"):
            load_checkpoint(tmp_path / "c")
    file.write_text(text)
    rehash(file)
    assert load_checkpoint(tmp_path / "c").calibration is not None
