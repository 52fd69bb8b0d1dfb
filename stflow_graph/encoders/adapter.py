"""Low-rank adapters (LoRA), merged into the weights that they adapt.

SEAL (Hemker, Song et al., 2026) publishes adapters of the last block of CONCH and of UNI2-h, as
the library PEFT saves them. Merged, they need neither that library nor SEAL's code.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from stflow_graph.encoders.encoder import StateDict
from stflow_graph.errors import BadConfig

_PREFIX = "encoder.base_model.model."
_PART = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
# what training needs besides the encoder
_UNUSED = ("projection_head.", "decoder.", "organ_emb.")
# PEFT scales an update by alpha / rank; SEAL was trained with 8 / 8, which no file states
_RANK = 8


def merge_adapter(state: StateDict, adapter: StateDict, path: Path) -> StateDict:
    """Return weights ``W + B A`` for every pair (A, B) of an adapter, the others unchanged.

    Args:
        state: the weights to adapt, under the network's keys.
        adapter: the adapter's file. Weights that it has besides the pairs replace those of
            ``state``.
        path: of the adapter, for messages.

    Raises:
        BadConfig: there are no pairs, or one is incomplete, of another rank than SEAL's, or does
            not fit the weights.
    """
    pairs: dict[str, StateDict] = {}
    merged = dict(state)
    for key, value in adapter.items():
        name = key.removeprefix("module.").removeprefix(_PREFIX)
        part = _PART.fullmatch(name)
        if part is not None:
            pairs.setdefault(f"{part[1]}.weight", {})[part[2]] = value.float()
        elif not name.startswith(_UNUSED):
            merged[name.replace(".base_layer.", ".")] = value
    if not pairs:
        raise BadConfig(f"{path}: no low-rank weights (keys *.lora_A.*, *.lora_B.*): no adapter")
    for key, pair in pairs.items():
        merged[key] = _adapted(key, pair, merged, path)
    return merged


def _adapted(key: str, pair: StateDict, weights: StateDict, path: Path) -> Tensor:
    """Return ``W + B A`` of a weight ``[out, in]``; A is ``[rank, in]`` and B ``[out, rank]``."""
    if pair.keys() != {"A", "B"} or key not in weights:
        problem = (
            "its base has no such weight" if key not in weights else "one of A and B is missing"
        )
        raise BadConfig(f"{path}: adapter of {key}: {problem}")
    a, b = pair["A"], pair["B"]
    shape = (*b.shape[:1], *a.shape[1:])
    if b.shape[1:] != a.shape[:1] or len(a) != _RANK or shape != weights[key].shape:
        raise BadConfig(
            f"{path}: adapter of {key}: {list(b.shape)} times {list(a.shape)}, expected rank "
            f"{_RANK} and the shape {list(weights[key].shape)}"
        )
    return weights[key].float() + b @ a
