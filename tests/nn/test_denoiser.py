from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch_geometric.data import Batch, Data

from stflow_graph.graph import SpatialGraph
from stflow_graph.nn.denoiser import GraphDenoiser

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
    return SpatialGraph(6)(data)


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
    {"global_attention": None},
    {"attention": "dot"},
    {"condition_on_y": True},
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
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


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
    assert isinstance(model.blocks[0].conv, MeanConv)
    assert model(noise(20), torch.tensor([0.5]), graph(slide(20))).shape == (20, G)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y, t, d: (y[:, :-1], t, d), r"y_t must be \[20, 5\], got \[20, 4\]"),
        (lambda y, t, d: (y, t[0], d), r"got \[\]"),
        (lambda y, t, d: (y, t, d.update({"x": d.x[:, :3]})), r"\[N, 12\], got \[20, 3\]"),
    ],
)
def test_wrong_shapes_are_printed(change, message):
    with pytest.raises(ValueError, match=message):
        denoiser()(*change(noise(20), torch.tensor([0.5]), graph(slide(20))))


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="latent"):
        GraphDenoiser(F, G, global_attention="mamba")


def test_single_spots_and_pairs_are_predicted():
    for n in (1, 2):
        out = denoiser()(noise(n), torch.tensor([0.5]), graph(slide(n)))
        assert torch.isfinite(out).all()
