"""Our layers do what PyG's own attention layers do."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.explain import AttentionExplainer, Explainer
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csr_tensor

from stflow_graph.nn.conv.frame_averaged import ATTENTIONS, FrameAveragedConv

N, CHANNELS, GENES, HEADS = 12, 16, 5, 4


@pytest.fixture(params=ATTENTIONS)
def layer(request) -> FrameAveragedConv:
    torch.manual_seed(0)
    return FrameAveragedConv(CHANNELS, GENES, HEADS, 8, request.param).eval()


@pytest.fixture
def data(layer) -> Data:
    """Random edges, sorted by target as a sparse matrix of them is."""
    torch.manual_seed(1)
    edges = torch.unique(torch.randint(N, (2, 50)).flip(0), dim=1).flip(0).contiguous()
    n_edges = edges.size(1)
    return Data(
        x=torch.randn(N, CHANNELS),
        y=torch.randn(N, GENES),
        edge_index=edges,
        edge_attr=torch.rand(n_edges, layer.edge_encoder.in_features),
        edge_weight=torch.rand(n_edges),
    )


def call(layer, data: Data, edge_index, **options):
    return layer(data.x, data.y, edge_index, data.edge_attr, data.edge_weight, **options)


def test_edge_index_of_pyg_gives_the_same(layer, data):
    edge_index = EdgeIndex(data.edge_index, sparse_size=(N, N), sort_order="col")
    found, gradients = [], []
    for edges in (data.edge_index, edge_index):  # the sorted ones are summed in another way
        x = data.x.clone().requires_grad_()
        out = layer(x, data.y, edges, data.edge_attr, data.edge_weight)
        found.append(out.detach())
        gradients.append(torch.autograd.grad(out.square().sum(), [x, *layer.parameters()]))
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("to_sparse", [to_torch_csr_tensor, to_torch_coo_tensor])
@pytest.mark.filterwarnings("ignore:.*[Ss]parse:UserWarning")
def test_a_transposed_sparse_matrix_gives_the_same(layer, data, to_sparse):
    adj_t = to_sparse(data.edge_index.flip(0), size=(N, N))
    out = call(layer, data, data.edge_index)
    assert torch.allclose(call(layer, data, adj_t), out, atol=1e-6)
    found, matrix = call(layer, data, adj_t, return_attention_weights=True)
    _, (_, alpha) = call(layer, data, data.edge_index, return_attention_weights=True)
    assert torch.equal(found, call(layer, data, adj_t))
    assert torch.allclose(matrix.values(), alpha, atol=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_sparse_tensor_of_torch_sparse_gives_the_same(layer, data):
    torch_sparse = pytest.importorskip("torch_sparse")
    adj_t = torch_sparse.SparseTensor.from_edge_index(data.edge_index.flip(0), sparse_sizes=(N, N))
    out, matrix = call(layer, data, adj_t, return_attention_weights=True)
    assert torch.allclose(out, call(layer, data, data.edge_index), atol=1e-6)
    assert matrix.storage.value().shape == (data.num_edges, HEADS)


def test_attention_weights_sum_to_one_over_the_neighbours(layer, data):
    out, (edges, alpha) = call(layer, data, data.edge_index, return_attention_weights=True)
    assert torch.equal(out, call(layer, data, data.edge_index))
    assert torch.equal(edges, data.edge_index)
    total = torch.zeros(N, HEADS).index_add(0, edges[1], alpha)
    assert torch.allclose(total[edges[1]], torch.ones_like(alpha))


class Model(nn.Module):
    """What PyG's explainer can call: states and edges first, the rest by keyword."""

    def __init__(self, layer: FrameAveragedConv) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x, edge_index, y, edge_attr, edge_weight):
        return self.layer(x, y, edge_index, edge_attr, edge_weight)


def test_the_explainer_of_pyg_reads_the_attention(layer, data):
    explainer = Explainer(
        Model(layer),
        algorithm=AttentionExplainer(reduce="mean"),
        explanation_type="model",
        edge_mask_type="object",
        model_config={"mode": "regression", "task_level": "node", "return_type": "raw"},
    )
    inputs = {key: data[key] for key in ("y", "edge_attr", "edge_weight")}
    explanation = explainer(data.x, data.edge_index, **inputs)
    _, (_, alpha) = call(layer, data, data.edge_index, return_attention_weights=True)
    assert torch.allclose(explanation.edge_mask, alpha.mean(1), atol=1e-6)


def test_compiles_without_graph_breaks(layer, data):
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    out = call(compiled, data, data.edge_index)
    assert torch.allclose(out, call(layer, data, data.edge_index), atol=1e-5)


# renaming a parameter makes every checkpoint useless: do it knowingly, with a new format
KEYS = {
    "common": {"norm.weight": [16], "norm.bias": [16], "qkv.weight": [48, 16], "qkv.bias": [48]},
    "additive": {
        "edge_encoder.hidden.weight": [16, 6],
        "edge_encoder.hidden.bias": [16],
        "edge_encoder.out.weight": [8, 16],
        "edge_encoder.out.bias": [8],
        "score.lin_y.weight": [16, 5],
        "score.lin_edge.weight": [16, 8],
        "out.weight": [16, 24],
        "out.bias": [16],
    },
    "stflow": {
        "edge_encoder.fc1.weight": [8, 3],
        "edge_encoder.fc1.bias": [8],
        "edge_encoder.norm.weight": [4],
        "edge_encoder.norm.bias": [4],
        "edge_encoder.fc2.weight": [8, 4],
        "edge_encoder.fc2.bias": [8],
        "score.mlp.fc1.weight": [16, 15],
        "score.mlp.fc1.bias": [16],
        "score.mlp.norm.weight": [8],
        "score.mlp.norm.bias": [8],
        "score.mlp.fc2.weight": [1, 8],
        "score.mlp.fc2.bias": [1],
        "out.fc1.weight": [16, 24],
        "out.fc1.bias": [16],
        "out.norm.weight": [8],
        "out.norm.bias": [8],
        "out.fc2.weight": [16, 8],
        "out.fc2.bias": [16],
    },
}
KEYS["dot"] = KEYS["additive"]
KEYS["additive"] = KEYS["additive"] | {"score.att": [4, 4]}


def test_names_and_shapes_of_parameters_stay(layer):
    expected = KEYS["common"] | KEYS[layer.attention]
    assert {key: list(value.shape) for key, value in layer.state_dict().items()} == expected
