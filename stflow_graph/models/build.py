"""Configuration to objects: the only place where a name becomes a part."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from stflow_graph.config import Config, FlowConfig, GraphDenoiserConfig
from stflow_graph.errors import BadConfig, short_repr, unquoted
from stflow_graph.flow import prior as priors
from stflow_graph.flow import sampler as samplers
from stflow_graph.flow.prior import Prior
from stflow_graph.flow.sampler import Sampler
from stflow_graph.graph import NeighbourhoodContext, SpatialGraph, STFlowGraph
from stflow_graph.nn.conv import CONVS, AdaptedConv
from stflow_graph.nn.denoiser import GraphDenoiser
from stflow_graph.nn.global_attention import PyGAttention
from stflow_graph.nn.pretrained import Pretrained
from stflow_graph.nn.stflow.denoiser import TransformerDenoiser
from stflow_graph.nn.two_stage import TwoStageDenoiser
from stflow_graph.parallel.ranks import is_rank
from stflow_graph.resolve import code_file, resolve

_PYG = "pyg:"
# torch knows more types: some store no values (meta), the others need packages that nobody tested
_DEVICE = re.compile(r"cpu|mps|(cuda|xpu)(:\d{1,3})?")


def pick_device(name: str) -> torch.device:
    """Return the device of this name; ``"auto"`` takes a GPU where there is one.

    Among ranks each takes another GPU of its machine, unless the name has a number.

    Raises:
        BadConfig: an unknown device, or one that this machine lacks.
    """
    if name == "auto":
        return _of_rank(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if not _DEVICE.fullmatch(name):
        raise BadConfig(
            f"device {short_repr(name)}: expected auto, cpu, cuda, cuda:<number>, mps or xpu"
        )
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        found = unquoted((str(error).splitlines() or ["not there"])[0])
        raise BadConfig(f"device {name!r}: {short_repr(found)}") from None
    return _of_rank(device)


def _of_rank(device: torch.device) -> torch.device:
    """Return this rank's GPU where a device is any GPU."""
    n_devices = torch.cuda.device_count() if device == torch.device("cuda") and is_rank() else 0
    if n_devices < 2:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % n_devices)


def build_denoiser(config: Config, in_channels: int, n_genes: int) -> Pretrained:
    """Return the denoiser that the configuration describes, with new weights.

    Raises:
        BadConfig: its arguments do not fit together.
    """
    network, arguments = denoiser_arguments(config, in_channels, n_genes)
    if arguments.get("input_dropout") == "auto":
        raise BadConfig("denoiser.input_dropout: 'auto' is set by training; give a number here")
    try:
        return network.make(**arguments)
    except (TypeError, ValueError) as error:
        raise BadConfig(f"denoiser: {error}") from None


def denoiser_arguments(
    config: Config, in_channels: int, n_genes: int
) -> tuple[type[Pretrained], dict[str, Any]]:
    """Return the class of the denoiser that the configuration describes, and its arguments."""
    arguments = {
        "in_channels": in_channels,
        "n_genes": n_genes,
        **config.denoiser.model_dump(exclude={"name"}),
    }
    if not isinstance(config.denoiser, GraphDenoiserConfig):
        return TransformerDenoiser, {**arguments, "n_neighbors": config.graph.n_neighbors}
    arguments["conv"] = _conv(config.denoiser)
    arguments["global_attention"] = _global_attention(config.denoiser)
    if config.flow.kind == "graph":
        del arguments["ridge_rank"]
        return GraphDenoiser, arguments
    return TwoStageDenoiser, {"flow": config.flow.kind == "spot", **arguments}


def custom_code(config: Config) -> dict[str, str]:
    """Return the options that name code outside this package and PyG, with the names.

    Only the spelling is looked at: nothing is imported.
    """
    options = config.denoiser
    if not isinstance(options, GraphDenoiserConfig):
        return {}
    names = {"denoiser.conv": options.conv, "denoiser.global_attention": options.global_attention}
    return {
        option: name for option, name in names.items() if ":" in name and not name.startswith(_PYG)
    }


def check_no_custom_code(config: Config, file: str | Path) -> None:
    """Refuse a configuration, read from a file, that would run code of others.

    Raises:
        BadConfig: it names code; the message has the name and, where it can be known without
            importing, the file.
    """
    for option, name in custom_code(config).items():
        path = code_file(name)
        place = f" in {short_repr(str(path))}" if path else ""
        raise BadConfig(
            f"{file}: {option}: found {short_repr(name)}, code{place} that is not part of "
            "stflow_graph, expected a layer of this package or 'pyg:Name'. Fix: read that code; "
            "--allow-code (allow_code=True in Python) runs it"
        )


def _conv(config: GraphDenoiserConfig) -> str | Callable[[int, int], nn.Module]:
    """Return the local layer's name if it is ours, else what makes it."""
    name = config.conv
    if name in CONVS:
        return name
    if name.startswith(_PYG):
        layer = _module_class("denoiser.conv", "torch_geometric.nn", name.removeprefix(_PYG))
        return partial(AdaptedConv, layer, options=config.conv_options)
    if ":" not in name:
        known = ", ".join(CONVS)
        raise BadConfig(f"denoiser.conv = {name!r}: expected {known}, 'pyg:Name' or 'module:Name'")
    return partial(_own_class("denoiser.conv", name), **config.conv_options)


def _global_attention(config: GraphDenoiserConfig) -> str | Callable[[int], nn.Module] | None:
    option, name = "denoiser.global_attention", config.global_attention
    if name in ("latent", "none"):
        return None if name == "none" else name
    if name.startswith(_PYG):
        layer = _module_class(option, "torch_geometric.nn.attention", name.removeprefix(_PYG))
        return partial(PyGAttention, layer, heads=config.n_heads)
    if ":" not in name:
        raise BadConfig(f"{option} = {name!r}: expected latent, none, 'pyg:Name' or 'module:Name'")
    return _own_class(option, name)


def _own_class(option: str, name: str) -> type[nn.Module]:
    """Return the class of a user's layer ``"module:Name"``."""
    module, _, layer = name.partition(":")
    if module.split(".")[0] == "torch_geometric":
        raise BadConfig(f"{option} = {name!r}: PyG's layers need an adapter. Fix: 'pyg:{layer}'")
    return _module_class(option, module, layer)


def _module_class(option: str, module: str, name: str) -> type[nn.Module]:
    """Return a class of layers by name.

    Calling anything else that a module holds could do whatever that thing does.
    """
    layer = resolve(f"{module}:{name}")
    if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        raise BadConfig(
            f"{option} = {module + ':' + name!r}: found {short_repr(layer)}, "
            "expected a subclass of torch.nn.Module"
        )
    return layer


class Unchanged(BaseTransform):
    """Leaves a slide as it is: the published model makes its own graph in every call."""

    def forward(self, data: Data) -> Data:
        """Return ``data``."""
        return data


def build_graph(config: Config) -> BaseTransform:
    """Return the ``Data -> Data`` transform that gives a slide what the denoiser reads."""
    if not isinstance(config.denoiser, GraphDenoiserConfig):
        return Unchanged()
    return build_slide_graph(config)


def build_slide_graph(config: Config) -> SpatialGraph | STFlowGraph:
    """Return what makes the graph of a denoiser that passes messages."""
    graph = config.graph
    if isinstance(config.denoiser, GraphDenoiserConfig) and config.denoiser.conv == "stflow":
        return STFlowGraph(graph.n_neighbors, graph.backend)
    return SpatialGraph(graph.n_neighbors, graph.slack, graph.backend)


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
