"""Message-passing layers, one a file; ``__all__`` enrols a layer in the shared property tests."""

from stflow_graph.nn.conv.adapted import AdaptedConv
from stflow_graph.nn.conv.frame_averaged import FrameAveragedConv

__all__ = ["AdaptedConv", "FrameAveragedConv"]
