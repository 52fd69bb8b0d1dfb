import pytest
import torch
from torch import nn

from stflow_graph.nn.conv.adapted import AdaptedConv

EDGES = torch.tensor([[1, 2, 0], [0, 0, 1]])
H, Y, ATTR, WEIGHT = torch.randn(3, 8), torch.randn(3, 2), torch.randn(3, 6), torch.rand(3)


class Recorder(nn.Module):
    """Keeps what it is called with."""

    def __init__(self, in_channels, out_channels):
        super().__init__()

    def reset_parameters(self):
        pass

    def forward(self, x, edge_index):
        self.called_with = {"x": x, "edge_index": edge_index}
        return x


class WithAttributes(Recorder):
    def __init__(self, in_channels, out_channels, edge_dim=None):
        super().__init__(in_channels, out_channels)

    def forward(self, x, edge_index, edge_attr=None):
        self.called_with = {"x": x, "edge_index": edge_index, "edge_attr": edge_attr}
        return x


class WithWeights(Recorder):
    def forward(self, x, edge_index, edge_weight=None):
        self.called_with = {"x": x, "edge_index": edge_index, "edge_weight": edge_weight}
        return x


@pytest.mark.parametrize("weight", [WEIGHT, None], ids=["weights", "none"])
@pytest.mark.parametrize("layer", [Recorder, WithAttributes, WithWeights])
def test_a_layer_gets_the_states_and_the_edges_that_it_takes(layer, weight):
    conv = AdaptedConv(layer, 8, 2, edge_channels=5)
    conv(H, Y, EDGES, ATTR, weight)
    got = conv.layer.called_with
    expected = {"x": conv.norm(H) + conv.lin_y(Y), "edge_index": EDGES}
    if layer is WithAttributes:
        encoded = conv.edge_encoder(ATTR)
        assert encoded.shape == (3, 5)
        expected["edge_attr"] = encoded if weight is None else encoded * weight[:, None]
    if layer is WithWeights:
        expected["edge_weight"] = weight
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert value is got[name] or torch.equal(value, got[name])
