"""Configuration to objects: the only place where a name becomes a part."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform, Compose

from stflow_graph.config import Config, FlowConfig, GraphDenoiserConfig
from stflow_graph.errors import BadConfig
from stflow_graph.flow import prior as priors
from stflow_graph.flow import sampler as samplers
from stflow_graph.flow.prior import Prior
from stflow_graph.flow.sampler import Sampler
from stflow_graph.graph import (
    NeighbourhoodContext,
    PublishedGraph,
    SimilarityEdges,
    SpatialGraph,
)
from stflow_graph.nn.conv import AdaptedConv
from stflow_graph.nn.denoiser import GraphDenoiser
from stflow_graph.nn.ensemble import DenoiserEnsemble
from stflow_graph.nn.pretrained import Pretrained
from stflow_graph.nn.stflow.denoiser import TransformerDenoiser
from stflow_graph.resolve import resolve


def build_denoiser(config: Config, in_channels: int, n_genes: int) -> nn.Module:
    """Return the denoiser that ``config.denoiser`` describes, with new weights.

    Raises:
        BadConfig: its arguments do not fit together.
    """
    network, arguments = denoiser_arguments(config, in_channels, n_genes)
    if arguments.get("input_dropout") == "auto":
        raise BadConfig("denoiser.input_dropout: 'auto' is set by training; give a number here")
    try:
        return network(**arguments)
    except ValueError as error:
        raise BadConfig(f"denoiser: {error}") from None


def denoiser_arguments(
    config: Config, in_channels: int, n_genes: int
) -> tuple[type[Pretrained], dict[str, Any]]:
    """Return the class of the denoiser that ``config.denoiser`` describes, and its arguments."""
    arguments = {
        "in_channels": in_channels,
        "n_genes": n_genes,
        **config.denoiser.model_dump(exclude={"name"}),
    }
    if not isinstance(config.denoiser, GraphDenoiserConfig):
        return TransformerDenoiser, {**arguments, "n_neighbors": config.graph.n_neighbors}
    if config.denoiser.global_attention == "none":
        arguments["global_attention"] = None
    arguments["conv"] = _conv_factory(config.denoiser)
    del arguments["conv_options"]
    return GraphDenoiser, arguments


def build_ensemble(config: Config, in_channels: int, n_genes: int, n_members: int) -> nn.Module:
    """Return as many denoisers as one, or the only one."""
    members = [build_denoiser(config, in_channels, n_genes) for _ in range(n_members)]
    return members[0] if n_members == 1 else DenoiserEnsemble(members)


def _conv_factory(config: GraphDenoiserConfig) -> Callable[[int, int], nn.Module] | None:
    """Return what makes the layer that ``conv`` names: as it is, or a PyG layer adapted."""
    if not config.conv:
        return None
    layer = resolve(config.conv)
    # our call hands over y; PyG's own layers do not know it
    forward = getattr(layer, "forward", None)
    if forward is None or "y" in inspect.signature(forward).parameters:
        return partial(layer, **config.conv_options)
    return partial(
        AdaptedConv, layer, edge_channels=config.edge_channels, options=config.conv_options
    )


class Unchanged(BaseTransform):
    """Leaves a slide as it is: the published model makes its own graph in every call."""

    def forward(self, data: Data) -> Data:
        """Return ``data``."""
        return data


def build_graph(config: Config) -> BaseTransform:
    """Return the ``Data -> Data`` transform that gives a slide what the denoiser reads."""
    if not isinstance(config.denoiser, GraphDenoiserConfig):
        return Unchanged()
    denoiser, graph = config.denoiser, config.graph
    spatial: BaseTransform = SpatialGraph(graph.n_neighbors, graph.slack, graph.backend)
    if denoiser.attention == "stflow" and not denoiser.conv:
        spatial = PublishedGraph(graph.n_neighbors, graph.backend)
    if not denoiser.similarity_edges:
        return spatial
    return Compose([spatial, SimilarityEdges(graph.n_neighbors)])


def build_context(config: Config) -> BaseTransform:
    """Return the transform that averages embeddings around spots, after the graph is made."""
    if not isinstance(config.denoiser, GraphDenoiserConfig) or not config.denoiser.context_hops:
        return Unchanged()
    return NeighbourhoodContext(config.denoiser.context_hops)


def build_prior(config: FlowConfig) -> Prior:
    """Return the prior named in the configuration."""
    return {
        "zinb": priors.ZINBPrior,
        "gaussian": priors.GaussianPrior,
        "zero": priors.ZeroPrior,
    }[config.prior]()


def build_sampler(config: FlowConfig) -> Sampler:
    """Return the sampler named in the configuration."""
    return {
        "euler": samplers.euler,
        "heun": samplers.heun,
        "stflow": samplers.stflow,
        "estflow": samplers.estflow,
    }[config.sampler]
