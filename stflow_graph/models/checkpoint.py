"""A trained denoiser on disk: a folder of safetensors and JSON, never pickle.

``config.json`` (configuration, provenance, SHA-256 of the other files), ``model.safetensors``,
``normalisation.safetensors``, ``genes.json``, ``calibration.csv`` (per-gene results on held-out
training slides; not of converted weights), ``field.safetensors`` (the field of the
residuals, where samples come from one), ``training_range.safetensors`` (what the training slides
look like; not of converted weights) and ``README.md``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load_file, save
from torch import Tensor

from stflow_graph.config import Config, parse_config
from stflow_graph.data.genes import read_gene_list, write_gene_list
from stflow_graph.data.normalise import Normalisation
from stflow_graph.errors import (
    BadConfig,
    BadInput,
    as_bad_input,
    as_bad_model,
    unquoted,
)
from stflow_graph.io.atomic import read_json, sha256, write_bytes, write_json, write_text
from stflow_graph.io.folders import atomic_folder
from stflow_graph.io.sealed_json import seal_json
from stflow_graph.io.state_dict import misfits
from stflow_graph.io.versions import unchanged
from stflow_graph.models.archive import unpacked
from stflow_graph.models.build import (
    build_denoiser,
    check_no_custom_code,
    denoiser_arguments,
)
from stflow_graph.models.model_card import model_card
from stflow_graph.nn.expression_field import ExpressionField
from stflow_graph.nn.pretrained import (
    MODEL_FOLDER,
    UNSEALED_CHECKPOINT,
    Pretrained,
    check_sealed,
    weights_of_member,
)
from stflow_graph.stats.calibration import Calibration
from stflow_graph.stats.training_range import TrainingRange

FORMAT = "stflow_graph.checkpoint/5"
_FILES = ("model.safetensors", "normalisation.safetensors", "genes.json")
_CALIBRATION = "calibration.csv"
_FIELD = "field.safetensors"
_RANGE = "training_range.safetensors"
_COLUMNS = ("spread", "pearson", "pearson_sd")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A trained denoiser and all that is needed to use it.

    Attributes:
        config: the run's resolved configuration.
        genes: G names, the columns of the output.
        in_channels: F, embedding channels.
        normalisation: how input and output are scaled.
        weights: the state dict.
        provenance: plain values: fold, train_slides, held_out_slides, best_epochs, versions, ...
        n_members: ensemble size.
        calibration: spread of the samples and expected accuracy per gene; None if unknown.
        field: of the residuals, on the CPU; None where samples come from a flow.
        training_range: what the training slides look like; None if unknown.
    """

    config: Config
    genes: list[str]
    in_channels: int
    normalisation: Normalisation
    weights: dict[str, Tensor]
    provenance: dict[str, Any]
    n_members: int = 1
    calibration: Calibration | None = None
    field: ExpressionField | None = None
    training_range: TrainingRange | None = None

    def build(self, device: str | torch.device = "cpu") -> list[Pretrained]:
        """Return the members with their weights, in eval mode.

        Raises:
            BadConfig: the weights do not fit the configuration.
        """
        members = []
        for i in range(self.n_members):
            with torch.random.fork_rng(devices=[]):  # the weights drawn here are discarded
                member = build_denoiser(self.config, self.in_channels, len(self.genes))
            try:
                member.load_state_dict(weights_of_member(self.weights, self.n_members, i))
            except RuntimeError as error:
                raise BadConfig(f"checkpoint: {' '.join(str(error).split())[:300]}") from None
            members.append(member.eval().to(device))
        return members


def find_checkpoints(source: str | Path) -> list[Path]:
    """Return the checkpoint folders of a run, a fold, a checkpoint folder itself or a zip of one.

    Raises:
        BadInput: there is none.
    """
    source = unpacked(source) if Path(source).is_file() else Path(source)
    for pattern in ("", "checkpoint/", "{}/checkpoint/", "*/{}/checkpoint/"):
        # sorted, the model of all slides comes before those of folds
        places = [pattern.format(name) + "config.json" for name in ("all", "fold*")]
        if files := {file for place in places for file in source.glob(place)}:
            return sorted(file.parent for file in files)
    fix = "give what `stflow-graph train --out` wrote"
    raise BadInput(source, "checkpoint", unquoted("none"), "a run or checkpoint folder", fix)


