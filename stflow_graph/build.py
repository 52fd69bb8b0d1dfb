"""Configuration to objects: the only place where a name becomes a part."""

from __future__ import annotations

from torch import nn
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from stflow_graph.config import Config, FlowConfig, GraphDenoiserConfig
from stflow_graph.errors import BadConfig
from stflow_graph.flow import prior as priors
from stflow_graph.flow import sampler as samplers
from stflow_graph.flow.prior import Prior
from stflow_graph.flow.sampler import Sampler
from stflow_graph.graph import SpatialGraph
from stflow_graph.nn.denoiser import GraphDenoiser
from stflow_graph.nn.transformer import TransformerDenoiser
from stflow_graph.resolve import resolve


def build_denoiser(config: Config, in_channels: int, n_genes: int) -> nn.Module:
    """Return the denoiser that ``config.denoiser`` describes, with new weights.

    Raises:
        BadConfig: its arguments do not fit together.
    """
    options = config.denoiser.model_dump(exclude={"name"})
    try:
        if not isinstance(config.denoiser, GraphDenoiserConfig):
            n_neighbors = config.graph.n_neighbors
            return TransformerDenoiser(in_channels, n_genes, n_neighbors=n_neighbors, **options)
        options["global_attention"] = {"none": None}.get(
            config.denoiser.global_attention, config.denoiser.global_attention
        )
        options["conv"] = resolve(config.denoiser.conv) if config.denoiser.conv else None
        return GraphDenoiser(in_channels, n_genes, **options)
    except ValueError as error:
        raise BadConfig(f"denoiser: {error}") from None


class Unchanged(BaseTransform):
    """Leaves a slide as it is: the published model makes its own graph in every call."""

    def forward(self, data: Data) -> Data:
        """Return ``data``."""
        return data


def build_graph(config: Config) -> BaseTransform:
    """Return the ``Data -> Data`` transform that gives a slide what the denoiser reads."""
    if not isinstance(config.denoiser, GraphDenoiserConfig):
        return Unchanged()
    return SpatialGraph(**config.graph.model_dump())


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
