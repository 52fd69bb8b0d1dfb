"""The attention layers against a dense reference, and in the forms of edges that PyG knows."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from slides import in_double, noise, slide
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.explain import AttentionExplainer, Explainer
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csr_tensor

from stflow_graph.graph import SpatialGraph, STFlowGraph
from stflow_graph.graph.neighbor_sum import sorted_edges
from stflow_graph.nn.conv import AdditiveConv, FrameAveragedConv, STFlowConv
from stflow_graph.nn.conv.edge_attention import EdgeAttentionConv
from stflow_graph.nn.edge_encoder import EncodedEdges
from stflow_graph.nn.stflow.swiglu import SwiGLU

N, C, G, HEADS = 25, 16, 5, 4
KINDS = [AdditiveConv, FrameAveragedConv, STFlowConv]


@pytest.fixture(params=KINDS)
def kind(request) -> type[EdgeAttentionConv]:
    return request.param


@pytest.fixture
def layer(kind) -> EdgeAttentionConv:
    torch.manual_seed(0)
    return kind(C, G, HEADS, 8).double().eval()


def graph(kind: type, genes: int = G) -> Data:
    """Return a slide with weights in random order: of STFlow's graph they are 1."""
    data = slide(N, C, genes)
    data = (STFlowGraph if kind is STFlowConv else SpatialGraph)(4)(data)
    if data.edge_weight is None:
        data.edge_weight = torch.ones(data.num_edges)
    return in_double(data)


@pytest.fixture
def data(kind) -> Data:
    return graph(kind)


def run(layer, data: Data, edge_index: torch.Tensor | None = None, **options):
    edge_index = data.edge_index if edge_index is None else edge_index
    return layer(data.x, data.y, edge_index, data.edge_attr, data.edge_weight, **options)


def dense_reference(layer: EdgeAttentionConv, data: Data) -> torch.Tensor:
    """Compute the layer spot by spot, edge by edge, head by head, all concatenated."""
    q, k, v = (part.unflatten(1, (HEADS, -1)) for part in layer.qkv(layer.norm(data.x)).chunk(3, 1))
    out = []
    for i in range(N):
        edges = (data.edge_index[1] == i).nonzero().flatten().tolist()
        senders = data.edge_index[0, edges].tolist()
        f = [edge_reference(layer.edge_encoder, data.edge_attr[e]) for e in edges]
        context_v, context_f = [], []
        for h in range(HEADS):
            logits = [
                score_reference(layer, h, q[i, h], k[j, h], f_e, data.y[j] - data.y[i])
                for j, f_e in zip(senders, f, strict=True)
            ]
            weights = data.edge_weight[edges] * torch.stack(logits).exp()
            alpha = weights / weights.sum()
            context_v.append(sum(a * v[j, h] for a, j in zip(alpha, senders, strict=True)))
            context_f.append(sum(a * f_e.chunk(HEADS)[h] for a, f_e in zip(alpha, f, strict=True)))
        out.append(layer.out(torch.cat(context_v + context_f)))
    return torch.stack(out)


def score_reference(layer, head: int, q, k, f, dy) -> torch.Tensor:
    score = layer.score
    if isinstance(layer, STFlowConv):
        return score.mlp(torch.cat([q, k, f.chunk(HEADS)[head], dy]))[0]
    hidden = q + k + (score.lin_edge(f) + score.lin_y(dy)).chunk(HEADS)[head]
    return (score.att[head] * hidden / (1 + torch.exp(-hidden))).sum()


