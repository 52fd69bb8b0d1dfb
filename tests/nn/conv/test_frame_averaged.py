from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric.data import Data

from stflow_graph.graph import PublishedGraph, SpatialGraph
from stflow_graph.nn.conv.frame_averaged import ATTENTIONS, FrameAveragedConv
from stflow_graph.nn.edge_encoder import FrameEncoder


def slide(n: int, channels: int, genes: int, attention: str, k: int = 4) -> Data:
    generator = torch.Generator().manual_seed(n)
    data = Data(
        x=torch.randn(n, channels, generator=generator).double(),
        y=torch.randn(n, genes, generator=generator).double(),
        pos=torch.rand(n, 2, generator=generator).double(),
    )
    data = (PublishedGraph(k) if attention == "stflow" else SpatialGraph(k))(data)
    data.edge_attr = data.edge_attr.double()
    data.edge_weight = torch.ones(data.num_edges) if attention == "stflow" else data.edge_weight
    data.edge_weight = data.edge_weight.double()
    return data


def dense_reference(layer: FrameAveragedConv, data: Data) -> torch.Tensor:
    """Compute the layer spot by spot, edge by edge, head by head, all concatenated."""
    n, heads, width = data.x.size(0), layer.heads, layer.channels // layer.heads
    q, k, v = layer.qkv(layer.norm(data.x)).chunk(3, dim=1)
    out = []
    for i in range(n):
        edges = (data.edge_index[1] == i).nonzero().flatten().tolist()
        sources = [int(data.edge_index[0, e]) for e in edges]
        f = [edge_reference(layer.edge_encoder, data.edge_attr[e]) for e in edges]
        parts_v, parts_f = [], []
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            logits = [
                score_reference(layer, h, q[i, part], k[j, part], f_e, data.y[j] - data.y[i])
                for j, f_e in zip(sources, f, strict=True)
            ]
            weight = [
                data.edge_weight[e] * torch.exp(z) for e, z in zip(edges, logits, strict=True)
            ]
            alpha = [w / sum(weight) for w in weight]
            parts_v.append(sum(a * v[j, part] for a, j in zip(alpha, sources, strict=True)))
            share = share_of(f[0], h, heads)
            parts_f.append(sum(a * f_e[share] for a, f_e in zip(alpha, f, strict=True)))
        out.append(layer.out(torch.cat(parts_v + parts_f)))
    return torch.stack(out)


def share_of(f: torch.Tensor, head: int, heads: int) -> slice:
    return slice(head * f.numel() // heads, (head + 1) * f.numel() // heads)


def score_reference(layer, head, q, k, f, dy) -> torch.Tensor:
    score, part = layer.score, slice(head * len(q), (head + 1) * len(q))
    if layer.attention == "stflow":
        return score.mlp(torch.cat([q, k, f[share_of(f, head, layer.heads)], dy]))[0]
    edge, dy = score.lin_edge(f)[part], score.lin_y(dy)[part]
    if layer.attention == "additive":
        hidden = q + k + edge + dy
        return (score.att[head] * hidden / (1 + torch.exp(-hidden))).sum()
    return q @ (k + edge + dy) / math.sqrt(len(q))


def edge_reference(encoder, attr: torch.Tensor) -> torch.Tensor:
    """Average the encoder over the four sign choices of one edge, last linear map inside."""
    signs = list(itertools.product([-1, 1], repeat=2))
    if not isinstance(encoder, FrameEncoder):
        inputs = [torch.stack([attr[0] * s, attr[1] * t, attr[2]]) for s, t in signs]
        hidden = [encoder.fc1(x).chunk(2) for x in inputs]
        return sum(encoder.fc2(encoder.norm(F.silu(a) * b)) for a, b in hidden) / 4
    framed = [
        encoder.out(F.silu(encoder.framed(torch.stack([attr[0] * s, attr[1] * t, attr[2]]))))
        for s, t in signs
    ]
    isotropic = encoder.out(F.silu(encoder.isotropic(attr[2:5])))
    return attr[5] * sum(framed) / 4 + (1 - attr[5]) * isotropic


def agree(found: torch.Tensor, wanted: torch.Tensor, scale: float, tolerance: float) -> bool:
    return bool((found - wanted).abs().max() <= tolerance * scale)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.double, 1e-12), (torch.float, 1e-5)])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_equals_a_dense_reference_in_value_and_gradient(attention, dtype, tolerance):
    torch.manual_seed(0)
    layer = FrameAveragedConv(16, 5, heads=4, edge_channels=8, attention=attention)
    exact = FrameAveragedConv(16, 5, heads=4, edge_channels=8, attention=attention)
    exact.load_state_dict(layer.state_dict())
    layer, exact, data = layer.to(dtype), exact.double(), slide(25, 16, 5, attention)
    inputs = [data.x, data.y, data.edge_index, data.edge_attr, data.edge_weight]
    out = layer(*(v.to(dtype) if v.is_floating_point() else v for v in inputs))
    reference = dense_reference(exact, data)
    assert agree(out, reference, float(reference.detach().abs().max()), tolerance)
    probe = torch.randn(25, 16, generator=torch.Generator().manual_seed(1)).double()
    gradients = torch.autograd.grad((out * probe.to(dtype)).sum(), list(layer.parameters()))
    expected = torch.autograd.grad((reference * probe).sum(), list(exact.parameters()))
    scale = max(float(g.abs().max()) for g in expected)
    for found, wanted in zip(gradients, expected, strict=True):
        assert agree(found, wanted, scale, tolerance)


class Widest(TorchDispatchMode):
    """Remembers the most numbers per edge of any tensor that is made."""

    def __init__(self, n_edges: int) -> None:
        super().__init__()
        self.n_edges, self.per_edge = n_edges, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(each, torch.Tensor) and each.dim() and each.size(0) == self.n_edges:
                self.per_edge = max(self.per_edge, each.numel() // self.n_edges)
        return out


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_nothing_per_edge_grows_with_the_genes_or_holds_the_concatenation(attention):
    channels, edge_channels, heads = 16, 16, 4
    found = []
    for genes in (40, 4000):
        data = slide(30, channels, genes, attention)
        layer = FrameAveragedConv(channels, genes, heads, edge_channels, attention).double()
        with Widest(data.num_edges) as widest:
            out = layer(data.x, data.y, data.edge_index, data.edge_attr, data.edge_weight)
            out.square().sum().backward()
        found.append(widest.per_edge)
        concatenated = heads * (2 * channels // heads + edge_channels // heads + genes)
        assert 0 < widest.per_edge < concatenated
    assert found[0] == found[1]


def test_dropout_of_attention_is_off_in_eval_and_on_in_training():
    torch.manual_seed(0)
    layer = FrameAveragedConv(16, 5, dropout=0.5).double()
    data = slide(25, 16, 5, "additive")
    inputs = (data.x, data.y, data.edge_index, data.edge_attr, data.edge_weight)
    assert not torch.equal(layer(*inputs), layer(*inputs))
    assert torch.equal(layer.eval()(*inputs), layer(*inputs))


def test_heads_that_do_not_divide_and_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="heads must divide"):
        FrameAveragedConv(15, 5, heads=4)
    with pytest.raises(ValueError, match="additive"):
        FrameAveragedConv(16, 5, attention="cosine")
