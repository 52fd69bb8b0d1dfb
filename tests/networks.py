"""Networks in memory for the tests: every kind of layer, in every step and in two stages."""

from functools import partial

import torch
from slides import in_double
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import GATv2Conv, SAGEConv
from torch_geometric.nn.attention import PerformerAttention

from stflow_graph.graph import SimilarityEdges, SpatialGraph, STFlowGraph
from stflow_graph.nn.conv import AdaptedConv
from stflow_graph.nn.denoiser import GraphDenoiser
from stflow_graph.nn.global_attention import PyGAttention
from stflow_graph.nn.spot_flow import SpotFlow
from stflow_graph.nn.two_stage import TwoStageDenoiser

F, G = 12, 5  # embedding channels, genes
SMALL = {"in_channels": F, "n_genes": G, "hidden_channels": 16, "context_hops": (1, 3)}
MAKERS = {"every step": GraphDenoiser, "two stages": TwoStageDenoiser.make}
LAYERS = {
    "additive": {},
    "local": {"global_attention": None, "context_hops": ()},
    "frame averaged": {"conv": "frame_averaged", "conv_options": {"edge_channels": 8}},
    "published": {"conv": "stflow", "conv_options": {"edge_channels": 8}},
    "typed edges": {"conv_options": {"edge_features": 7}},
    "GATv2": {
        "conv": partial(AdaptedConv, GATv2Conv, options={"heads": 4, "add_self_loops": False})
    },
    "SAGE": {"conv": partial(AdaptedConv, SAGEConv)},
    # without read, merge and spread
    "Performer": {"global_attention": partial(PyGAttention, PerformerAttention)},
}
FEWER_PARTS = {"mean alone": {"flow": False}, "no ridge": {"ridge_rank": 0}}
NETWORKS = [
    *((kind, layers) for kind in MAKERS for layers in LAYERS),
    *(("two stages", layers) for layers in FEWER_PARTS),
]


def network(kind: str, layers: str = "additive", *, seed: int = 0, **options) -> nn.Module:
    """Return a network in float64 and eval mode, all parts of which take part."""
    torch.manual_seed(seed)
    model = MAKERS[kind](**{**SMALL, **(LAYERS | FEWER_PARTS)[layers], **options})
    for name, parameter in model.named_parameters():
        if "gate" in name or "ridge_head" in name or "log_variance" in name:
            nn.init.normal_(parameter)
    for module in model.modules():
        if isinstance(module, SpotFlow):
            nn.init.normal_(module.mlp[2].weight)
        if hasattr(module, "mixing_weight"):
            module.mixing_weight.fill_(0.3)
    return model.double().eval()


def graph(data: Data, layers: str = "additive") -> Data:
    """Return the slide in float64 with the graph that a network of these layers reads."""
    if layers == "published":
        return in_double(STFlowGraph(6)(data))
    data = SpatialGraph(6)(data)
    return in_double(SimilarityEdges(4)(data) if layers == "typed edges" else data)