def save_checkpoint(
    folder: str | Path, checkpoint: Checkpoint, *, licence: str | None = None
) -> None:
    """Write a checkpoint folder; an old one is replaced when the new one is complete.

    Args:
        folder: the folder.
        checkpoint: what to write.
        licence: of the weights, as the hub spells it (``"mit"``, ``"cc-by-nc-4.0"``).

    Raises:
        BadInput: the path is that of something else than a model's folder.
        StorageFailed: the disk is full or broken; an old folder stays.
    """
    with atomic_folder(folder, MODEL_FOLDER) as temporary:
        weights = {key: value.contiguous().cpu() for key, value in checkpoint.weights.items()}
        write_bytes(temporary / "model.safetensors", save(weights))
        scaling = checkpoint.normalisation
        arrays = {"x_mean": scaling.x_mean, "x_std": scaling.x_std, "y_mean": scaling.y_mean}
        write_bytes(temporary / "normalisation.safetensors", save_arrays(arrays))
        write_gene_list(temporary / "genes.json", checkpoint.genes)
        files = list(_FILES)
        if checkpoint.calibration is not None:
            write_text(temporary / _CALIBRATION, _table(checkpoint.genes, checkpoint.calibration))
            files.append(_CALIBRATION)
        if checkpoint.field is not None:
            write_bytes(temporary / _FIELD, save(checkpoint.field.state_dict()))
            files.append(_FIELD)
        if checkpoint.training_range is not None:
            write_bytes(temporary / _RANGE, save_arrays(checkpoint.training_range.arrays()))
            files.append(_RANGE)
        content = {
            "format": FORMAT,
            "in_channels": checkpoint.in_channels,
            "n_members": checkpoint.n_members,
            **_network(checkpoint),
            "config": checkpoint.config.model_dump(mode="json"),
            "provenance": checkpoint.provenance,
            "sha256": {name: sha256(temporary / name) for name in files},
        }
        write_json(temporary / "config.json", seal_json(content))
        write_text(temporary / "README.md", _card(checkpoint, licence))


