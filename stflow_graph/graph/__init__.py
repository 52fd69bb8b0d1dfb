"""The spatial graph of a slide: neighbours and frames, as ``Data -> Data`` transforms."""

from stflow_graph.graph.diffusion import Averaging, NeighbourhoodContext, diffuse, diffuse_sum
from stflow_graph.graph.frames import EDGE_FEATURES, edge_geometry
from stflow_graph.graph.neighbors import Neighbors, nearest_neighbors, spot_pitch
from stflow_graph.graph.similarity import SimilarityEdges
from stflow_graph.graph.spatial import SpatialGraph
from stflow_graph.graph.stflow import STFlowGraph
from stflow_graph.graph.tiles import TiledGraph, view_of
from stflow_graph.graph.whole import Edges, WholeGraph

__all__ = [
    "EDGE_FEATURES",
    "Averaging",
    "Edges",
    "NeighbourhoodContext",
    "Neighbors",
    "STFlowGraph",
    "SimilarityEdges",
    "SpatialGraph",
    "TiledGraph",
    "WholeGraph",
    "diffuse",
    "diffuse_sum",
    "edge_geometry",
    "nearest_neighbors",
    "spot_pitch",
    "view_of",
]
