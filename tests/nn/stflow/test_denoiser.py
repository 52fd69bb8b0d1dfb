"""The published model equals its equations, and ours around the published layer equals it."""

import itertools
import math

import pytest
import torch
from slides import array, change, in_double, motion, noise, reordered, scattered, seeded
from slides import slide as spots
from torch import nn
from torch_geometric.data import Batch, Data

from stflow_graph.graph import SpatialGraph, STFlowGraph
from stflow_graph.graph.stflow import stflow_edge_geometry
from stflow_graph.models.stflow_weights import graph_name, load_stflow
from stflow_graph.nn.stflow.denoiser import TransformerDenoiser

F, G, D, D_E, H, L, K = 6, 5, 16, 8, 4, 2, 4
T = torch.tensor([0.3], dtype=torch.double)


def slide(n: int, seed: int | None = None) -> Data:
    """Return spots in pixels."""
    return in_double(spots(scattered(n, seed or 0) * 20_000 + 5000, F, seed=seed))


def noised(data: Data) -> torch.Tensor:
    return noise(data.num_nodes, G, seed=data.num_nodes).double()


@pytest.fixture
def model() -> TransformerDenoiser:
    """A model in float64 whose norms and biases are not trivial."""
    torch.manual_seed(0)
    model = TransformerDenoiser(F, G, D, D_E, H, L, K)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.5)
    for block in model.backbone.blks:  # pixels are large: make frames and distances matter
        block.attn.edge_trans.fc1.weight.data *= 1e-3
    return model.double().eval()


