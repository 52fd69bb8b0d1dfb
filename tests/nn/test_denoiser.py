from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch_geometric.data import Batch, Data

from stflow_graph.graph import SimilarityEdges, SpatialGraph, STFlowGraph
from stflow_graph.nn.denoiser import GraphDenoiser
from stflow_graph.nn.global_attention import GLOBAL_ATTENTIONS

F, G = 12, 5


def slide(n: int, seed: int = 0, kind: str = "jittered") -> Data:
    generator = torch.Generator().manual_seed(seed)
    side = math.ceil(math.sqrt(n))
    i, j = (
        g.flatten()[:n].double() for g in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij")
    )
    pos = torch.stack([i + 0.5 * (j % 2), j * math.sqrt(3) / 2], 1)
    if kind == "jittered":
        pos = pos + 0.1 * torch.randn(n, 2, generator=generator).double()
    return Data(x=torch.randn(n, F, generator=generator), pos=pos * 137)


def graph(data: Data) -> Data:
    return SimilarityEdges(4)(SpatialGraph(6)(data))


def denoiser(**options) -> GraphDenoiser:
    torch.manual_seed(0)
    model = GraphDenoiser(F, G, hidden_channels=16, edge_channels=8, n_layers=2, **options)
    for block in model.blocks:  # the global term starts at 0: let it take part
        if block.gate is not None:
            nn.init.ones_(block.gate)
    return model.eval()


def noise(n: int) -> torch.Tensor:
    return torch.randn(n, G, generator=torch.Generator().manual_seed(9))


VARIANTS = [
    {},
    *({"global_attention": kind} for kind in [None, *GLOBAL_ATTENTIONS]),
    {"attention": "dot"},
    {"condition_on_y": True},
    {"similarity_edges": True},
]


@pytest.fixture(params=VARIANTS, ids=str)
def model(request) -> GraphDenoiser:
    return denoiser(**request.param)


@pytest.mark.parametrize("kind", ["jittered", "lattice"])
def test_motions_leave_the_output_unchanged(model, kind):
    data, moved = slide(49, kind=kind), slide(49, kind=kind)
    angle = 2.2
    reflection = torch.tensor(
        [[math.cos(angle), math.sin(angle)], [math.sin(angle), -math.cos(angle)]]
    ).double()
    moved.pos = moved.pos @ reflection.T - 1e4
    t = torch.tensor([0.3])
    out, out_moved = (model(noise(49), t, graph(d)) for d in (data, moved))
    assert (out - out_moved).norm() <= 1e-4 * out.norm()


def test_a_slide_in_a_batch_is_as_it_is_alone(model):
    slides, t = [graph(slide(n, n)) for n in (30, 12)], torch.tensor([0.1, 0.8])
    y = noise(42)
    together = model(y, t, Batch.from_data_list(slides))
    alone = [model(*each) for each in zip(y.split([30, 12]), t.split(1), slides, strict=True)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_permuting_spots_permutes_the_output(model):
    data, order = slide(30), torch.randperm(30, generator=torch.Generator().manual_seed(1))
    shuffled = Data(x=data.x[order], pos=data.pos[order])
    y, t = noise(30), torch.tensor([0.5])
    out = model(y, t, graph(data))
    assert torch.allclose(out[order], model(y[order], t, graph(shuffled)), atol=1e-5)


def test_gradients_reach_every_parameter(model):
    model(noise(30), torch.tensor([0.5]), graph(slide(30))).square().sum().backward()
    silent = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # edges of similarity have no frames
    assert {n for n in silent if ".convs.1.edge_encoder.framed." not in n} == set()


def test_expression_and_time_matter_and_the_last_block_sees_the_first_ones_estimate(model):
    data = graph(slide(30))
    out = model(noise(30), torch.tensor([0.5]), data)
    assert not torch.allclose(out, model(noise(30) + 1, torch.tensor([0.5]), data)) or (
        model.embed_y is None  # then only differences between neighbours matter
    )
    assert not torch.allclose(out, model(noise(30).flip(0), torch.tensor([0.5]), data))
    assert not torch.allclose(out, model(noise(30), torch.tensor([0.9]), data))


def test_reach_of_a_local_model_is_its_number_of_layers():
    model = denoiser(global_attention=None)
    data = graph(slide(100, kind="lattice"))
    x = data.x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(noise(100), torch.tensor([0.5]), data)[0].sum(), x)
    reached = {0}
    for _ in range(2):
        reached |= {s for s, t in data.edge_index.T.tolist() if t in reached}
    assert set(gradient.abs().sum(1).nonzero().flatten().tolist()) == reached
    x.grad = None
    (gradient,) = torch.autograd.grad(denoiser()(noise(100), torch.tensor([0.5]), data)[0].sum(), x)
    assert (gradient.abs().sum(1) > 0).all()  # with the global term a spot sees the whole slide