def edge_reference(encoder, attr: torch.Tensor) -> torch.Tensor:
    """Encode one edge; averages over the signs of its frame include the last linear map."""
    if hasattr(encoder, "hidden_features") or isinstance(
        getattr(encoder, "hidden", None), nn.Linear
    ):
        a, b, *rest, w = attr
        return encoder.out(F.silu(encoder.hidden(torch.stack([w * a * a, w * b * b, *rest, w]))))
    signs = itertools.product([-1, 1], repeat=2)
    inputs = [torch.stack([attr[0] * s, attr[1] * t, attr[2]]) for s, t in signs]
    if isinstance(encoder, SwiGLU):
        hidden = [encoder.fc1(x).chunk(2) for x in inputs]
        return sum(encoder.fc2(encoder.norm(F.silu(a) * b)) for a, b in hidden) / 4
    framed = sum(encoder.out(F.silu(encoder.framed(x))) for x in inputs) / 4
    isotropic = encoder.out(F.silu(encoder.isotropic(attr[2:5])))
    return attr[5] * framed + (1 - attr[5]) * isotropic


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.double, 1e-12), (torch.float, 1e-5)])
def test_values_and_gradients_equal_a_dense_reference(kind, layer, data, dtype, tolerance):
    exact = kind(C, G, HEADS, 8).double().eval()
    exact.load_state_dict(layer.state_dict())
    inputs = Data.from_dict(data.to_dict()).apply(
        lambda value: value.to(dtype) if value.is_floating_point() else value
    )
    out, reference = run(layer.to(dtype), inputs), dense_reference(exact, data)
    probe = noise(N, C, seed=1).double()
    gradients = torch.autograd.grad((out * probe.to(dtype)).sum(), list(layer.parameters()))
    expected = torch.autograd.grad((reference * probe).sum(), list(exact.parameters()))
    assert (out - reference).abs().max() <= tolerance * reference.abs().max()
    scale = max(g.abs().max() for g in expected)
    for a, b in zip(gradients, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * scale


class Widest(TorchDispatchMode):
    """Keeps the largest number of values per edge of any tensor."""

    def __init__(self, n_edges: int) -> None:
        super().__init__()
        self.n_edges, self.per_edge = n_edges, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.dim() and len(tensor) == self.n_edges:
                self.per_edge = max(self.per_edge, tensor.numel() // self.n_edges)
        return out


def test_nothing_per_edge_grows_with_the_genes_or_holds_the_concatenation(kind):
    per_edge = []
    for genes in (40, 4000):
        data = graph(kind, genes)
        layer = kind(C, genes, HEADS, 16).double()
        with Widest(data.num_edges) as widest:
            run(layer, data).square().sum().backward()
        per_edge.append(widest.per_edge)
        concatenated = HEADS * (2 * C // HEADS + 16 // HEADS + genes)
        assert 0 < widest.per_edge < concatenated
    assert per_edge[0] == per_edge[1]


def test_dropout_of_attention_acts_in_training_alone(kind, data):
    layer = kind(C, G, dropout=0.5, **({"mlp_dropout": 0.0} if kind is STFlowConv else {})).double()
    assert not torch.equal(run(layer, data), run(layer, data))
    assert torch.equal(run(layer.eval(), data), run(layer, data))


def test_without_a_gradient_nothing_is_overwritten_that_is_read_again(layer, data):
    expected = run(layer, data)
    with torch.no_grad():
        for edges in (data.edge_index, sorted_edges(data.edge_index, N)):
            torch.testing.assert_close(run(layer, data, edges), expected)


def test_edges_encoded_beforehand_give_the_same(layer, data):
    encoded, inputs = layer.edge_encoder(data.edge_attr), (data.x, data.y, data.edge_index)
    out = layer(*inputs, EncodedEdges(encoded), data.edge_weight)
    assert torch.equal(out, run(layer, data))
    with pytest.raises(ValueError, match=r"edge_attr must be \[\d+, 8\], got \[\d+, 3\]"):
        layer(*inputs, EncodedEdges(encoded[:, :3]), data.edge_weight)


@pytest.mark.parametrize("sort_order", [None, "row", "col"])
def test_an_edge_index_of_pyg_gives_the_same(layer, data, sort_order):
    """Edges sorted by spot are summed in another way."""
    if sort_order == "row":
        order = data.edge_index[0].argsort(stable=True)
        data.edge_index = data.edge_index[:, order]
        data.edge_attr, data.edge_weight = data.edge_attr[order], data.edge_weight[order]
    edge_index = EdgeIndex(data.edge_index, sparse_size=(N, N), sort_order=sort_order)
    results = []
    for edges in (data.edge_index, edge_index):
        x = data.x.clone().requires_grad_()
        out = layer(x, data.y, edges, data.edge_attr, data.edge_weight)
        results.append((out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("to_sparse", [to_torch_csr_tensor, to_torch_coo_tensor])
@pytest.mark.filterwarnings("ignore:.*[Ss]parse:UserWarning")
def test_a_transposed_sparse_matrix_gives_the_same(layer, data, to_sparse):
    adj_t = to_sparse(data.edge_index.flip(0), size=(N, N))
    out, (_, alpha) = run(layer, data, return_attention_weights=True)
    sparse, matrix = run(layer, data, adj_t, return_attention_weights=True)
    torch.testing.assert_close(sparse, out)
    torch.testing.assert_close(run(layer, data, adj_t), out)
    torch.testing.assert_close(matrix.values(), alpha)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_sparse_tensor_of_torch_sparse_gives_the_same(layer, data):
    torch_sparse = pytest.importorskip("torch_sparse")
    adj_t = torch_sparse.SparseTensor.from_edge_index(data.edge_index.flip(0), sparse_sizes=(N, N))
    out, matrix = run(layer, data, adj_t, return_attention_weights=True)
    torch.testing.assert_close(out, run(layer, data))
    assert matrix.storage.value().shape == (data.num_edges, HEADS)


def test_attention_weights_sum_to_one_over_the_neighbours(layer, data):
    out, (edges, alpha) = run(layer, data, return_attention_weights=True)
    assert torch.equal(out, run(layer, data))
    assert torch.equal(edges, data.edge_index)
    total = alpha.new_zeros(N, HEADS).index_add(0, edges[1], alpha)
    torch.testing.assert_close(total, torch.ones_like(total))


class Explained(nn.Module):
    """The layer as PyG's explainer calls it: states and edges first, the rest by keyword."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x, edge_index, y, edge_attr, edge_weight):
        return self.layer(x, y, edge_index, edge_attr, edge_weight)


def test_the_explainer_of_pyg_reads_the_attention(layer, data):
    explainer = Explainer(
        Explained(layer).eval(),
        algorithm=AttentionExplainer(reduce="mean"),
        explanation_type="model",
        edge_mask_type="object",
        model_config={"mode": "regression", "task_level": "node", "return_type": "raw"},
    )
    inputs = {key: data[key] for key in ("y", "edge_attr", "edge_weight")}
    explanation = explainer(data.x, data.edge_index, **inputs)
    _, (_, alpha) = run(layer, data, return_attention_weights=True)
    torch.testing.assert_close(explanation.edge_mask, alpha.mean(1))
