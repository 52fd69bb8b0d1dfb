"""A slide in tiles gives what the whole slide gives, layer by layer."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn import GATv2Conv, SAGEConv
from torch_geometric.transforms import Compose

from stflow_graph.graph import (
    NeighbourhoodContext,
    SimilarityEdges,
    SpatialGraph,
    SpatialTiles,
    STFlowGraph,
)
from stflow_graph.nn.conv import AdaptedConv
from stflow_graph.nn.denoiser import GraphDenoiser

CHANNELS, GENES = 12, 5


def jittered(n: int = 90) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.rand(n, 2, generator=generator, dtype=torch.float64)


def lattice(n: int = 9) -> torch.Tensor:
    i, j = (g.flatten().double() for g in torch.meshgrid(*[torch.arange(n)] * 2, indexing="ij"))
    return torch.stack([i + 0.5 * (j % 2), j * math.sqrt(3) / 2], 1)


def slide(pos: torch.Tensor) -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(pos), CHANNELS, generator=generator, dtype=torch.float64)
    return Data(x=x, pos=pos)


def in_double(data: Data) -> Data:
    for key in ("edge_attr", "edge_weight", "similar_edge_attr"):
        if key in data:
            data[key] = data[key].double()
    return data


def denoiser(**options) -> GraphDenoiser:
    torch.manual_seed(0)
    options = {"hidden_channels": 16, "edge_channels": 8, "n_layers": 2} | options
    model = GraphDenoiser(CHANNELS, GENES, **options).double().eval()
    for block in model.blocks:
        if block.gate is not None:
            torch.nn.init.normal_(block.gate)
    if model.spot_flow is not None:
        torch.nn.init.normal_(model.spot_flow.mlp[2].weight)
    if model.linear_part is not None:
        for parameter in model.linear_part.parameters():
            torch.nn.init.normal_(parameter)
        model.linear_part.share.fill_(0.3)
    return model


def gatv2(channels: int, genes: int) -> AdaptedConv:
    return AdaptedConv(GATv2Conv, channels, genes, 8, {"heads": 4, "add_self_loops": False})


def sage(channels: int, genes: int) -> AdaptedConv:
    return AdaptedConv(SAGEConv, channels, genes, 8)


KINDS = {
    "local": {"global_attention": None},
    "latent": {},
    "linear": {"global_attention": "linear"},
    "dot": {"attention": "dot"},
    "signed, three bodies": {"signed_attention": True, "three_body": True},
    "published": {"attention": "stflow", "global_attention": None},
    "published, global": {"attention": "stflow"},
    "similarity": {"similarity_edges": True},
    "sees y": {"condition_on_y": True, "context_hops": (1, 3)},
    "once": {"graph_once": True},
    "once, context": {"graph_once": True, "context_hops": (1, 4), "ridge_rank": 3},
    "GATv2": {"conv": gatv2},
    "SAGE": {"conv": sage},
}


def with_graph(kind: str, pos: torch.Tensor) -> tuple[Data, tuple[str, ...]]:
    published = KINDS[kind].get("attention") == "stflow"
    graph = STFlowGraph(6) if published else SpatialGraph(6)
    relations = ("",)
    if KINDS[kind].get("similarity_edges"):
        graph, relations = Compose([graph, SimilarityEdges(4)]), ("", "similar_")
    return in_double(graph(slide(pos))), relations


@pytest.mark.parametrize("pos", [jittered(), lattice()], ids=["jittered", "lattice"])
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_of_any_size_give_what_the_whole_slide_gives(kind, pos):
    model = denoiser(**KINDS[kind])
    data, relations = with_graph(kind, pos)
    y_t = torch.randn(len(pos), GENES, generator=torch.Generator().manual_seed(1)).double()
    t = torch.tensor([0.4]).double()
    with torch.no_grad():
        whole = model(y_t, t, data)
        for tile_size in (3, 25, 1000):  # 3: smaller than a neighbourhood
            tiled = SpatialTiles(tile_size, relations)(copy.copy(data))
            assert "edge_index" not in tiled
            torch.testing.assert_close(model(y_t, t, tiled), whole, rtol=1e-9, atol=1e-9)
            if model.conditions:
                for a, b in zip(model.condition(tiled), model.condition(data), strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        single = copy.copy(data)
        for key in ("x", "edge_attr", "edge_weight", "similar_edge_attr"):
            if key in single:
                single[key] = single[key].float()
        tiled = SpatialTiles(25, relations)(single)
        found = model.float()(y_t.float(), t.float(), tiled)
    torch.testing.assert_close(found.double(), whole, rtol=1e-5, atol=1e-5 * float(whole.std()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_bound_denoiser_gives_what_every_call_gives(kind):
    model = denoiser(**KINDS[kind])
    data, relations = with_graph(kind, jittered())
    tiled = SpatialTiles(25, relations)(copy.copy(data))
    one_block = 8 * 8 * data.num_edges  # bytes of a block's encoded edges in space
    with torch.no_grad():
        for here in (data, tiled):
            # room for no block, for the first and a part of the second, for all
            for most_bytes in (0, one_block * 3 // 2, 100 * one_block):
                flow = model.bind(here, most_bytes)
                for seed, time in ((1, 0.0), (2, 0.7)):
                    generator = torch.Generator().manual_seed(seed)
                    y_t = torch.randn(90, GENES, generator=generator).double()
                    t = torch.tensor([time]).double()
                    expected = model(y_t, t, data)
                    found = flow(y_t, t, Data())
                    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("room", "encoded"), [(0, [4, 4]), (1.5, [1, 4]), (2, [1, 1])])
@pytest.mark.parametrize("tile_size", [None, 90])
def test_a_bound_denoiser_encodes_edges_once_where_there_is_room(room, encoded, tile_size):
    model = denoiser()
    data = with_graph("latent", jittered())[0]
    one_block = 8 * 8 * data.num_edges
    if tile_size:
        data = SpatialTiles(tile_size)(data)
    counts = [0, 0]
    for i, block in enumerate(model.blocks):

        def count(*_: object, i: int = i) -> None:
            counts[i] += 1

        block.convs[0].edge_encoder.register_forward_hook(count)
    y_t, t = torch.zeros(90, GENES).double(), torch.zeros(1).double()
    with torch.no_grad():
        flow = model.bind(data, int(room * one_block))
        for _ in range(4):
            flow(y_t, t, data)
    assert counts == encoded


def test_a_bound_denoiser_refuses_expression_of_other_spots():
    model = denoiser()
    flow = model.bind(with_graph("latent", jittered())[0])
    with pytest.raises(ValueError, match=r"y_t must be \[90, 5\]"):
        flow(torch.zeros(89, GENES).double(), torch.zeros(1).double(), Data())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_tiles_are_those_of_the_whole_slide(kind):
    model, (data, relations) = denoiser(**KINDS[kind]), with_graph(kind, jittered())
    y_t = torch.randn(90, GENES, generator=torch.Generator().manual_seed(1)).double()
    t = torch.tensor([0.4]).double()
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradient(data: Data) -> tuple[torch.Tensor, ...]:
        loss = (model(y_t, t, data) - y_t).square().sum()
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    expected = gradient(data)
    for tile_size in (3, 25, 1000):
        found = gradient(SpatialTiles(tile_size, relations)(copy.copy(data)))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("hops", [(), (1, 4)])
def test_learning_by_tiles_keeps_nothing_of_the_edges(hops):
    model = denoiser(graph_once=True, context_hops=hops, dropout=0.3, attn_dropout=0.1).train()
    whole = in_double(SpatialGraph(6)(slide(jittered(500))))
    if hops:
        whole = NeighbourhoodContext(hops)(whole)
    kept: dict[str, int] = {}
    gradients = []
    for name, data in (("whole", whole), ("tiles", SpatialTiles(25)(copy.copy(whole)))):

        def keep(tensor: torch.Tensor, name: str = name) -> torch.Tensor:
            kept[name] = max(kept.get(name, 0), tensor.size(0) if tensor.dim() else 0)
            return tensor

        for _ in "ab":
            torch.manual_seed(0)
            model.zero_grad()
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = model.condition(data).mean.square().sum()
            loss.backward()
            gradients.append(model.embed_x.weight.grad.clone())
    assert kept["whole"] >= whole.num_edges
    assert kept["tiles"] <= 2 * 500  # spots and halos
    # what is made anew drops what was dropped at first
    assert torch.equal(gradients[2], gradients[3])
    assert not torch.equal(gradients[0], gradients[2])


def test_learning_by_tiles_with_dropout_needs_the_context_before():
    model = denoiser(graph_once=True, context_hops=(1, 4), input_dropout=0.5).train()
    data = SpatialTiles(25)(in_double(SpatialGraph(6)(slide(jittered()))))
    with pytest.raises(ValueError, match="NeighbourhoodContext"):
        model.condition(data)


def test_a_condition_made_in_four_steps_never_needs_all_embeddings_or_genes_at_once():
    model = denoiser(graph_once=True, context_hops=(1, 4), ridge_rank=3)
    data = in_double(SpatialGraph(6)(slide(jittered())))
    whole = model.condition(data)
    tiles = SpatialTiles(20)(copy.copy(data)).tiles
    with torch.no_grad():
        projected = torch.cat([model.project(x) for x in data.x.split(31)])
        assert projected.shape == (90, 3 * (16 + 3))
        code = model.encode(model.gather(projected, tiles), tiles)
        assert code.shape == (90, 2 * 16 + 3)
        parts = [model.decode(rows) for rows in code.split(17)]
    torch.testing.assert_close(torch.cat([part.mean for part in parts]), whole.mean)
    torch.testing.assert_close(torch.cat([part.states for part in parts]), whole.states)


def test_tiles_must_have_the_relations_of_the_model():
    data = SpatialTiles(20)(SpatialGraph(6)(slide(jittered())))
    y_t, t = torch.zeros(90, GENES).double(), torch.zeros(1).double()
    with pytest.raises(ValueError, match="2 types of edges"):
        denoiser(similarity_edges=True)(y_t, t, data)
    with pytest.raises(ValueError, match="graph_once=True"):
        denoiser().encode(y_t, data.tiles)
