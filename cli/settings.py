"""Options of the command line to names of the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_PLACES = {
    "source_dataroot": "data",
    "embed_dataroot": "data",
    "datasets": "data",
    "encoder": "data",
    "gene_list": "data",
    "target": "data",
    "allow_patient_overlap": "data",
    "gene_aliases": "data",
    "duplicate_genes": "data",
    "denoiser": "denoiser",
    "n_layers": "denoiser",
    "n_heads": "denoiser",
    "hidden_channels": "denoiser",
    "n_neighbors": "graph",
    "prior": "flow",
    "sampler": "flow",
    "n_sample_steps": "flow",
    "batch_size": "train",
    "max_spots_per_batch": "train",
    "epochs": "train",
    "lr": "train",
    "members": "train",
    "seed": "train",
    "folds": "train",
    "device": "train",
}


def parse_settings(options: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return dotted names of the configuration for the options given and for ``--set``.

    Args:
        options: the command's parameters; those that are None or not settings are left out.
        assignments: ``section.name=value`` strings, which win over the options.
    """
    from stflow_graph.config import parse_assignments

    settings = {
        f"{section}.{'name' if option == 'denoiser' else option}": options[option]
        for option, section in _PLACES.items()
        if options[option] is not None and options[option] != []
    }
    return {**settings, **parse_assignments(assignments)}
