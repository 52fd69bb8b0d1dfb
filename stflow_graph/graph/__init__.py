"""The spatial graph of a slide: neighbours and frames, as ``Data -> Data`` transforms."""

from stflow_graph.graph.diffusion import NeighbourhoodContext, diffuse
from stflow_graph.graph.frames import EDGE_FEATURES, edge_geometry
from stflow_graph.graph.neighbors import Neighbors, nearest_neighbors, spot_pitch
from stflow_graph.graph.published import PublishedGraph
from stflow_graph.graph.similarity import SimilarityEdges
from stflow_graph.graph.spatial import SpatialGraph

__all__ = [
    "EDGE_FEATURES",
    "NeighbourhoodContext",
    "Neighbors",
    "PublishedGraph",
    "SimilarityEdges",
    "SpatialGraph",
    "diffuse",
    "edge_geometry",
    "nearest_neighbors",
    "spot_pitch",
]
