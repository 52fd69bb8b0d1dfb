import pytest
import torch
from networks import F, G, graph
from slides import noise, slide
from torch import nn

from stflow_graph.graph import TiledGraph, WholeGraph
from stflow_graph.nn.block import BlockStack, GraphBlock, make_blocks, zero_estimate
from stflow_graph.nn.conv import STFlowConv
from stflow_graph.nn.stflow.gene_head import GeneHead

C = 4


class MeanConv(nn.Module):
    """A layer from outside: a linear map of the neighbours' sum of states and expression."""

    def __init__(self, channels: int, n_genes: int) -> None:
        super().__init__()
        self.lin = nn.Linear(channels + n_genes, channels)

    def forward(self, h, y, edge_index, edge_attr, edge_weight):
        sender, receiver = edge_index
        values = torch.cat([h, y], 1)
        return self.lin(torch.zeros_like(values).index_add(0, receiver, values[sender]))


class Mean(nn.Module):
    """A global layer from outside: twice the slide's mean, for a single slide."""

    def forward(self, h, batch, n_slides):
        return 2 * h.mean(0).expand_as(h)


@pytest.fixture
def blocks() -> BlockStack:
    torch.manual_seed(0)
    stack = BlockStack(
        GraphBlock(C, MeanConv(C, G), Mean(), nn.Linear(C, C), nn.Linear(C, G)) for _ in range(2)
    )
    for block in stack:
        nn.init.normal_(block.gate)
    return stack.double()


@torch.no_grad()
@pytest.mark.parametrize("view", [WholeGraph.of, lambda data: TiledGraph.of(data, 7)])
def test_blocks_are_their_formula_on_a_dense_matrix(blocks, view):
    data = graph(slide(20, F))
    adjacency = torch.zeros(20, 20).double()
    adjacency.index_put_(tuple(data.edge_index.flip(0)), torch.ones(1).double(), accumulate=True)
    h_0, y_0 = noise(20, C).double(), noise(20, G).double()
    h, y, expected = h_0, y_0, []
    for block in blocks:
        h = h + block.conv.lin(adjacency @ torch.cat([h, y], 1))
        h = h + block.gate * 2 * h.mean(0)
        h = h + block.mlp(h)
        y = block.read_out(h)
        expected.append((h, y))
    states, estimates = blocks(h_0.clone(), lambda rows: y_0[rows], [view(data)] * 2)
    for state, estimate, (h, y) in zip(states, estimates, expected, strict=True):
        torch.testing.assert_close(state, h)
        torch.testing.assert_close(estimate(slice(None)), y)
        torch.testing.assert_close(estimate(torch.tensor([3, 9])), y[[3, 9]])
    mean = (expected[0][1] + expected[1][1]) / 2
    torch.testing.assert_close(blocks.read_out(states), mean)
    torch.testing.assert_close(h_0, noise(20, C).double())  # the input is left as it was


def test_gates_start_closed_and_estimates_at_zero(blocks):
    blocks[0].reset_parameters()
    assert not blocks[0].gate.any()
    estimate = zero_estimate(G, torch.ones(7, C).double())
    assert torch.equal(estimate(torch.tensor([0, 3])), torch.zeros(2, G).double())
    assert estimate(slice(None)).shape == (7, G)


SIZES = {"n_heads": 2, "dropout": 0.1, "conv": "additive", "conv_options": {}}
SIZES["global_attention"] = "latent"


def test_layers_by_name_get_the_options_and_heads():
    options = {"edge_channels": 6, "dropout": 0.4}
    (block,) = make_blocks(C, G, 1, **{**SIZES, "conv_options": options})
    assert (block.conv.heads, block.conv.edge_channels, block.conv.dropout) == (2, 6, 0.4)
    assert block.global_attention.heads == 2
    rates = [m.p for m in (*block.mlp, *block.read_out) if isinstance(m, nn.Dropout)]
    assert rates == [0.1, 0.1]


@pytest.mark.parametrize("by_name", [True, False])
def test_around_the_published_layer_blocks_are_the_published_ones(by_name):
    conv = "stflow" if by_name else lambda channels, n_genes: STFlowConv(channels, n_genes, 2, 8)
    (block,) = make_blocks(C, G, 1, **{**SIZES, "conv": conv, "global_attention": None})
    assert block.gate is None
    assert isinstance(block.read_out, GeneHead)
    assert block.mlp.fc1.out_features == 4 * C
    assert block.conv.score.mlp.dropout.p == (0.1 if by_name else 0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conv": "dot"}, "unknown conv 'dot'; one of additive, frame_averaged, stflow"),
        ({"global_attention": "mamba"}, "unknown global attention 'mamba'; 'latent' or None"),
        ({"n_heads": 3}, "heads must divide"),
    ],
)
def test_unknown_names_and_heads_that_do_not_divide_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_blocks(C, G, 1, **{**SIZES, **options})