class MeanConv(nn.Module):
    """A layer of somebody else's: mean of the neighbours' states."""

    def __init__(self, channels: int, n_genes: int) -> None:
        super().__init__()
        self.lin = nn.Linear(channels + n_genes, channels)

    def forward(self, h, y, edge_index, edge_attr, edge_weight):
        source, target = edge_index
        total = torch.zeros(len(h), self.lin.in_features)
        return self.lin(total.index_add(0, target, torch.cat([h, y], 1)[source]))


def test_a_layer_of_ones_own_takes_the_place_of_ours():
    model = denoiser(conv=MeanConv)
    assert isinstance(model.blocks[0].convs[0], MeanConv)
    assert model(noise(20), torch.tensor([0.5]), graph(slide(20))).shape == (20, G)


def published(n: int = 20) -> Data:
    return STFlowGraph(6)(slide(n))


def two_slides() -> Data:
    return Batch.from_data_list([graph(slide(12)), graph(slide(8, 1))])


def crossing(y, t, d):
    d.edge_index[0, 0] = 19  # of the other slide
    d.edge_index[1, 0] = 0
    return y, t.repeat(2), d


def beyond(y, t, d):
    d.edge_index[0, 3] = 20
    return y, t, d


def negative(y, t, d):
    d.edge_index[0, 3] = -1
    return y, t, d


