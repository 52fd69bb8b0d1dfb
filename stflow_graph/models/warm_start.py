"""Training that starts from another model: other genes, another tissue or stain, fewer slides."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from stflow_graph.config import Config
from stflow_graph.data.normalise import Normalisation
from stflow_graph.errors import BadConfig
from stflow_graph.models.build import build_denoiser
from stflow_graph.models.checkpoint import Checkpoint
from stflow_graph.nn.pretrained import weights_of_member

# fitted anew on the slides of every training
_FITTED_ANEW = "ridge_head."


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """A model to start from, for a training on some genes.

    Attributes:
        source: the model.
        genes: G names that will be learnt.
    """

    source: Checkpoint
    genes: Sequence[str]

    def adapt(self, config: Config) -> Config:
        """Return the configuration with the network of the model.

        Raises:
            BadConfig: embeddings, targets or samples of another kind than the model's.
        """
        theirs = self.source.config
        kinds = {
            "data.encoder": (config.data.encoder, theirs.data.encoder),
            "data.target": (config.data.target, theirs.data.target),
            "data.standardize": (config.data.standardize, theirs.data.standardize),
            "data.center_targets": (config.data.center_targets, theirs.data.center_targets),
            "denoiser.name": (config.denoiser.name, theirs.denoiser.name),
            "flow.kind": (config.flow.kind, theirs.flow.kind),
        }
        for name, (ours, other) in kinds.items():
            if ours != other:
                raise BadConfig(
                    f"{name}: found {ours!r}, expected {other!r} as of the model to start from"
                )
        # how strongly inputs are dropped depends on the slides, not on the weights
        dropped = getattr(config.denoiser, "input_dropout", None)
        denoiser = theirs.denoiser
        if dropped is not None:
            denoiser = denoiser.model_copy(update={"input_dropout": dropped})
        return config.model_copy(update={"denoiser": denoiser})

    def scaling(self, normalisation: Normalisation) -> Normalisation:
        """Return a normalisation that scales embeddings as the model's does."""
        theirs = self.source.normalisation
        return dataclasses.replace(normalisation, x_mean=theirs.x_mean, x_std=theirs.x_std)

    def load(self, network: nn.Module, member: int) -> None:
        """Give a network the weights of one of the model's members.

        Rows and columns of genes are taken by name; those of genes that the model does not have
        stay as they are, and so does what is fitted anew.

        Args:
            network: as the adapted configuration describes it, with G genes.
            member: of the training; members start from the model's in turn.
        """
        source, width = self.source, self.source.in_channels
        weights = weights_of_member(source.weights, source.n_members, member % source.n_members)
        wider = _shapes(source.config, width, len(source.genes) + 1)
        known = {gene: i for i, gene in enumerate(source.genes)}
        ours = [i for i, gene in enumerate(self.genes) if gene in known]
        theirs = [known[self.genes[i]] for i in ours]
        with torch.no_grad():
            for name, parameter in network.state_dict().items():
                if _FITTED_ANEW in name or name not in weights:
                    continue
                value = weights[name].to(parameter)
                grown = [d for d, n in enumerate(wider[name]) if n != value.size(d)]
                _copy(parameter, value, grown, ours, theirs)


def _shapes(config: Config, width: int, n_genes: int) -> dict[str, torch.Size]:
    """Return the shapes of a network's tensors for a number of genes."""
    with torch.random.fork_rng(devices=[]):
        network = build_denoiser(config, width, n_genes)
    return {name: value.shape for name, value in network.state_dict().items()}


def _copy(
    target: Tensor, source: Tensor, gene_axes: list[int], ours: list[int], theirs: list[int]
) -> None:
    """Copy a tensor, along axes of genes only the genes of both."""
    if not gene_axes:
        target.copy_(source)
        return
    places = [
        [genes if axis in gene_axes else range(n) for axis, n in enumerate(source.shape)]
        for genes in (ours, theirs)
    ]
    into, taken = (
        tuple(map(torch.from_numpy, np.ix_(*(np.array(axis, np.int64) for axis in axes))))
        for axes in places
    )
    target[into] = source[taken]
