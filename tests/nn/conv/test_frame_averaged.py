from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.data import Data

from stflow_graph.graph import SpatialGraph
from stflow_graph.nn.conv.frame_averaged import FrameAveragedConv, FrameEncoder


def dense_reference(layer: FrameAveragedConv, data: Data) -> torch.Tensor:
    """Compute the layer spot by spot, edge by edge, head by head and sign by sign."""
    n, heads, width = data.x.size(0), layer.heads, layer.channels // layer.heads
    q, k, v = layer.qkv(layer.norm(data.x)).chunk(3, dim=1)
    out = []
    for i in range(n):
        edges = (data.edge_index[1] == i).nonzero().flatten().tolist()
        f = [edge_reference(layer.edge_encoder, data.edge_attr[e]) for e in edges]
        parts_v, parts_f = [], []
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            logits = []
            for e, f_e in zip(edges, f, strict=True):
                j = data.edge_index[0, e]
                dy = layer.lin_y(data.y[j] - data.y[i])[part]
                edge = layer.lin_edge(f_e)[part]
                if layer.attention == "additive":
                    hidden = q[i, part] + k[j, part] + edge + dy
                    logit = (layer.score[h] * hidden / (1 + torch.exp(-hidden))).sum()
                else:
                    logit = (q[i, part] @ (k[j, part] + edge) + layer.score[h] @ dy) / math.sqrt(
                        width
                    )
                logits.append(logit)
            weight = [
                data.edge_weight[e] * torch.exp(z) for e, z in zip(edges, logits, strict=True)
            ]
            alpha = [w / sum(weight) for w in weight]
            sources = [data.edge_index[0, e] for e in edges]
            parts_v.append(sum(a * v[j, part] for a, j in zip(alpha, sources, strict=True)))
            slice_f = slice(h * f[0].numel() // heads, (h + 1) * f[0].numel() // heads)
            parts_f.append(sum(a * f_e[slice_f] for a, f_e in zip(alpha, f, strict=True)))
        out.append(layer.out(torch.cat(parts_v + parts_f)))
    return torch.stack(out)


def edge_reference(encoder: FrameEncoder, attr: torch.Tensor) -> torch.Tensor:
    """Average φ over the four sign choices of one edge, last linear map inside the average."""
    framed = [
        encoder.out(F.silu(encoder.framed(torch.stack([attr[0] * s, attr[1] * t, attr[2]]))))
        for s, t in itertools.product([-1, 1], repeat=2)
    ]
    isotropic = encoder.out(F.silu(encoder.isotropic(attr[2:5])))
    return attr[5] * sum(framed) / 4 + (1 - attr[5]) * isotropic


@pytest.mark.parametrize("attention", ["additive", "dot"])
def test_equals_a_dense_reference_in_value_and_gradient(attention):
    torch.manual_seed(0)
    layer = FrameAveragedConv(16, 5, heads=4, edge_channels=8, attention=attention).double()
    data = SpatialGraph(4)(
        Data(
            x=torch.randn(25, 16).double(),
            y=torch.randn(25, 5).double(),
            pos=torch.rand(25, 2).double(),
        )
    )
    data.edge_attr, data.edge_weight = data.edge_attr.double(), data.edge_weight.double()
    out = layer(data.x, data.y, data.edge_index, data.edge_attr, data.edge_weight)
    reference = dense_reference(layer, data)
    assert torch.allclose(out, reference, rtol=1e-9, atol=1e-9)
    probe = torch.randn_like(out)
    gradients = torch.autograd.grad((out * probe).sum(), list(layer.parameters()))
    expected = torch.autograd.grad((reference * probe).sum(), list(layer.parameters()))
    for found, wanted in zip(gradients, expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-7, atol=1e-9)


def test_heads_that_do_not_divide_and_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="heads must divide"):
        FrameAveragedConv(15, 5, heads=4)
    with pytest.raises(ValueError, match="additive"):
        FrameAveragedConv(16, 5, attention="cosine")
