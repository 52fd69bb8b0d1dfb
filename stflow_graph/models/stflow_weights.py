"""Checkpoints of the public STFlow code (Huang et al., ICML 2025) in our denoisers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from stflow_graph.config import RECIPES, Config, load_config
from stflow_graph.data.genes import read_gene_list
from stflow_graph.data.normalise import Normalisation
from stflow_graph.errors import BadConfig, BadInput, count, one_line, unquoted
from stflow_graph.io.atomic import sha256
from stflow_graph.io.outputs import check_output_folder
from stflow_graph.io.state_dict import misfits, read_state_dict
from stflow_graph.models.checkpoint import Checkpoint, save_checkpoint
from stflow_graph.nn.denoiser import GraphDenoiser
from stflow_graph.nn.stflow.denoiser import TransformerDenoiser
from stflow_graph.version import __version__

Kind = Literal["transformer", "graph"]
KINDS: tuple[Kind, ...] = ("transformer", "graph")
# prefixes of the public names and their counterparts in GraphDenoiser; {} is the block
_RENAMED = {
    r"image_transform\.": "embed_x.",
    r"fourier_proj\.": "embed_t.",
    r"backbone\.blks\.(\d+)\.attn\.layernorm_qkv\.0\.": "blocks.{}.conv.norm.",
    r"backbone\.blks\.(\d+)\.attn\.layernorm_qkv\.1\.": "blocks.{}.conv.qkv.",
    r"backbone\.blks\.(\d+)\.attn\.mlp_attn\.": "blocks.{}.conv.score.mlp.",
    r"backbone\.blks\.(\d+)\.attn\.edge_trans\.": "blocks.{}.conv.edge_encoder.",
    r"backbone\.blks\.(\d+)\.attn\.W_output\.": "blocks.{}.conv.out.",
    r"backbone\.blks\.(\d+)\.mlp\.": "blocks.{}.mlp.",
    r"backbone\.blks\.(\d+)\.gene_updater\.": "blocks.{}.read_out.",
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a published denoiser, inferred from its weights: F, G, D, D_e, H and L."""

    in_channels: int
    n_genes: int
    hidden_channels: int
    edge_channels: int
    n_heads: int
    n_layers: int


def load_stflow(
    source: str | Path | Mapping[str, Tensor], kind: str = "transformer", n_heads: int | None = None
) -> nn.Module:
    """Return a denoiser with the weights of a public STFlow checkpoint, in eval mode.

    Both kinds are the same function of the same graph; ``"graph"`` is the faster one. It is
    called as ``model(y_t, t, data)`` with ``data`` a PyG ``Data`` or ``Batch`` that holds ``x``,
    ``pos`` in pixels and the tensors of ``graph.STFlowGraph``.

    Args:
        source: a file (safetensors, or ``torch.save`` of a state dict) or a state dict.
        kind: ``"transformer"`` for ``TransformerDenoiser``, ``"graph"`` for ``GraphDenoiser``.
        n_heads: number of heads, checked against the weights.

    Raises:
        BadInput: the file cannot be read.
        BadConfig: keys are missing, unexpected or of another shape (named in the message), or
            the heads are others.
        ValueError: an unknown kind.
    """
    return _load(*_read(source), kind, n_heads)[0]


def _load(
    origin: str, state: dict[str, Tensor], kind: str, n_heads: int | None
) -> tuple[nn.Module, Sizes]:
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; one of {', '.join(KINDS)}")
    sizes = infer_sizes(state, origin)
    if n_heads is not None and n_heads != sizes.n_heads:
        raise BadConfig(f"{origin}: the weights are of {sizes.n_heads} heads, not {n_heads}")
    published = TransformerDenoiser(**dataclasses.asdict(sizes))
    problems = misfits(published.state_dict(), state)
    if problems:
        raise BadConfig(f"{origin}: not the weights of a published denoiser: {problems}")
    if kind == "transformer":
        published.load_state_dict(state)
        return published.eval(), sizes
    model = GraphDenoiser(
        sizes.in_channels,
        sizes.n_genes,
        sizes.hidden_channels,
        sizes.n_layers,
        sizes.n_heads,
        dropout=0.2,
        context_hops=(),
        conv="stflow",
        conv_options={"edge_channels": sizes.edge_channels},
        global_attention=None,
    )
    model.load_state_dict({graph_name(key): value for key, value in state.items()})
    return model.eval(), sizes