class Reference:
    """The published equations on plain tensors: loops over blocks, spots, edges, frames, heads."""

    def __init__(self, model: TransformerDenoiser) -> None:
        self.weights = dict(model.named_parameters())

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.weights[f"{name}.weight"] @ x + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        scaled = (x - x.mean()) / torch.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def swiglu(self, name: str, x: torch.Tensor) -> torch.Tensor:
        a, b = self.linear(f"{name}.fc1", x).chunk(2)
        return self.linear(f"{name}.fc2", self.norm(f"{name}.norm", a / (1 + torch.exp(-a)) * b))

    def __call__(self, y, t, data, neighbours) -> torch.Tensor:
        h = [self.linear("image_transform", x) + self.time(t) for x in data.x]
        y, outputs, n = list(y), [], len(h)
        for block in (f"backbone.blks.{layer}" for layer in range(L)):
            attended = [
                self.attention(f"{block}.attn", h, y, data.pos, i, neighbours[i]) for i in range(n)
            ]
            h = [a + b for a, b in zip(h, attended, strict=True)]
            h = [a + self.swiglu(f"{block}.mlp", a) for a in h]
            y = [self.gene_head(f"{block}.gene_updater.output", a) for a in h]
            outputs.append(torch.stack(y))
        return sum(outputs) / L

    def time(self, t: torch.Tensor) -> torch.Tensor:
        angles = [t.item() * 10000 ** (-i / 128) for i in range(128)]
        values = [*map(math.cos, angles), *map(math.sin, angles)]
        hidden = self.linear("fourier_proj.mlp.0", torch.tensor(values, dtype=torch.double))
        return self.linear("fourier_proj.mlp.2", hidden / (1 + torch.exp(-hidden)))

    def gene_head(self, name: str, h: torch.Tensor) -> torch.Tensor:
        hidden = self.linear(f"{name}.0", h)
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        return self.linear(f"{name}.4", self.norm(f"{name}.2", hidden))

    def qkv(self, name: str, h: torch.Tensor) -> torch.Tensor:
        normed = self.norm(f"{name}.layernorm_qkv.0", h)
        return self.linear(f"{name}.layernorm_qkv.1", normed).view(3, H, D // H)

    def edges(self, name: str, pos, i: int, neighbours: list[int]) -> list[torch.Tensor]:
        r = [pos[j] - pos[i] for j in neighbours]
        centre = sum(r) / max(len(r), 1)
        covariance = sum(torch.outer(e - centre, e - centre) for e in r)
        encoded = []
        for e in r:
            u = torch.linalg.eigh(covariance).eigenvectors
            framed = [
                torch.stack([s * ((e - centre) @ u[:, 0]), z * ((e - centre) @ u[:, 1]), e.norm()])
                for s, z in itertools.product([-1, 1], repeat=2)
            ]
            encoded.append(sum(self.swiglu(f"{name}.edge_trans", x) for x in framed) / 4)
        return encoded

    def attention(self, name: str, h, y, pos, i: int, neighbours: list[int]) -> torch.Tensor:
        q = self.qkv(name, h[i])[0]
        keys, values = ([self.qkv(name, h[j])[part] for j in neighbours] for part in (1, 2))
        f = [e.view(H, D_E // H) for e in self.edges(name, pos, i, neighbours)]
        v_context, f_context = torch.zeros(H, D // H).double(), torch.zeros(H, D_E // H).double()
        for head in range(H):
            message = [
                torch.cat([q[head], k[head], e[head], y[j] - y[i]])
                for k, e, j in zip(keys, f, neighbours, strict=True)
            ]
            score = [self.swiglu(f"{name}.mlp_attn", m).exp() for m in message]
            for a, v, e in zip(score, values, f, strict=True):
                v_context[head] += (a / sum(score) * v[head]).squeeze()
                f_context[head] += (a / sum(score) * e[head]).squeeze()
        context = torch.cat([v_context.flatten(), f_context.flatten()])
        return self.swiglu(f"{name}.W_output", context)


def nearest(data: Data, k: int = K) -> list[list[int]]:
    distance = torch.cdist(data.pos, data.pos, compute_mode="donot_use_mm_for_euclid_dist")
    order = distance.fill_diagonal_(torch.inf).argsort(dim=1)
    return order[:, : min(k, data.num_nodes - 1)].tolist()


@pytest.mark.parametrize("n", [1, 2, 3, K, K + 1, 15])
@torch.no_grad()
def test_equals_the_published_equations(model, n):
    data = slide(n)
    data.x[0] = 0  # zero embeddings are spots like others
    expected = Reference(model)(noised(data), T, data, nearest(data))
    torch.testing.assert_close(model(noised(data), T, data), expected, rtol=1e-9, atol=1e-9)


def ragged(n: int) -> tuple[torch.Tensor, list[list[int]]]:
    """Return a graph whose degrees differ, with spots without neighbours, edges shuffled."""
    edge_index = (torch.rand(n, n, generator=seeded(7)) < 0.3).fill_diagonal_(False).nonzero().T
    edge_index = edge_index[:, edge_index[1] != 2]
    edge_index = edge_index[:, torch.randperm(edge_index.size(1), generator=seeded(7))]
    return edge_index, [edge_index[0, edge_index[1] == i].tolist() for i in range(n)]


def test_equals_the_published_equations_on_any_graph_in_value_and_gradient(model):
    data = slide(9)
    data.edge_index, neighbours = ragged(9)
    assert len({len(row) for row in neighbours}) > 2
    assert neighbours[2] == []
    inputs = (noised(data), T, data)
    out, expected = model(*inputs), Reference(model)(*inputs, neighbours)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    probe, weights = noise(9, G, seed=1).double(), list(model.parameters())
    gradients = [torch.autograd.grad((y * probe).sum(), weights) for y in (out, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-9)


SLIDES = {
    "50": [slide(50)],
    "500": [slide(500)],
    "lattice": [in_double(spots(array("square", 20) * 100, F))],
    "batch": [slide(n) for n in (50, 9, 300)],
}


@pytest.mark.parametrize("slides", SLIDES)
@pytest.mark.parametrize("graph", [STFlowGraph(K), SpatialGraph(K)], ids=["published", "ours"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.double, 1e-11), (torch.float, 1e-5)])
def test_around_its_layer_ours_is_the_same_function(model, slides, graph, dtype, tolerance):
    """Values and gradients of ``GraphDenoiser(conv="stflow")`` on the same graph."""
    batch = [graph(data.clone()) for data in SLIDES[slides]]
    for data in batch:
        data.edge_attr = stflow_edge_geometry(data.pos, data.edge_index)
        del data.edge_weight
    data = Batch.from_data_list(batch)
    for key in ("x", "edge_attr"):
        data[key] = data[key].to(dtype)
    y, probe = (noise(data.num_nodes, G, seed=seed).to(dtype) for seed in (2, 3))
    t = torch.rand(len(batch), generator=seeded()).to(dtype)
    outputs, gradients = [], []
    for kind in ("transformer", "graph"):
        network = load_stflow(model.state_dict(), kind).to(dtype)
        outputs.append(network(y, t, data))
        names = [name for name, _ in network.named_parameters()]
        values = torch.autograd.grad((outputs[-1] * probe).sum(), list(network.parameters()))
        names = map(graph_name, names) if kind == "transformer" else names
        gradients.append(dict(zip(names, values, strict=True)))
    assert change(outputs[1], outputs[0]) <= tolerance
    assert gradients[0].keys() == gradients[1].keys()
    for block in {name.split(".conv")[0] for name in gradients[0]}:
        names = [name for name in gradients[0] if name.startswith(block)]
        scale = max(gradients[0][name].norm() for name in names)
        for name in names:
            assert (gradients[1][name] - gradients[0][name]).norm() <= tolerance * scale, name


@pytest.mark.parametrize("with_graph", [False, True])
def test_a_slide_in_a_batch_is_as_it_is_alone(model, with_graph):
    slides = [slide(n, seed=n) for n in (12, 1, 3, 20)]
    for data in slides:
        data.pos = data.pos - data.pos.mean(0) + 3  # the slides overlap in space
        if with_graph:
            data.edge_index = ragged(data.num_nodes)[0]
    t = torch.tensor([0.1, 0.4, 0.5, 0.9]).double()
    y, batch = [noised(data) for data in slides], Batch.from_data_list(slides)
    alone = [model(*inputs) for inputs in zip(y, t.split(1), slides, strict=True)]
    torch.testing.assert_close(model(torch.cat(y), t, batch), torch.cat(alone))
    bound = model.bind(batch)(torch.cat(y), T)
    torch.testing.assert_close(bound, model(torch.cat(y), T.expand(4), batch))


def test_permuting_spots_permutes_the_output_also_across_slides(model):
    batch = Batch.from_data_list([slide(12, 1), slide(9, 2)])
    y, t = noised(batch), torch.tensor([0.2, 0.8]).double()
    order = torch.randperm(21, generator=seeded())
    mixed = reordered(batch, order)
    mixed.batch = batch.batch[order]
    torch.testing.assert_close(model(y[order], t, mixed), model(y, t, batch)[order])


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize("angle", [0.0, 0.7, 2.9])
def test_motions_leave_the_output_unchanged_on_irregular_positions(model, angle, reflect):
    data = slide(40)
    moved = data.clone()
    moved.pos = data.pos @ motion(angle, reflect).T + torch.tensor([-3e4, 7e3])
    assert change(*(model(noised(d), T, d) for d in (moved, data))) <= 1e-7
    model, y = model.float(), noised(data).float()
    moved.x = data.x = data.x.float()
    moved.pos = moved.pos + 1e10  # float32 has no digits left there
    assert change(*(model(y, T.float(), d) for d in (moved, data))) <= 1e-4


def test_a_hexagonal_lattice_breaks_invariance_as_published(model):
    """The known defect: inner neighbourhoods are isotropic, so their axes follow rounding."""
    data = in_double(spots(137 * array("hexagonal", 9), F))
    edges = torch.cdist(data.pos, data.pos) < 150
    data.edge_index = edges.fill_diagonal_(False).nonzero().T  # the ring of six, no ties broken
    for block in model.backbone.blks:  # frames with the weight that they have in pixels
        block.attn.edge_trans.fc1.weight.data *= 10
    moved = data.clone()
    moved.pos = data.pos @ motion(0.3).T
    assert change(*(model(noised(d), T, d) for d in (moved, data))) > 1e-3


@pytest.mark.parametrize("kind", ["one place", "pairs", "line"])
def test_degenerate_positions_give_finite_output_and_gradients(model, kind):
    data = slide(12)
    data.pos = {
        "one place": torch.full((12, 2), 77.0).double(),
        "pairs": data.pos[:6].repeat(2, 1),
        "line": data.pos * torch.tensor([1.0, 0.0]),
    }[kind].requires_grad_()
    out = model.train()(noised(data), T, data)
    out.square().sum().backward()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(p.grad).all() for p in (*model.parameters(), data.pos))


def test_gradients_reach_every_parameter_and_input(model):
    data = slide(30)
    data.x.requires_grad_()
    y = noised(data).requires_grad_()
    model(y, T, data).square().sum().backward()
    silent = {name for name, p in model.named_parameters() if not p.grad.abs().max() > 0}
    # one score for all neighbours: softmax ignores what they share
    assert all(name.endswith(".mlp_attn.fc2.bias") for name in silent)
    assert y.grad.abs().max() > 0
    assert data.x.grad.abs().max() > 0


def test_empty_batches_give_no_rows(model):
    assert model(torch.zeros(0, G).double(), T, slide(0)).shape == (0, G)


def test_each_dropout_has_its_rate_and_acts_in_training_alone():
    rates = {
        name: module.p
        for name, module in TransformerDenoiser(F, G, dropout=0.3, attn_dropout=0.1).named_modules()
        if isinstance(module, nn.Dropout) and "blks.0" in name
    }
    block = "backbone.blks.0"
    assert rates.pop(f"{block}.attn.attn_dropout") == 0.1
    parts = ("attn.mlp_attn", "attn.edge_trans", "attn.W_output", "mlp")
    names = [f"{part}.dropout" for part in parts]
    names += ["gene_updater.output.3", "gene_updater.output.5"]
    assert rates == {f"{block}.{name}": 0.3 for name in names}
    data, model = slide(12), TransformerDenoiser(F, G, dropout=0.0, attn_dropout=0.5).double()
    assert not torch.equal(*(model(noised(data), T, data) for _ in "ab"))
    model.eval()
    assert torch.equal(*(model(noised(data), T, data) for _ in "ab"))


def test_inputs_are_checked(model):
    """All checks are in ``nn/test_checks.py``."""
    for key, value, message in (
        ("x", torch.zeros(8, F + 1), r"data.x must be \[8, 6\].*got \[8, 7\]"),
        ("pos", torch.zeros(8, 3), r"data.pos must be \[8, 2\], got \[8, 3\]"),
        ("batch", torch.arange(8), r"each slide of data.batch \[8\], got \[1\]"),
        ("edge_index", torch.tensor([[0], [8]]), r"\[2, 1\] must name spots 0 to 7, got 0 to 8"),
    ):
        data = slide(8)
        y, data[key] = noised(data), value
        with pytest.raises(ValueError, match=message):
            model(y, T, data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 3}, "n_heads must divide.*got 3 and 128, 128"),
        ({"edge_channels": 30}, "got 4 and 128, 30"),
        ({"n_layers": 0}, "got 0 and 8"),
        ({"n_neighbors": 0}, "got 4 and 0"),
    ],
)
def test_sizes_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TransformerDenoiser(F, G, **options)