def load_checkpoint(folder: str | Path, *, allow_code: bool = False) -> Checkpoint:
    """Read a checkpoint folder.

    Args:
        folder: the folder.
        allow_code: accept layers that are neither ours nor PyG's: building the network imports the
            modules that the checkpoint names.

    Raises:
        BadInput: no checkpoint there, or it was replaced meanwhile.
        BadModel: a file is missing or does not match its SHA-256, or ``config.json`` lacks an
            entry.
        BadConfig: another format, a configuration that this version does not know, or one that
            names code and ``allow_code`` is not set.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        fix = "give a run folder of `stflow-graph train` or a checkpoint folder in it"
        raise BadInput(folder, "config.json", unquoted("no file"), "a checkpoint folder", fix)
    with unchanged(folder / "config.json"):  # another training replaces all files at once
        with as_bad_model():
            return _load(folder, allow_code)


def _load(folder: Path, allow_code: bool) -> Checkpoint:
    content = read_json(folder / "config.json")
    if not isinstance(content, dict) or content.get("format") not in (FORMAT, UNSEALED_CHECKPOINT):
        stored = content.get("format") if isinstance(content, dict) else type(content).__name__
        fix = ""
        if str(stored).startswith("stflow_graph.network/"):
            network = content.get("network", "its class")
            fix = f" Fix: {network}.from_pretrained loads a bare network"
        elif str(stored).startswith("stflow_graph.checkpoint/"):
            fix = " Fix: it is of another development version; train anew"
        raise BadConfig(
            f"{folder / 'config.json'}: format: found {stored!r}, expected {FORMAT!r}.{fix}"
        )
    check_sealed(content, folder / "config.json")
    with as_bad_input(folder / "config.json", "content", "the entries of a checkpoint"):
        hashes, provenance = dict(content["sha256"]), dict(content["provenance"])
        in_channels, n_members = int(content["in_channels"]), int(content["n_members"])
        config = parse_config(content["config"], folder / "config.json")
    if not allow_code:
        check_no_custom_code(config, folder / "config.json")
    extra = [name for name in (_CALIBRATION, _FIELD, _RANGE) if name in hashes]
    for name in (*_FILES, *extra):
        if sha256(folder / name) != hashes.get(name):
            raise BadInput(
                folder / name, "sha256", unquoted("another hash"), "the one in config.json"
            )
    genes = read_gene_list(folder / "genes.json")
    sizes = in_channels, len(genes)
    with as_bad_input(folder / _FILES[0], "content", "the weights of a checkpoint"):
        weights = load_file(folder / _FILES[0])
    return Checkpoint(
        config,
        genes,
        in_channels,
        _read_scaling(folder / _FILES[1], config, *sizes),
        weights,
        provenance,
        n_members,
        _read_table(folder / _CALIBRATION, genes) if _CALIBRATION in extra else None,
        _read_field(folder / _FIELD, *sizes) if _FIELD in extra else None,
        _read_range(folder / _RANGE, *sizes) if _RANGE in extra else None,
    )


def _read_scaling(file: Path, config: Config, n_channels: int, n_genes: int) -> Normalisation:
    shapes = {"x_mean": (n_channels,), "x_std": (n_channels,), "y_mean": (n_genes,)}
    with as_bad_input(file, "content", "the scaling of a checkpoint"):
        arrays = load_arrays(file)
        for name, shape in shapes.items():
            array = arrays[name]
            if array.shape != shape or array.dtype != np.float32 or not np.isfinite(array).all():
                found = f"{array.dtype} of shape {array.shape}"
                raise ValueError(f"{name}: {found}, expected finite float32 of {shape}")
        return Normalisation(
            config.data.standardize,
            config.data.center_targets,
            *(arrays[name] for name in shapes),
        )


def _read_field(file: Path, n_channels: int, n_genes: int) -> ExpressionField:
    with as_bad_input(file, "content", "the field of a checkpoint"):
        weights = load_file(file)
        field = ExpressionField.from_weights(weights)
        if text := misfits(field.state_dict(), weights):
            raise ValueError(text)
        if (field.places.size(1), field.scale.numel()) != (n_channels, n_genes):
            raise ValueError(f"not of {n_channels} embedding channels and {n_genes} genes")
        return field


def _read_range(file: Path, n_channels: int, n_genes: int) -> TrainingRange:
    with as_bad_input(file, "content", "the training range of a checkpoint"):
        return TrainingRange.from_arrays(load_arrays(file), n_channels, n_genes)


def _table(genes: Sequence[str], calibration: Calibration) -> str:
    columns = [getattr(calibration, name) for name in _COLUMNS]
    return pd.DataFrame(dict(zip(_COLUMNS, columns, strict=True)), index=genes).to_csv(
        index_label="gene"
    )


def _read_table(file: Path, genes: Sequence[str]) -> Calibration:
    blank = {column: [""] for column in _COLUMNS}  # a gene may be called NA
    with as_bad_input(file, "content", f"a table with {', '.join(_COLUMNS)}"):
        table = pd.read_csv(
            file,
            dtype={"gene": str},  # also one called 007
            keep_default_na=False,
            na_values=blank,
            float_precision="round_trip",
        )
        if table["gene"].tolist() != list(genes):
            raise ValueError("other genes than the model's")
        return Calibration(*(table[name].to_numpy(np.float64) for name in _COLUMNS))


def _network(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what ``from_pretrained`` of the network class needs; nothing of a custom layer."""
    genes, in_channels = checkpoint.genes, checkpoint.in_channels
    network, arguments = denoiser_arguments(checkpoint.config, in_channels, len(genes))
    if any(callable(value) for value in arguments.values()):
        return {}
    return {"network": network.__name__, "arguments": arguments}


def _card(checkpoint: Checkpoint, licence: str | None) -> str:
    calibration = checkpoint.calibration
    return model_card(
        checkpoint.config,
        checkpoint.genes,
        checkpoint.in_channels,
        checkpoint.n_members,
        checkpoint.provenance,
        None if calibration is None else calibration.pearson,
        licence,
    )