def infer_sizes(state: Mapping[str, Tensor], origin: str | Path = "state dict") -> Sizes:
    """Return the sizes of a published denoiser from its state dict.

    Raises:
        BadConfig: a weight that determines them is missing or of another shape; names it.
    """

    def shape(key: str) -> tuple[int, int]:
        if key not in state:
            found = ", ".join(one_line(name, 80) for name in list(state)[:3]) or "none"
            raise BadConfig(f"{origin}: no weight {key} (found {len(state)}, such as {found})")
        if state[key].dim() != 2:
            raise BadConfig(f"{origin}: {key} must be a matrix, got {list(state[key].shape)}")
        rows, columns = state[key].shape
        return rows, columns

    hidden, in_channels = shape("image_transform.weight")
    block = "backbone.blks.0."
    edge_channels, _ = shape(block + "attn.edge_trans.fc2.weight")
    n_genes, _ = shape(block + "gene_updater.output.4.weight")
    _, seen = shape(block + "attn.mlp_attn.fc1.weight")
    # ψ sees one head's share of q, k and f, and all genes
    per_head, both = seen - n_genes, 2 * hidden + edge_channels
    n_heads = both // per_head if per_head > 0 and both % per_head == 0 else 0
    if not n_heads or hidden % n_heads or edge_channels % n_heads:
        raise BadConfig(
            f"{origin}: {block}attn.mlp_attn.fc1.weight sees {seen} channels, which no number of "
            f"heads explains (D = {hidden}, D_e = {edge_channels}, G = {n_genes})"
        )
    blocks = {match[1] for key in state if (match := re.match(r"backbone\.blks\.(\d+)\.", key))}
    return Sizes(in_channels, n_genes, hidden, edge_channels, n_heads, len(blocks))


def convert_stflow(
    source: str | Path,
    out: str | Path,
    *,
    kind: str = "graph",
    gene_list: str | Path | None = None,
    encoder: str = "",
    n_neighbors: int = 8,
    n_heads: int | None = None,
) -> Checkpoint:
    """Write a public STFlow checkpoint as a checkpoint folder, for ``stflow-graph sample``.

    Args:
        source: the public file.
        out: folder to write.
        kind: as of :func:`load_stflow`.
        gene_list: JSON list of the model's genes, in its order; None names them gene_0, gene_1, ...
        encoder: name of the encoder whose embeddings the model was trained on; empty if unknown:
            then only their width is compared.
        n_neighbors: k the model was trained with (not determined by its weights).
        n_heads: as of :func:`load_stflow`.

    Raises:
        BadInput: a file cannot be read, or there are other genes than outputs.
        BadConfig: the weights are not those of a published denoiser.
    """
    check_output_folder(out)
    model, sizes = _load(*_read(source), kind, n_heads)
    genes = [f"gene_{i}" for i in range(sizes.n_genes)]
    if gene_list is not None:
        genes = read_gene_list(gene_list)
        if len(genes) != sizes.n_genes:
            found = unquoted(count(len(genes), "gene"))
            raise BadInput(gene_list, "genes", found, f"the model's {sizes.n_genes}")
    checkpoint = Checkpoint(
        config=_config(kind, sizes, encoder, str(gene_list or ""), n_neighbors),
        genes=genes,
        in_channels=sizes.in_channels,
        normalisation=Normalisation(
            "none",
            False,
            x_mean=np.zeros(sizes.in_channels, np.float32),
            x_std=np.ones(sizes.in_channels, np.float32),
            y_mean=np.zeros(sizes.n_genes, np.float32),
        ),
        weights=model.state_dict(),
        provenance={
            "converted_from": Path(source).name,
            "sha256": sha256(source),
            "version": __version__,
        },
    )
    save_checkpoint(out, checkpoint)
    return checkpoint


def _read(source: str | Path | Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    if isinstance(source, Mapping):
        origin, state = "state dict", dict(source)
    else:
        origin, state = str(source), read_state_dict(source)
    # DataParallel puts a prefix before every name
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return origin, state


def graph_name(key: str) -> str:
    """Return the name in ``GraphDenoiser`` of a public parameter's name.

    Raises:
        KeyError: the name is not a public one.
    """
    for pattern, name in _RENAMED.items():
        match = re.match(pattern, key)
        if match:
            return name.format(*match.groups()) + key[match.end() :]
    raise KeyError(key)


def _config(kind: str, sizes: Sizes, encoder: str, gene_list: str, n_neighbors: int) -> Config:
    published = RECIPES["transformer"].items()
    values: dict[str, Any] = {
        f"{section}.{name}": value for section, table in published for name, value in table.items()
    }
    values |= {
        "data.source_dataroot": "",
        "data.embed_dataroot": "",
        "data.encoder": encoder,
        "data.gene_list": gene_list,
        "graph.n_neighbors": n_neighbors,
        "denoiser.name": kind,
        "denoiser.dropout": 0.2,
    }
    for name in ("hidden_channels", "n_heads", "n_layers"):
        values[f"denoiser.{name}"] = getattr(sizes, name)
    if kind == "graph":
        values |= {
            "denoiser.conv": "stflow",
            "denoiser.conv_options": {"edge_channels": sizes.edge_channels},
            "denoiser.global_attention": "none",
            "denoiser.input_dropout": 0.0,
            "denoiser.context_hops": [],
        }
    else:
        values["denoiser.edge_channels"] = sizes.edge_channels
    return load_config(None, values)
