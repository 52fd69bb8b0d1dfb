"""Message-passing layers, one a file; ``__all__`` enrols a layer in the shared property tests.

A layer is a module called as ``conv(h, y, edge_index, edge_attr, edge_weight)`` with the states
``h [N, C]``, the current estimate of expression ``y [N, G]``, ``edge_index [2, E]`` (neighbours in
row 0, spots in row 1), their geometry ``edge_attr [E, D]`` and ``edge_weight [E]``. It returns the
update of the states, ``[N, C]``, and depends on no more than a spot's neighbours and their edges.
"""

from stflow_graph.nn.conv.adapted import AdaptedConv
from stflow_graph.nn.conv.additive import AdditiveConv
from stflow_graph.nn.conv.frame_averaged import FrameAveragedConv
from stflow_graph.nn.conv.stflow import STFlowConv

# names that networks and configurations take
CONVS = {"additive": AdditiveConv, "frame_averaged": FrameAveragedConv, "stflow": STFlowConv}

__all__ = ["AdaptedConv", "AdditiveConv", "FrameAveragedConv", "STFlowConv"]
