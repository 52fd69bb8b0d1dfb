from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric.data import Data

from stflow_graph.graph import SpatialGraph, STFlowGraph
from stflow_graph.graph.neighbor_sum import sorted_edges
from stflow_graph.nn.conv.frame_averaged import ATTENTIONS, FrameAveragedConv
from stflow_graph.nn.edge_encoder import EncodedEdges, FrameEncoder, InvariantEncoder


def slide(n: int, channels: int, genes: int, attention: str, k: int = 4) -> Data:
    generator = torch.Generator().manual_seed(n)
    data = Data(
        x=torch.randn(n, channels, generator=generator).double(),
        y=torch.randn(n, genes, generator=generator).double(),
        pos=torch.rand(n, 2, generator=generator).double(),
    )
    data = (STFlowGraph(k) if attention == "stflow" else SpatialGraph(k))(data)
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
            if layer.signed:
                alpha = [
                    a * sign_reference(layer.score, h, q[i, part] + k[j, part], f_e, dy)
                    for a, j, f_e, dy in zip(
                        alpha, sources, f, [data.y[j] - data.y[i] for j in sources], strict=True
                    )
                ]
            parts_v.append(sum(a * v[j, part] for a, j in zip(alpha, sources, strict=True)))
            share = share_of(f[0], h, heads)
            parts_f.append(sum(a * f_e[share] for a, f_e in zip(alpha, f, strict=True)))
        context = torch.cat(parts_v + parts_f)
        out.append(layer.out(context))
        if layer.pair is not None:
            a, b = layer.pair.weight.chunk(2)
            out[-1] = out[-1] + layer.pair_out((a @ context) * (b @ context))
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


def sign_reference(score, head, q_and_k, f, dy) -> torch.Tensor:
    part = slice(head * len(q_and_k), (head + 1) * len(q_and_k))
    hidden = F.silu(q_and_k + score.lin_edge(f)[part] + score.lin_y(dy)[part])
    return torch.tanh(hidden @ score.att_sign[head] + score.sign_bias[head])


def edge_reference(encoder, attr: torch.Tensor) -> torch.Tensor:
    """Average the encoder over the four sign choices of one edge, last linear map inside."""
    if isinstance(encoder, InvariantEncoder):
        a, b, *rest, w = attr
        return encoder.out(F.silu(encoder.hidden(torch.stack([w * a * a, w * b * b, *rest, w]))))
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


OPTIONS = [{"attention": attention} for attention in ATTENTIONS] + [
    {"signed": True},
    {"three_body": True},
    {"attention": "dot", "three_body": True},
    {"signed": True, "three_body": True},
    {"edge_encoder": "frames"},
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.double, 1e-12), (torch.float, 1e-5)])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.items())))
def test_equals_a_dense_reference_in_value_and_gradient(options, dtype, tolerance):
    attention = options.get("attention", "additive")
    torch.manual_seed(0)
    layer = FrameAveragedConv(16, 5, heads=4, edge_channels=8, **options)
    exact = FrameAveragedConv(16, 5, heads=4, edge_channels=8, **options)
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
    with pytest.raises(ValueError, match="signed attention must be"):
        FrameAveragedConv(16, 5, attention="dot", signed=True)
    with pytest.raises(ValueError, match="three_body"):
        FrameAveragedConv(16, 5, attention="stflow", three_body=True)
    with pytest.raises(ValueError, match="invariants, frames"):
        FrameAveragedConv(16, 5, edge_encoder="fourier")


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.items())))
def test_without_a_gradient_nothing_is_written_over_that_is_read_again(options):
    torch.manual_seed(0)
    layer = FrameAveragedConv(16, 5, heads=4, edge_channels=8, **options).double()
    data = slide(25, 16, 5, options.get("attention", "additive"))
    sorted_index = sorted_edges(data.edge_index, 25)
    inputs = (data.edge_attr, data.edge_weight)
    wanted = layer(data.x, data.y, data.edge_index, *inputs)
    with torch.no_grad():
        for edges in (data.edge_index, sorted_index):
            assert torch.allclose(layer(data.x, data.y, edges, *inputs), wanted, atol=1e-12)


def test_signed_attention_can_be_negative():
    torch.manual_seed(0)
    layer = FrameAveragedConv(16, 5, signed=True).double()
    torch.nn.init.zeros_(layer.score.sign_bias)
    data = slide(25, 16, 5, "additive")
    inputs = (data.x, data.y, data.edge_index, data.edge_attr, data.edge_weight)
    _, (_, alpha) = layer(*inputs, return_attention_weights=True)
    assert (alpha < 0).any()
    assert (alpha > 0).any()


def test_of_three_bodies_neither_neighbour_alone_says_what_both_say():
    torch.manual_seed(0)
    data = Data(x=torch.randn(3, 16).double(), y=torch.zeros(3, 5).double())
    data.edge_index = torch.tensor([[1, 2], [0, 0]])
    data.edge_attr = torch.ones(2, 6).double()

    @torch.no_grad()
    def mixed_difference(layer) -> float:
        # moments are linear in the values where attention is held even
        torch.nn.init.zeros_(layer.score.att)
        torch.nn.init.zeros_(layer.qkv.bias)
        layer.norm = torch.nn.Identity()
        step = torch.zeros_like(data.x)

        def at(a: int, b: int) -> torch.Tensor:
            x = data.x + a * step.index_fill(0, torch.tensor(1), 1.0)
            x = x + b * step.index_fill(0, torch.tensor(2), 1.0)
            return layer(x, data.y, data.edge_index, data.edge_attr)[0]

        return float((at(1, 1) - at(1, 0) - at(0, 1) + at(0, 0)).abs().max())

    assert mixed_difference(FrameAveragedConv(16, 5).double()) < 1e-12
    assert mixed_difference(FrameAveragedConv(16, 5, three_body=True).double()) > 1e-6


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_edges_that_were_encoded_before_give_the_same(attention):
    torch.manual_seed(0)
    layer = FrameAveragedConv(8, 5, 2, 4, attention).double()
    data = slide(12, 8, 5, attention)
    given = (data.x, data.y, data.edge_index)
    encoded = EncodedEdges(layer.edge_encoder(data.edge_attr))
    expected = layer(*given, data.edge_attr, data.edge_weight)
    assert torch.equal(layer(*given, encoded, data.edge_weight), expected)
    with pytest.raises(ValueError, match=r"edge_attr must be \[\d+, 4\], got \[\d+, 3\]"):
        layer(*given, EncodedEdges(encoded.f[:, :3]), data.edge_weight)
