"""Flow matching: path, priors, samplers, loss and noise around a callable ``model(y_t, t)``.

The model predicts y₁ (x₁-prediction) from ``y_t [N, G]`` and the flow time t; nothing here depends
on a network or a graph.
"""

from stflow_graph.flow.loss import flow_loss
from stflow_graph.flow.noise import spot_keys, spot_uniform
from stflow_graph.flow.path import PathSample, linear_path

__all__ = ["PathSample", "flow_loss", "linear_path", "spot_keys", "spot_uniform"]
