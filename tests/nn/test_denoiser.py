import pytest
import torch
from networks import F, G, graph, network
from slides import array, noise, reach, slide
from torch_geometric import EdgeIndex
from torch_geometric.data import Data

from stflow_graph.graph import TiledGraph
from stflow_graph.nn.denoiser import GraphDenoiser

N = 20
Y = noise(N, G).double()
T = torch.tensor([0.5]).double()


@pytest.fixture
def model() -> GraphDenoiser:
    return network("every step")


@pytest.fixture
def data() -> Data:
    return graph(slide(N, F))


def test_expression_of_neighbours_and_time_matter(model, data):
    out = model(Y, T, data)
    assert not torch.allclose(out, model(Y.flip(0), T, data))
    assert not torch.allclose(out, model(Y, T + 0.4, data))
    # only differences between neighbours are seen
    torch.testing.assert_close(out, model(Y + 1, T, data))


@pytest.mark.parametrize("layers", ["additive", "typed edges"])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_the_reach_of_local_layers_is_their_number_and_of_a_global_one_the_slide(layers, n_layers):
    data = graph(slide(array("hexagonal", 10), F), layers)
    x, y = data.x.requires_grad_(), noise(100, G).double()
    options = {"n_layers": n_layers, "context_hops": ()}
    for attention in ("latent", None):
        model = network("every step", layers, global_attention=attention, **options)
        (gradient,) = torch.autograd.grad(model(y, T, data)[0].sum(), x)
        seen = set(gradient.abs().sum(1).nonzero().flatten().tolist())
        assert seen == (set(range(100)) if attention else reach(data.edge_index, 0, n_layers))


@pytest.mark.parametrize("kind", ["every step", "two stages"])
def test_the_type_of_an_edge_acts_through_its_column_alone(kind, data):
    typed, untyped = network(kind, "typed edges"), network(kind)
    weights = typed.state_dict()
    of_type = [value[:, 6] for value in weights.values() if value.shape[1:] == (7,)]
    untyped.load_state_dict({k: v[:, :6] if v.shape[1:] == (7,) else v for k, v in weights.items()})
    padded = data.clone()
    padded.edge_attr = torch.nn.functional.pad(data.edge_attr, (0, 1))
    torch.testing.assert_close(typed(Y, T, padded), untyped(Y, T, data))  # edges in space alone
    both = graph(slide(N, F), "typed edges")
    plain = both.clone()
    plain.edge_attr = both.edge_attr[:, :6]
    assert not torch.allclose(typed(Y, T, both), untyped(Y, T, plain))
    for column in of_type:
        column.zero_()
    torch.testing.assert_close(typed(Y, T, both), untyped(Y, T, plain))


@pytest.mark.parametrize("kind", ["every step", "two stages"])
def test_an_edge_index_of_pyg_gives_the_same(kind, data):
    model = network(kind)
    out = model(Y, T, data)
    edges = torch.randperm(data.num_edges)
    shuffled = Data.from_dict(data.to_dict())
    shuffled.edge_attr, shuffled.edge_weight = data.edge_attr[edges], data.edge_weight[edges]
    shuffled.edge_index = data.edge_index[:, edges]
    torch.testing.assert_close(model(Y, T, shuffled), out)
    for order, here in (("col", data), (None, shuffled)):
        here.edge_index = EdgeIndex(here.edge_index, sparse_size=(N, N), sort_order=order)
        torch.testing.assert_close(model(Y, T, here), out)
        bound = model.bind(here, TiledGraph.of(here, 7))
        with torch.no_grad():
            torch.testing.assert_close(bound(Y, T), out)


@pytest.mark.parametrize(("room", "encoded"), [(0, [4, 4]), (1.5, [1, 4]), (2, [1, 1])])
@pytest.mark.parametrize("tile_size", [None, N])
@torch.no_grad()
def test_a_bound_denoiser_encodes_edges_once_within_its_budget(
    model, data, room, encoded, tile_size, monkeypatch
):
    conv = model.blocks.convs[0]
    budget = int(room * data.num_edges * conv.edge_channels * 8)
    monkeypatch.setattr("stflow_graph.nn.denoiser.MAX_CACHE_BYTES", budget)
    counts = [0, 0]
    for i, conv in enumerate(model.blocks.convs):

        def count(*_: object, i: int = i) -> None:
            counts[i] += 1

        conv.edge_encoder.register_forward_hook(count)
    bound = model.bind(data, tile_size and TiledGraph.of(data, tile_size))
    for _ in range(4):
        bound(Y, T)
    assert counts == encoded


@pytest.mark.parametrize("kind", ["every step", "two stages"])
def test_inputs_are_checked(kind, data):
    """All checks are in ``test_checks.py``."""
    model = network(kind)
    for call in (lambda y: model(y, T, data), lambda y: model.bind(data)(y, T)):
        with pytest.raises(ValueError, match=r"y_t must be \[20, 5\]"):
            call(Y[1:])
    with pytest.raises(ValueError, match=r"t must be \[1\]"):
        model(Y, T.repeat(2), data)
    data.edge_index[0, 0] = N
    for call in (lambda: model(Y, T, data), lambda: model.bind(data)):
        with pytest.raises(ValueError, match=r"edge_index .* must name spots 0 to 19"):
            call()
    data.x = data.x[:, 1:]
    with pytest.raises(ValueError, match=r"data.x must be \[20, 12\]"):
        model(Y, T, data)


def test_repr_names_its_parts(model):
    assert "AdditiveConv(16, n_genes=5, heads=4)" in repr(model)
    assert "LatentAttention(16, n_latents=16, heads=4)" in repr(model)
    assert "ContextEmbedding(12, 16, hops=(1, 3), dropout=0.0)" in repr(model)
