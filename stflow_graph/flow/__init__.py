"""Flow matching: path, priors, samplers, loss and noise around a callable ``model(y_t, t, data)``.

The model predicts y₁ (x₁-prediction). ``y_t`` is ``[N, G]`` for all spots of a batch of slides,
``t`` is ``[n_slides]`` and ``data`` a PyG ``Data`` or ``Batch``; nothing here knows a network.
"""

from stflow_graph.flow.loss import flow_loss
from stflow_graph.flow.noise import spot_keys, spot_uniform
from stflow_graph.flow.path import PathSample, linear_path

__all__ = ["PathSample", "flow_loss", "linear_path", "spot_keys", "spot_uniform"]