REFUSED = {
    "y_t too narrow": (lambda y, t, d: (y[:, :-1], t, d), r"y_t must be \[20, 5\].*got \[20, 4\]"),
    "y_t too short": (lambda y, t, d: (y[:-1], t, d), r"y_t must be \[20, 5\].*got \[19, 5\]"),
    "y_t of one row": (lambda y, t, d: (y[:1], t, d), r"y_t must be .*got \[1, 5\]"),
    "y_t of integers": (lambda y, t, d: (y.long(), t, d), r"of floats, got \[20, 5\] torch.int64"),
    "t of no axis": (lambda y, t, d: (y, t[0], d), r"t must be \[1\].*got \[\]"),
    "t a spot": (lambda y, t, d: (y, t.repeat(20)[:, None], d), r"got \[20, 1\]"),
    "t of every spot": (lambda y, t, d: (y, t.repeat(20), d), r"t must be \[1\] .*got \[20\]"),
    "t of integers": (lambda y, t, d: (y, t.long(), d), r"t must be .*int64"),
    "x too narrow": (
        lambda y, t, d: (y, t, d.update({"x": d.x[:, :3]})),
        r"data.x must be \[20, 12\].*got \[20, 3\]",
    ),
    "batch too short": (
        lambda y, t, d: (y, t, d.update({"batch": torch.zeros(19).long()})),
        r"data.batch must be \[20\] int64, got \[19\]",
    ),
    "batch of floats": (
        lambda y, t, d: (y, t, d.update({"batch": torch.zeros(20)})),
        r"data.batch must be .*float32",
    ),
    "more slides than times": (
        lambda y, t, d: (y, t, d.update({"batch": torch.arange(20) // 10})),
        r"got \[1\] for slides 0 to 1",
    ),
    "no edges": (
        lambda y, t, d: (y, t, Data(x=d.x)),
        r"data.edge_index is needed: .*SpatialGraph",
    ),
    "no geometry": (
        lambda y, t, d: (y, t, Data(x=d.x, edge_index=d.edge_index)),
        r"data.edge_attr \[E, 6\] is needed",
    ),
    "edges of int32": (
        lambda y, t, d: (y, t, d.update({"edge_index": d.edge_index.int()})),
        r"data.edge_index must be \[2, E\] int64",
    ),
    "edges transposed": (
        lambda y, t, d: (y, t, d.update({"edge_index": d.edge_index.T})),
        r"must be \[2, E\] int64, got \[\d+, 2\]",
    ),
    "an edge beyond": (beyond, r"must name spots 0 to 19, got 0 to 20"),
    "a negative edge": (negative, r"must name spots 0 to 19, got -1 to 19"),
    "geometry of other edges": (
        lambda y, t, d: (y, t, d.update({"edge_attr": d.edge_attr[1:]})),
        r"edge_weight must be|edge_index must be",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_its_shape(case):
    change, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        denoiser()(*change(noise(20), torch.tensor([0.5]), graph(slide(20))))


def test_edges_between_slides_are_refused():
    with pytest.raises(ValueError, match=r"\[2, \d+\] has 1 edges between slides"):
        denoiser()(*crossing(noise(20), torch.tensor([0.5]), two_slides()))


def test_similarity_edges_that_are_missing_or_cross_are_refused():
    model, t = denoiser(similarity_edges=True), torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match="similar_edge_index .* is needed: .*SimilarityEdges"):
        model(noise(20), t[:1], SpatialGraph(6)(slide(20)))
    data = two_slides()
    data.similar_edge_index[0, 0] = 19
    with pytest.raises(ValueError, match=r"data.similar_edge_index \[2, 80\] has 1 edges between"):
        model(noise(20), t, data)


def test_positions_that_are_not_finite_are_refused_where_frames_are_made():
    data = published()
    del data.edge_attr
    data.pos[3, 0] = float("nan")
    with pytest.raises(ValueError, match=r"data.pos \[20, 2\] has 1 rows that are not finite"):
        denoiser(attention="stflow")(noise(20), torch.tensor([0.5]), data)
    data.pos = None
    with pytest.raises(ValueError, match=r"data.pos \[20, 2\] is needed"):
        denoiser(attention="stflow")(noise(20), torch.tensor([0.5]), data)


def test_similarity_edges_bring_far_spots_near():
    model = denoiser(similarity_edges=True, global_attention=None)
    data = graph(slide(60))
    x = data.x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(noise(60), torch.tensor([0.5]), data)[0].sum(), x)
    edges = torch.cat([data.edge_index, data.similar_edge_index], 1).T.tolist()
    reached = {0}
    for _ in range(2):
        reached |= {s for s, t in edges if t in reached}
    assert set(gradient.abs().sum(1).nonzero().flatten().tolist()) == reached


COMPILED = [
    {},
    {"attention": "dot"},
    {"global_attention": None},
    {"similarity_edges": True},
    {"graph_once": True, "context_hops": (1, 2), "ridge_rank": 2},
    {"signed_attention": True, "three_body": True},
]


@pytest.mark.parametrize("options", [*COMPILED, {"attention": "stflow"}], ids=str)
def test_compiles_without_graph_breaks(options):
    model, t = denoiser(**options), torch.tensor([0.2, 0.5])
    data = two_slides()
    if options.get("attention") == "stflow":
        data = Batch.from_data_list([published(12), published(8)])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(noise(20), t, data), model(noise(20), t, data), atol=1e-5)


@pytest.mark.slow
def test_compiles_to_machine_code_and_gives_the_same():
    model, t = denoiser(), torch.tensor([0.5])
    compiled = torch.compile(model, fullgraph=True)
    for n in (30, 50):  # another size must not need another graph break
        data = graph(slide(n))
        assert torch.allclose(compiled(noise(n), t, data), model(noise(n), t, data), atol=1e-5)


def test_reset_parameters_draws_anew_and_closes_the_gate():
    model = denoiser()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.reset_parameters()
    after = model.state_dict()
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert all("norm" in key or ".0." in key or "gate" in key for key in same), same
    assert not model.blocks[0].gate.any()


# renaming a parameter makes every checkpoint useless: do it knowingly, with a new format
KEYS = {
    "embed_x": {"weight": [16, 12], "bias": [16]},
    "embed_t.mlp.0": {"weight": [16, 256], "bias": [16]},
    "embed_t.mlp.2": {"weight": [16, 16], "bias": [16]},
    "blocks.0": {"gate": [16]},
    "blocks.0.global_attention": {"queries": [3, 4, 4], "keys": [3, 4, 4]},
    "blocks.0.global_attention.norm": {"weight": [16], "bias": [16]},
    "blocks.0.global_attention.qkv": {"weight": [48, 16], "bias": [48]},
    "blocks.0.global_attention.out": {"weight": [16, 16], "bias": [16]},
    "blocks.0.mlp.0": {"weight": [16], "bias": [16]},
    "blocks.0.mlp.1": {"weight": [32, 16], "bias": [32]},
    "blocks.0.mlp.4": {"weight": [16, 32], "bias": [16]},
    "blocks.0.read_out.0": {"weight": [16], "bias": [16]},
    "blocks.0.read_out.1": {"weight": [16, 16], "bias": [16]},
    "blocks.0.read_out.4": {"weight": [5, 16], "bias": [5]},
}


def test_names_and_shapes_of_parameters_stay():
    """Those of the local layer are in ``conv/test_pyg_manners.py``."""
    model = GraphDenoiser(F, G, hidden_channels=16, edge_channels=8, n_layers=1, n_latents=3)
    found = {key: list(v.shape) for key, v in model.state_dict().items() if ".convs." not in key}
    assert found == {f"{a}.{b}": shape for a, part in KEYS.items() for b, shape in part.items()}


def test_repr_names_its_parts():
    text = repr(denoiser(attention="dot"))
    assert "FrameAveragedConv(16, n_genes=5, heads=4, attention='dot')" in text
    assert "LatentAttention(16" in text


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="latent"):
        GraphDenoiser(F, G, global_attention="mamba")


def test_single_spots_and_pairs_are_predicted():
    for n in (1, 2):
        out = denoiser()(noise(n), torch.tensor([0.5]), graph(slide(n)))
        assert torch.isfinite(out).all()
